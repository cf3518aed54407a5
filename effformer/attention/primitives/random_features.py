"""Attention with positive random features, one head of one example.

    o_i = sum_j phi(q_i)^T phi(k_j) v_j / sum_j phi(q_i)^T phi(k_j)

The features phi are functions of scores Omega x' and |x'|^2, x' = x / K^(1/4)
(Choromanski et al. 2021, 2009.14794):

    positive    exp(Omega x' - |x'|^2 / 2)
    hyperbolic  the same of Omega and of -Omega, beside each other
    relu        max(Omega x', 0) + 1e-3

Exponentials never overflow, by factors that cancel and send no gradient.
`attend` has one for each query and for the keys one for each feature, so that
no denominator is below 1. It makes the features of a chunk of tokens at a time,
twice for the gradient, so features of all tokens are never stored: time
T M (K + V), memory (T + M) (K + V).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import chunked, one_by_one, softmax
from effformer.attention.primitives.softmax import FLOOR, MASKED
from effformer.shapes import Array

FEATURES = ('positive', 'hyperbolic', 'relu')
# Added to the features 'relu', which else might all be 0.
RELU_EPSILON = 1e-3
# Sums of weights from here on count as none.
TINY = 1e-30


class Rule(NamedTuple):
  """Static.

  Attributes:
    features: 'positive', 'hyperbolic' or 'relu'.
    sizes: tokens in a chunk, of queries and of keys.
    in_turn: under `vmap`, heads and examples one after the other.
  """

  features: str
  sizes: tuple[int, int]
  in_turn: bool


def scores(x_TK: Array, omega_MK: Array, features: str) -> Array:
  """What the features are functions of, float32: exponents, or Omega x'."""
  x_TK = x_TK.astype(jnp.float32) * x_TK.shape[-1] ** -0.25
  scores_TM = x_TK @ omega_MK.T
  if features == 'relu':
    return scores_TM
  if features == 'hyperbolic':
    scores_TM = jnp.concatenate([scores_TM, -scores_TM], axis=-1)
  return scores_TM - 0.5 * (x_TK**2).sum(-1, keepdims=True)


def or_masked(scores_SM: Array, segment_S: Array) -> Array:
  """Scores of keys, which have no weight where they are padding."""
  return jnp.where(segment_S[:, None] > 0, scores_SM, MASKED)


def of_queries(scores_TM: Array, features: str) -> Array:
  """phi of queries, up to a factor for each of them."""
  if features == 'relu':
    return _relu(scores_TM)
  return _exp_below(scores_TM, scores_TM.max(-1, keepdims=True))


def of_keys(scores_SM: Array, top: Array | float, features: str) -> Array:
  """phi of keys, those to be exponentiated divided by exp(top)."""
  if features == 'relu':
    return _relu(scores_SM)
  return _exp_below(scores_SM, top)


def with_ones(v_SV: Array) -> Array:
  """Beside the values a column whose sum is the denominator; float32."""
  return jnp.pad(
    v_SV.astype(jnp.float32), ((0, 0), (0, 1)), constant_values=1.0
  )


def ratio(sums_TV: Array) -> Array:
  """o_TV from the sums of [v, 1]; 0 where there is no weight."""
  is_live_T1 = sums_TV[:, -1:] > TINY
  weight_T1 = jnp.where(is_live_T1, sums_TV[:, -1:], 1.0)
  # The gradient of a / b has b^2, which would underflow.
  scale_T1 = jax.lax.stop_gradient(1.0 / weight_T1)
  o_TV = (sums_TV[:, :-1] * scale_T1) / (weight_T1 * scale_T1)
  return jnp.where(is_live_T1, o_TV, 0.0)


def attend(
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  segment_S: Array,
  omega_MK: Array,
  *,
  features: str,
  rows: int,
) -> Array:
  """o_TV, float32, of every query to all keys that are no padding.

  Args:
    q_TK, k_SK, v_SV: any floating type.
    segment_S: int32, of the keys; 0 is padding.
    omega_MK: Omega, float32; no gradient goes to it.
    features: see the module.
    rows: under `vmap` over so many, chunks are smaller.
  """
  lengths = q_TK.shape[0], k_SK.shape[0]
  num_features = omega_MK.shape[0] * (1 + (features == 'hyperbolic'))
  in_turn = one_by_one.is_faster(min(lengths), num_features)
  most = max(one_by_one.numbers(rows, in_turn) // num_features, 64)
  sizes = tuple(softmax.even_size(length, most) for length in lengths)
  rule = Rule(features, sizes, in_turn)
  return _attend(rule, q_TK, k_SK, v_SV, segment_S, omega_MK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule, *inputs):
  return _attend_forward(rule, *inputs)[0]


def _attend_forward(rule, *inputs):
  forward = functools.partial(_forward, rule)
  o_TV, *saved = one_by_one.rows(forward, rule.in_turn)(*inputs)
  return o_TV, (inputs, o_TV, *saved)


def _forward(rule, q_TK, k_SK, v_SV, segment_S, omega_MK):
  """o_TV; the denominators, sums over the keys and their tops."""

  def add(carry, chunk):
    _, k_CK, v_CV, segment_C = chunk
    top_1M, sums_MV = carry
    scores_CM = or_masked(scores(k_CK, omega_MK, rule.features), segment_C)
    new_top_1M = top_1M
    if rule.features != 'relu':
      new_top_1M = jnp.maximum(top_1M, scores_CM.max(0, keepdims=True))
      sums_MV *= jnp.exp(top_1M - new_top_1M).T
    k_CM = of_keys(scores_CM, new_top_1M, rule.features)
    return (new_top_1M, sums_MV + k_CM.T @ with_ones(v_CV)), None

  num_features = omega_MK.shape[0] * (1 + (rule.features == 'hyperbolic'))
  start = (
    jnp.full((1, num_features), FLOOR, jnp.float32),
    jnp.zeros((num_features, v_SV.shape[-1] + 1), jnp.float32),
  )
  queries, keys = _chunks(rule, (q_TK,), (k_SK, v_SV, segment_S))
  (top_1M, sums_MV), _ = chunked.scan(add, start, keys)
  # Without a key there is nothing to be above.
  top_1M = jnp.where(top_1M > FLOOR, top_1M, 0.0)

  def weigh(_, chunk):
    sums_CV = _query_features(rule, chunk[1], omega_MK, top_1M) @ sums_MV
    return None, (ratio(sums_CV), sums_CV[:, -1])

  o_TV, weight_T = (
    _joined(x, q_TK) for x in chunked.scan(weigh, None, queries)[1]
  )
  return o_TV, weight_T, sums_MV, top_1M


def _query_features(rule, q_CK, omega_MK, top_1M):
  scores_CM = scores(q_CK, omega_MK, rule.features)
  if rule.features != 'relu':
    scores_CM += top_1M
  return of_queries(scores_CM, rule.features)


def _attend_backward(rule, saved, do_TV):
  inputs, *results = saved
  backward = functools.partial(_backward, rule)
  gradients = one_by_one.rows(backward, rule.in_turn)(*inputs, *results, do_TV)
  gradients = jax.tree.map(
    lambda gradient, x: gradient.astype(x.dtype), gradients, inputs[:3]
  )
  return *gradients, None, None


def _backward(
  rule, q_TK, k_SK, v_SV, segment_S, omega_MK, o_TV, weight_T, sums_MV, top_1M,
  do_TV,
):  # fmt: skip
  # Of the ratio: d sums = [do, -<do, o>] / denominator.
  is_live_T1 = weight_T[:, None] > TINY
  dsums_TV = jnp.concatenate(
    [do_TV, -(do_TV * o_TV).sum(-1, keepdims=True)], axis=-1
  ) / jnp.where(is_live_T1, weight_T[:, None], 1.0)
  dsums_TV = jnp.where(is_live_T1, dsums_TV, 0.0)
  queries, keys = _chunks(rule, (q_TK, dsums_TV), (k_SK, v_SV, segment_S))

  def query_step(dsums_MV, chunk):
    _, q_CK, dsums_CV = chunk

    def weigh(q_CK, sums_MV):
      return _query_features(rule, q_CK, omega_MK, top_1M) @ sums_MV

    dq_CK, part_MV = jax.vjp(weigh, q_CK, sums_MV)[1](dsums_CV)
    return dsums_MV + part_MV, dq_CK

  dsums_MV, dq_NCK = chunked.scan(query_step, jnp.zeros_like(sums_MV), queries)

  def key_step(_, chunk):
    _, k_CK, v_CV, segment_C = chunk

    def add(k_CK, v_CV):
      scores_CM = or_masked(scores(k_CK, omega_MK, rule.features), segment_C)
      return of_keys(scores_CM, top_1M, rule.features).T @ with_ones(v_CV)

    return None, jax.vjp(add, k_CK, v_CV)[1](dsums_MV)

  dk_NCK, dv_NCV = chunked.scan(key_step, None, keys)[1]
  return _joined(dq_NCK, q_TK), _joined(dk_NCK, k_SK), _joined(dv_NCV, v_SV)


_attend.defvjp(_attend_forward, _attend_backward)


def _chunks(rule, of_queries, of_keys):
  """Chunks of both, zero padded; zeros are padding in a segment array too."""
  return (
    softmax.in_blocks(rule.sizes[0], *of_queries),
    softmax.in_blocks(rule.sizes[1], *of_keys),
  )


def _joined(x_NCK, like_TK):
  return x_NCK.reshape(-1, *x_NCK.shape[2:])[: like_TK.shape[0]]


def _exp_below(x_TM, top):
  return jnp.exp(x_TM - jax.lax.stop_gradient(top))


def _relu(x_TM):
  """For keys of padding 0: phi(0) is not."""
  return jnp.where(x_TM > FLOOR, jnp.maximum(x_TM, 0.0) + RELU_EPSILON, 0.0)
