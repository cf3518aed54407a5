"""Gated linear attention, token by token."""

import jax
import jax.numpy as jnp

from tests.attention.definitions import recurrence_steps

SMALL = [{'chunk': 3}, {'chunk': 2, 'value_width': 5, 'gate_rank': 2}]


def definition(case, variables, x_BTD, tokens):
  params = variables['params']
  q, k, v, gate = (
    jnp.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
    for name in ('query', 'key', 'value', 'gate')
  )
  low = x_BTD @ params['decay_low']['kernel']
  logit = jnp.einsum('btm,mhk->bthk', low, params['decay']['kernel'])
  alpha = jax.nn.sigmoid(logit + params['decay']['bias'][None, None]) ** 0.0625
  q /= q.shape[-1] ** 0.5
  o = recurrence_steps.read(case, tokens, q, k, v, jnp.log(alpha))
  o /= jnp.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
  o *= params['norm'][None, None, None]
  return jnp.einsum(
    'bthv,hvd->btd', o * jax.nn.silu(gate), params['out']['kernel']
  )
