"""Softmax attention, all pairs at once."""

import jax.numpy as jnp

from tests.attention.definitions import common

SMALL = [{'block': 2}, {'form': 'dense'}, {'form': 'fused'}]


@common.by_heads
def definition(case, params, q, k, v, tokens):
  logits = common.scaled_logits(case, params, q, k, tokens)
  attn = common.softmax_weights(logits, common.seen(case, tokens))
  return jnp.einsum('bhts,bshv->bthv', attn, v)
