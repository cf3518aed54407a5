"""Softmax attention with a banded mask."""

import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common
from tests.attention.sizes import T

SMALL = [{'window': 2, 'block': 2}]


@common.by_heads
def definition(case, params, q, k, v, tokens):
  logits = common.scaled_logits(case, params, q, k, tokens)
  distance_TT = np.abs(np.arange(T)[:, None] - np.arange(T)[None])
  near_TT = distance_TT < case.settings['window']
  keep_BTT = common.seen(case, tokens) & near_TT[None]
  attn = common.softmax_weights(logits, keep_BTT)
  return jnp.einsum('bhts,bshv->bthv', attn, v)
