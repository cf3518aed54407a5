"""Gated DeltaNet and DeltaNet, token by token."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import recurrence_steps

SMALL = [
  {'chunk': 3},
  {'chunk': 3, 'delta': 'plain', 'max_rate': 2.0, 'taps': 2},
]


def definition(case, variables, x_BTD, tokens):
  params = variables['params']
  streams, first = [], 0
  for name in ('query', 'key', 'value'):
    x = jnp.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
    size = np.prod(x.shape[2:])
    filter_WM = params['conv'][:, first : first + size]
    flat = recurrence_steps.convolve(
      x.reshape(*x.shape[:2], -1), filter_WM, tokens
    )
    streams.append(jax.nn.silu(flat).reshape(x.shape))
    first += size
  q, k, v = streams
  q, k = (x / jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
  q /= q.shape[-1] ** 0.5
  beta = jax.nn.sigmoid(x_BTD @ params['rate']['kernel'])
  beta *= case.settings.get('max_rate', 1.0)
  log_decay = jnp.zeros_like(beta)
  is_gated = case.settings.get('delta') != 'plain'
  if is_gated:
    step = x_BTD @ params['step']['kernel'] + params['step_bias'][None, None]
    step = jnp.log(1 + jnp.exp(step))
    log_decay = -jnp.exp(params['log_rate'])[None, None] * step
  o = recurrence_steps.read(case, tokens, q, k, v, log_decay[..., None], beta)
  o /= jnp.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
  o *= params['norm'][None, None, None]
  if is_gated:
    gate = jnp.einsum('btd,dhv->bthv', x_BTD, params['gate']['kernel'])
    o *= jax.nn.silu(gate)
  return jnp.einsum('bthv,hvd->btd', o, params['out']['kernel'])
