"""The matrix recurrence of the definitions, token by token."""

import jax.numpy as jnp


def read(case, tokens, q, k, v, log_decay, beta=None):
  """o [B, T, H, V] of S_i = Lambda_i S_{i-1} + k_i u_i^T, o_i = S_i^T q_i.

  Arrays are [B, T, H, ...]; `log_decay` is [B, T, H, K] or [B, T, H, 1], `beta`
  [B, T, H] (delta rule) or None. Both directions where not causal, the token
  itself in the first only.
  """
  length = q.shape[1]
  order = range(length)
  o = _one_way(tokens, order, True, q, k, v, log_decay, beta)
  if not case.is_causal:
    o += _one_way(tokens, order[::-1], False, q, k, v, log_decay, beta)
  return o


def _one_way(tokens, order, is_inclusive, q, k, v, log_decay, beta):
  segment_BT = jnp.asarray(tokens.segment_BT)
  state = jnp.zeros((q.shape[0], *q.shape[2:], v.shape[-1]))
  live_B = jnp.zeros(q.shape[0], int)
  outputs = [None] * len(order)
  for t in order:
    is_real = (segment_BT[:, t] > 0)[:, None, None, None]
    is_new = (segment_BT[:, t] != live_B)[:, None, None, None]
    before = jnp.exp(log_decay[:, t])[..., None] * jnp.where(is_new, 0.0, state)
    u = v[:, t]
    if beta is not None:
      stored = jnp.einsum('bhkv,bhk->bhv', before, k[:, t])
      u = beta[:, t, :, None] * (u - stored)
    after = before + k[:, t, :, :, None] * u[:, :, None]
    read = after if is_inclusive else before
    o = jnp.einsum('bhkv,bhk->bhv', read, q[:, t])
    outputs[t] = jnp.where(is_real[..., 0], o, 0.0)
    state = jnp.where(is_real, after, state)
    live_B = jnp.where(is_real[:, 0, 0, 0], segment_BT[:, t], live_B)
  return jnp.stack(outputs, axis=1)


def convolve(x_BTM, filter_WM, tokens):
  """Short causal convolution; distances in real tokens of the segment."""
  taps = filter_WM.shape[0]
  distance_BTT = tokens.position_BT[:, :, None] - tokens.position_BT[:, None]
  is_tap_BTT = tokens.segment_BT[:, :, None] == tokens.segment_BT[:, None]
  is_tap_BTT &= (tokens.segment_BT > 0)[:, None]
  is_tap_BTT &= (distance_BTT >= 0) & (distance_BTT < taps)
  factor_BTTM = filter_WM[jnp.clip(distance_BTT, 0, taps - 1)]
  factor_BTTM = jnp.where(is_tap_BTT[..., None], factor_BTTM, 0.0)
  return jnp.einsum('btsm,bsm->btm', factor_BTTM, x_BTM)
