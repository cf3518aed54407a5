"""Longformer: masks of all pairs, and a second set of projections."""

import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common
from tests.attention.sizes import T

SMALL = [
  {'attention_window': 2, 'global_tokens': 1, 'block': 2},
  {'attention_window': 2, 'global_tokens': 2, 'block': 2, 'dilation': 2},
]


def definition(case, variables, x_BTD, tokens):
  params = variables['params']
  is_global_BT = tokens.position_BT < case.settings['global_tokens']
  y_BTD = _local(case, variables, x_BTD, tokens)
  if case.is_causal:
    return y_BTD
  own = {name: params[f'{name}_global'] for name in ('query', 'key', 'value')}
  z_BTD = _all(case, {'params': {**params, **own}}, x_BTD, tokens)
  return jnp.where(is_global_BT[..., None], z_BTD, y_BTD)


@common.by_heads
def _local(case, params, q, k, v, tokens):
  w, dilation = (
    case.settings['attention_window'],
    case.settings.get('dilation', 1),
  )
  offset_TT = np.arange(T)[:, None] - np.arange(T)[None]
  near_TT = abs(offset_TT) <= w // 2 * dilation
  near_TT &= offset_TT % dilation == 0
  is_global_BT = tokens.position_BT < case.settings['global_tokens']
  keep_BTT = near_TT[None] | is_global_BT[:, None, :]
  return _attend(case, params, q, k, v, tokens, keep_BTT)


@common.by_heads
def _all(case, params, q, k, v, tokens):
  return _attend(case, params, q, k, v, tokens, True)


def _attend(case, params, q, k, v, tokens, keep_BTT):
  logits = common.scaled_logits(case, params, q, k, tokens)
  attn = common.softmax_weights(logits, common.seen(case, tokens) & keep_BTT)
  return jnp.einsum('bhts,bshv->bthv', attn, v)
