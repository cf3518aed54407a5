"""Mega, token by token and pair by pair."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.sizes import D

SMALL = [
  {'block': 3, 'num_averages': 2, 'key_width': 4, 'value_width': 5, 'chunk': 2},
  {'block': 2, 'function': 'laplace', 'num_averages': 3, 'key_width': 4,
   'chunk': 3},
]  # fmt: skip


def moving_average(params, name, segment_T, x_TD):
  share_DM = jax.nn.sigmoid(params[f'{name}_share'])
  keep_DM = 1 - share_DM * jax.nn.sigmoid(params[f'{name}_damping'])
  h_DM, segment, outputs = jnp.zeros_like(share_DM), 0, []
  for t in range(x_TD.shape[0]):
    new_DM = share_DM * params[f'{name}_drive'] * x_TD[t][:, None]
    same, real = segment_T[t] == segment, segment_T[t] > 0
    h_DM = jnp.where(real, jnp.where(same, keep_DM * h_DM, 0) + new_DM, h_DM)
    segment = jnp.where(real, segment_T[t], segment)
    read_DM = params[f'{name}_read'] / math.sqrt(share_DM.shape[1])
    outputs.append((read_DM * h_DM).sum(-1))
  return jnp.stack(outputs)


def attention(case, params, q_TK, k_TK, segment_T, position_T):
  size = case.settings['block']
  block_T = position_T // size
  seen_TT = (segment_T[:, None] == segment_T[None]) & (segment_T > 0)[None]
  seen_TT &= block_T[:, None] == block_T[None]
  ahead_TT = position_T[None] - position_T[:, None]
  if case.is_causal:
    seen_TT &= ahead_TT <= 0
  bias_TT = params['relative_bias'][
    jnp.clip(ahead_TT, 1 - size, size - 1) + size - 1
  ]
  product_TT = q_TK @ k_TK.T
  if case.settings.get('function') == 'laplace':
    count_T1 = jnp.maximum(seen_TT.sum(-1), 1)[:, None]
    x_TT = product_TT / count_T1 + bias_TT
    deviation = math.sqrt(1 / (4 * math.pi))
    cdf_TT = jax.scipy.stats.norm.cdf(x_TT, math.sqrt(0.5), deviation)
    return jnp.where(seen_TT, cdf_TT, 0.0)
  x_TT = product_TT / q_TK.shape[1] ** 0.5 + bias_TT
  weights_TT = jnp.where(seen_TT, jnp.exp(x_TT), 0.0)
  total_T1 = weights_TT.sum(-1, keepdims=True)
  return weights_TT / jnp.where(total_T1 > 0, total_T1, 1.0)


def definition(case, variables, x_BTD, tokens):
  params = variables['params']

  def dense(name, x_TD):
    return x_TD @ params[name]['kernel'] + params[name]['bias'][None]

  def row(segment_T, position_T, x_TD):
    x_TD = jnp.where(segment_T[:, None] > 0, x_TD, 0.0)
    sum_TD = params['skip'][None] * x_TD
    sum_TD += moving_average(params, 'past', segment_T, x_TD)
    if not case.is_causal:
      backwards = segment_T[::-1], x_TD[::-1]
      sum_TD += moving_average(params, 'future', *backwards)[::-1]
    m_TD = jax.nn.silu(sum_TD)
    v_TV = jax.nn.silu(dense('content', x_TD))
    values, keys = v_TV.shape[1], case.settings['key_width']
    u_TD, z_TK, r_TV, h_TD = jnp.split(
      dense('gates', m_TD), np.cumsum([D, keys, values]), axis=-1
    )
    z_TK = jax.nn.silu(z_TK)
    q_TK, k_TK = (
      z_TK * params['scale'][n][None] + params['shift'][n][None] for n in (0, 1)
    )
    attn_TT = attention(case, params, q_TK, k_TK, segment_T, position_T)
    o_TV = attn_TT @ v_TV * jax.nn.silu(r_TV)
    h_TD = jax.nn.silu(h_TD + dense('out', o_TV))
    u_TD = jax.nn.sigmoid(u_TD)
    # The residual is added outside.
    return u_TD * h_TD + (1 - u_TD) * x_TD - x_TD

  return jax.vmap(row)(tokens.segment_BT, tokens.position_BT, x_BTD)
