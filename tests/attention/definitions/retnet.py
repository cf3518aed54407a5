"""Retention as a matrix of weights, Q K^T times powers of gamma."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common

SMALL = [{'chunk': 3}, {'chunk': 2, 'value_width': 5}]


def definition(case, variables, x_BTD, tokens):
  params = variables['params']
  q, k, v, gate = (
    jnp.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
    for name in ('query', 'key', 'value', 'gate')
  )
  q, k = common.turn(case, q, tokens), common.turn(case, k, tokens)
  logits = jnp.einsum('bthk,bshk->bhts', q, k) / q.shape[-1] ** 0.5
  gamma = 1 - 2.0 ** -np.arange(5, 5 + q.shape[2])
  # Distances in real tokens, which is what positions count.
  distance = jnp.abs(
    tokens.position_BT[:, :, None] - tokens.position_BT[:, None]
  )
  fade = gamma[None, :, None, None] ** distance[:, None]
  keep = common.seen(case, tokens)[:, None]
  o = jnp.einsum('bhts,bshv->bthv', jnp.where(keep, logits * fade, 0.0), v)
  centred = o - o.mean(-1, keepdims=True)
  normed = centred / jnp.sqrt(o.var(-1, keepdims=True) + 1e-5)
  return jnp.einsum(
    'bthv,hvd->btd', normed * jax.nn.silu(gate), params['out']['kernel']
  )
