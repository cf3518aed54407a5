"""Sparse Transformer: masks of all pairs."""

import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common

SMALL = [
  {'pattern': 'fixed', 'stride': 3, 'columns': 1},
  {'pattern': 'strided', 'stride': 3},
  {'pattern': 'fixed', 'stride': 4, 'columns': 2, 'split_heads': True},
  {'pattern': 'strided', 'stride': 2, 'split_heads': True},
]


@common.by_heads
def definition(case, params, q, k, v, tokens):
  l = case.settings['stride']
  position_BT = tokens.position_BT
  offset_BTT = position_BT[:, :, None] - position_BT[:, None, :]
  if case.settings['pattern'] == 'strided':
    first_BTT = jnp.abs(offset_BTT) < l
    second_BTT = offset_BTT % l == 0
  else:
    block_BT = position_BT // l
    first_BTT = block_BT[:, :, None] == block_BT[:, None, :]
    second_BTT = (position_BT % l >= l - case.settings['columns'])[:, None, :]
  num_heads = q.shape[2]
  if case.settings.get('split_heads'):
    is_odd_H = np.arange(num_heads) % 2 == 1
    second_BTT |= offset_BTT == 0
    keep_BHTT = jnp.where(
      is_odd_H[None, :, None, None], second_BTT[:, None], first_BTT[:, None]
    )
  else:
    keep_BHTT = (first_BTT | second_BTT)[:, None]
  keep_BHTT &= common.seen(case, tokens)[:, None]
  logits = common.scaled_logits(case, params, q, k, tokens)
  weights = jnp.where(keep_BHTT, jnp.exp(logits), 0.0)
  total = weights.sum(-1, keepdims=True)
  attn = weights / jnp.where(total > 0, total, 1.0)
  return jnp.einsum('bhts,bshv->bthv', attn, v)
