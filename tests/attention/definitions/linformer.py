"""Linformer, written out."""

import jax
import jax.numpy as jnp

from tests.attention.definitions import common
from tests.attention.sizes import LONGER, H, T

SMALL = [
  {'rank': 5, 'max_length': LONGER},
  {'rank': 5, 'max_length': LONGER, 'sharing': 'none'},
]


@common.by_heads
def definition(case, params, q, k, v, tokens):
  keep_BT11 = tokens.keep_BT[:, :, None, None]
  k, v = k * keep_BT11, v * keep_BT11
  e = params['mix_keys'][..., :T]
  f = params.get('mix_values', params['mix_keys'])[..., :T]
  e, f = (jnp.broadcast_to(x, (H, *x.shape[-2:])) for x in (e, f))
  logits = jnp.einsum('bthk,hms,bshk->bhtm', q, e, k) / q.shape[-1] ** 0.5
  attn = jax.nn.softmax(logits, axis=-1)
  return jnp.einsum('bhtm,hms,bshv->bthv', attn, f, v) * keep_BT11
