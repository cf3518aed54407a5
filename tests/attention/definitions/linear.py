"""Linear attention, as a matrix of weights."""

import jax.numpy as jnp

from tests.attention.definitions import common

SMALL = [{'chunk': 3}]


@common.by_heads
def definition(case, params, q, k, v, tokens):
  q, k = (jnp.where(x > 0, x + 1, jnp.exp(x)) for x in (q, k))
  keep = common.seen(case, tokens)[:, None]
  below = jnp.where(keep, jnp.einsum('bthk,bshk->bhts', q, k), 0.0)
  q, k = common.turn(case, q, tokens), common.turn(case, k, tokens)
  above = jnp.where(keep, jnp.einsum('bthk,bshk->bhts', q, k), 0.0)
  attn = above / (below.sum(-1, keepdims=True) + 1e-6)
  return jnp.einsum('bhts,bshv->bthv', attn, v)
