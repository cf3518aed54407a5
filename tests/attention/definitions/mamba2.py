"""Mamba-2, token by token and head by head."""

import jax
import jax.numpy as jnp

from tests.attention.definitions import recurrence_steps

SMALL = [
  {'chunk': 3},
  {'chunk': 2, 'num_groups': 3, 'value_width': 5, 'taps': 2},
]


def definition(case, variables, x_BTD, tokens):
  params = variables['params']
  c, b, x, z = (
    jnp.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
    for name in ('query', 'key', 'value', 'gate')
  )
  flat = jnp.concatenate(
    [y.reshape(*y.shape[:2], -1) for y in (x, b, c)], axis=-1
  )
  num_keys, num_values = c.shape[2] * c.shape[3], x.shape[2] * x.shape[3]
  # Channels of the filter are C, B, x.
  order = jnp.concatenate(
    [
      2 * num_keys + jnp.arange(num_values),
      num_keys + jnp.arange(num_keys),
      jnp.arange(num_keys),
    ]
  )
  flat = recurrence_steps.convolve(flat, params['conv'][:, order], tokens)
  flat = jax.nn.silu(flat + params['conv_bias'][order][None, None])
  x = flat[..., :num_values].reshape(x.shape)
  b = flat[..., num_values:-num_keys].reshape(b.shape)
  c = flat[..., -num_keys:].reshape(c.shape)
  num_heads, groups = x.shape[2], c.shape[2]
  b, c = (jnp.repeat(y, num_heads // groups, axis=2) for y in (b, c))
  step = x_BTD @ params['step']['kernel'] + params['step_bias'][None, None]
  step = jnp.log(1 + jnp.exp(step))
  log_decay = -step * jnp.exp(params['log_rate'])[None, None]
  o = recurrence_steps.read(
    case, tokens, c, b, step[..., None] * x, log_decay[..., None]
  )
  o += params['skip'][None, None, :, None] * x
  o = o.reshape(*o.shape[:2], groups, -1) * jax.nn.silu(z)
  o /= jnp.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
  o *= params['norm'].reshape(1, 1, groups, -1)
  return jnp.einsum('bthv,hvd->btd', o, params['out']['kernel'])
