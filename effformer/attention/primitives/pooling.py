"""Means of groups of tokens, on one head of one example."""

import jax.numpy as jnp

from effformer.attention.primitives import one_by_one, softmax
from effformer.shapes import Array


def means(x_TK: Array, segment_T: Array, rank: int) -> tuple[Array, Array]:
  """Means of M = `rank` groups of neighbours among the real tokens.

  Token i of n real ones is in group floor(i M / n): groups are as equal as can
  be, and neither the amount nor the content of padding matters. Cost: time
  T M K, memory T M.

  Returns:
    mean_MK, float32, 0 where empty; and `is_there`.
  """
  mean_MK = one_by_one.recomputed_rows(
    lambda x_TK, segment_T: _means(x_TK, segment_T, rank),
    x_TK, segment_T, one_by_one.is_faster(*x_TK.shape),
  )  # fmt: skip
  return mean_MK, is_there(segment_T, rank)


def is_there(segment_T: Array, rank: int) -> Array:
  """int32 [M], 1 where the group has a token, else 0."""
  first_M = -(-jnp.arange(rank + 1) * (segment_T > 0).sum() // rank)
  return (first_M[1:] > first_M[:-1]).astype(jnp.int32)


def _means(x_TK, segment_T, rank):
  keep_T = segment_T > 0
  count_T = jnp.cumsum(keep_T, dtype=jnp.int32)
  group_T = (count_T - 1) * rank // jnp.maximum(count_T[-1], 1)
  member_MT = (jnp.arange(rank)[:, None] == group_T[None]) & keep_T[None]
  size_M1 = member_MT.sum(-1, keepdims=True)
  x_TK = jnp.where(keep_T[:, None], x_TK, 0)
  sum_MK = softmax.product('mt,tk->mk', member_MT.astype(x_TK.dtype), x_TK)
  return sum_MK / jnp.maximum(size_M1, 1)
