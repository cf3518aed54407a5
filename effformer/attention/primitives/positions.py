"""Positions inside attention: rotary, ALiBi and T5 biases.

Rotary positions (Su et al. 2021, 2104.09864): pairs (x_t, x_{t + K/2}) turn by
position * 10000^{-2t/K}; angles are float32.

A bias is added to the logits, after their scale, and depends on the distance of
the positions i (query) and j (key):

    alibi   -m_h |i - j|, m_h fixed        (Press et al. 2022, 2108.12409)
    t5      table[bucket(i - j)], trained  (Raffel et al. 2020, 1910.10683)

T5 itself does not scale its logits by 1 / sqrt(K); here they are scaled.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from effformer.shapes import Array

KINDS = ('none', 'alibi', 't5')


class Rule(NamedTuple):
  """A bias; static.

  Attributes:
    kind: 'alibi' or 't5'.
    causal: all buckets for the past; else half of them for either side.
    num_buckets: R, of t5; even.
    max_distance: from here on the last bucket of a side.
  """

  kind: str
  causal: bool = False
  num_buckets: int = 32
  max_distance: int = 128


def rotate(x_TK: Array, position_T: Array, base: float = 10_000.0) -> Array:
  """Turns each pair of halves by its position; the norm stays. K is even."""
  half = x_TK.shape[-1] // 2
  rate_K = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_TK = position_T.astype(jnp.float32)[:, None] * rate_K[None, :]
  cos_TK, sin_TK = jnp.cos(angle_TK), jnp.sin(angle_TK)
  first_TK, second_TK = jnp.split(x_TK.astype(jnp.float32), 2, axis=-1)
  turned_TK = jnp.concatenate(
    [
      first_TK * cos_TK - second_TK * sin_TK,
      second_TK * cos_TK + first_TK * sin_TK,
    ],
    axis=-1,
  )
  return turned_TK.astype(x_TK.dtype)


def slopes(num_heads: int) -> np.ndarray:
  """m_H of ALiBi, float32: 2^{-8 (h + 1) / H} where H is a power of two.

  Else those of the next lower power, then every second one of the next higher.
  """
  lower = 1 << (num_heads.bit_length() - 1)
  first_H = 2.0 ** (-8.0 * np.arange(1, lower + 1) / lower)
  between_H = 2.0 ** (-4.0 * np.arange(1, 2 * lower, 2) / lower)
  both_H = np.concatenate([first_H, between_H])
  return both_H[:num_heads].astype(np.float32)


def bias(
  rule: Rule, weights: Array, position_T: Array, position_S: Array
) -> Array:
  """What is added to the logits [T, S], float32.

  Args:
    rule: which bias.
    weights: of one head; alibi: the slope, a scalar; t5: the table [R].
    position_T: of the queries, within their segments.
    position_S: of the keys.
  """
  ahead_TS = position_S[None, :] - position_T[:, None]
  if rule.kind == 'alibi':
    return -weights * jnp.abs(ahead_TS).astype(jnp.float32)
  return weights.astype(jnp.float32)[bucket(rule, ahead_TS)]


def bias_gradient(
  rule: Rule, dlogits_TS: Array, position_T: Array, position_S: Array
) -> Array:
  """Gradient for the weights of `bias`; slopes are fixed, so theirs is 0."""
  if rule.kind == 'alibi':
    return jnp.zeros((), jnp.float32)
  bucket_TS = bucket(rule, position_S[None, :] - position_T[:, None])
  # Compared with every bucket: a scatter would be many times slower.
  number_R = jnp.arange(rule.num_buckets)
  is_it_TSR = bucket_TS[..., None] == number_R[None, None]
  return jnp.where(is_it_TSR, dlogits_TS[..., None], 0.0).sum((0, 1))


def bucket(rule: Rule, ahead: Array) -> Array:
  """int32, the bucket of distances j - i.

  Exact up to half the buckets of a side, then logarithmic to `max_distance`.
  """
  side = rule.num_buckets if rule.causal else rule.num_buckets // 2
  distance = jnp.maximum(-ahead, 0) if rule.causal else jnp.abs(ahead)
  number = jnp.minimum(distance, side // 2)
  for threshold in _thresholds(side, rule.max_distance):
    number += (distance >= threshold).astype(number.dtype)
  if not rule.causal:
    number += jnp.where(ahead > 0, side, 0)
  return number


def _thresholds(side: int, max_distance: int) -> list[int]:
  """Distances at which the logarithmic buckets beyond the first begin.

  Bucket e + m, e = side / 2, begins at the least n with
  e' log(n / e) / log(max_distance / e) >= m, e' = side - e; in whole numbers,
  since rounding decides it where n / e is a power.
  """
  exact = side // 2
  rest = side - exact
  result = []
  for m in range(1, rest):
    least = exact * math.exp(m / rest * math.log(max_distance / exact))
    n = max(int(least) - 1, exact)
    while n**rest * exact**m < max_distance**m * exact**rest:
      n += 1
    result.append(n)
  return result
