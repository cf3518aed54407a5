"""Softmax attention over all keys, tile by tile: memory T + S.

A loop over blocks of queries, in it one over blocks of keys that carries the
running maximum, sum of weights and sum of values (Rabe and Staats 2021,
2112.05682). The backward pass makes P again from the logsumexp (Dao et al.
2022, 2205.14135). Cost: time T S (K + V).

The dropout mask is a function of the key and of the numbers of the two blocks;
the masks of two block sizes differ.
"""

import functools
import math

import jax
import jax.numpy as jnp

from effformer.attention.primitives import softmax
from effformer.attention.primitives.softmax import FLOOR, Pattern, Sites
from effformer.shapes import Array


def attend(
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None = None,
  bias: Array | None = None,
  *,
  pattern: Pattern = softmax.EVERYTHING,
  block: int = 256,
) -> tuple[Array, Array]:
  """`softmax.tile` in tiles: forward and backward hold O(T + S) numbers.

  Args:
    q_TK, k_SK, v_SV, where, rng, bias, pattern: as there.
    block: tokens, side of a tile of block x block logits; with fewer queries
      than that there are more keys in a tile, and the reverse. Need not divide
      the lengths. See `side`.

  Returns:
    o_TV and lse_T, float32. A row without admissible keys has 0 and -inf.
  """
  num_queries, num_keys = q_TK.shape[0], k_SK.shape[0]
  size_T = softmax.even_size(
    num_queries, max(block, block**2 // max(num_keys, 1))
  )
  size_S = softmax.even_size(
    num_keys, max(block, block**2 // max(num_queries, 1))
  )
  q_NCK, *own = softmax.in_blocks(
    size_T, q_TK, where.segment_T, where.index_T, where.position_T
  )
  k_NCK, v_NCV, *other = softmax.in_blocks(
    size_S, k_SK, v_SV, where.segment_S, where.index_S, where.position_S
  )
  blocks = Sites(own[0], other[0], own[1], other[1], own[2], other[2])
  o_NCV, lse_NC = _attend(pattern, q_NCK, k_NCK, v_NCV, blocks, rng, bias)
  o_TV = o_NCV.reshape(-1, o_NCV.shape[-1])[:num_queries]
  return o_TV, lse_NC.reshape(-1)[:num_queries]


def side(rows: int) -> int:
  """A block length for `attend` under `vmap` over so many rows.

  All rows work on their tiles together, so the more rows, the smaller the
  tile, for the numbers in work to stay in cache.
  """
  length = math.isqrt(softmax.TILE_NUMBERS // max(rows, 1))
  return min(max(1 << max(length.bit_length() - 1, 0), 64), 256)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(pattern, q_NCK, k_NCK, v_NCV, where, rng, bias):
  """Attention of blocks of queries over blocks of keys -> o_NCV, lse_NC."""
  can_skip = pattern.causal and k_NCK.shape[0] > 1

  def query_step(_, query):
    number, q_TK, *own = query

    def key_step(carry, key):
      other, k_SK, v_SV, *theirs = key
      here = _here(own, theirs)

      def add(carry):
        top_T1, total_T1, sum_TV = carry
        logits_TS = softmax.logits(q_TK, k_SK, here, pattern, bias)
        new_top_T1 = jnp.maximum(top_T1, logits_TS.max(-1, keepdims=True))
        fade_T1 = jnp.exp(top_T1 - new_top_T1)
        weights_TS = jnp.exp(logits_TS - new_top_T1)
        total_T1 = total_T1 * fade_T1 + weights_TS.sum(-1, keepdims=True)
        if pattern.dropout:
          weights_TS *= softmax.survivors(
            _fold(rng, number, other), weights_TS.shape, pattern.dropout
          )
        part_TV = softmax.product(
          'ts,sv->tv', weights_TS.astype(v_SV.dtype), v_SV
        )
        return new_top_T1, total_T1, sum_TV * fade_T1 + part_TV

      return _unless_apart(here, can_skip, add, carry), None

    num_rows = q_TK.shape[0]
    start = (
      jnp.full((num_rows, 1), FLOOR, jnp.float32),
      jnp.zeros((num_rows, 1), jnp.float32),
      jnp.zeros((num_rows, v_NCV.shape[-1]), jnp.float32),
    )
    keys = (k_NCK, v_NCV, *_of_keys(where))
    (top_T1, total_T1, sum_TV), _ = _scan(key_step, start, keys)
    divisor_T1 = jnp.where(total_T1 > 0, total_T1, 1.0)
    lse_T1 = jnp.where(total_T1 > 0, top_T1 + jnp.log(divisor_T1), -jnp.inf)
    return None, (sum_TV / divisor_T1, lse_T1[:, 0])

  return _scan(query_step, None, (q_NCK, *_of_queries(where)))[1]


def _attend_forward(pattern, q_NCK, k_NCK, v_NCV, where, rng, bias):
  o_NCV, lse_NC = _attend(pattern, q_NCK, k_NCK, v_NCV, where, rng, bias)
  return (o_NCV, lse_NC), (q_NCK, k_NCK, v_NCV, where, rng, bias, o_NCV, lse_NC)


def _attend_backward(pattern, saved, cotangents):
  """A loop over blocks of keys, in it one over blocks of queries."""
  q_NCK, k_NCK, v_NCV, where, rng, bias, o_NCV, lse_NC = saved
  row_N = softmax.row(q_NCK, o_NCV, lse_NC, *cotangents, v_NCV.dtype)
  can_skip = pattern.causal and k_NCK.shape[0] > 1

  def key_step(carry, key):
    other, k_SK, v_SV, *theirs = key
    dq_NCK, dbias = carry

    def query_step(carry, query):
      number, row, dq_TK, *own = query
      here = _here(own, theirs)

      def add(carry):
        dq_TK, *sums = carry
        here_rng = _fold(rng, number, other) if pattern.dropout else None
        parts = softmax.tile_gradient(
          row, k_SK, v_SV, here, here_rng, bias, pattern
        )
        return jax.tree.map(jnp.add, (dq_TK, *sums), parts)

      dq_TK, *sums = _unless_apart(here, can_skip, add, (dq_TK, *carry))
      return tuple(sums), dq_TK

    zeros = tuple(jnp.zeros(a.shape, jnp.float32) for a in (k_SK, v_SV))
    queries = (row_N, dq_NCK, *_of_queries(where))
    (dk_SK, dv_SV, dbias), dq_NCK = _scan(query_step, (*zeros, dbias), queries)
    return (dq_NCK, dbias), (dk_SK, dv_SV)

  keys = (k_NCK, v_NCV, *_of_keys(where))
  start = (
    jnp.zeros(q_NCK.shape, jnp.float32),
    jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bias),
  )
  (dq_NCK, dbias), (dk_NCK, dv_NCV) = _scan(key_step, start, keys)
  gradients = jax.tree.map(
    lambda gradient, x: gradient.astype(x.dtype),
    (dq_NCK, dk_NCK, dv_NCV, dbias),
    (q_NCK, k_NCK, v_NCV, bias),
  )
  return *gradients[:3], None, None, gradients[3]


_attend.defvjp(_attend_forward, _attend_backward)


def _of_queries(where):
  return where.segment_T, where.index_T, where.position_T


def _of_keys(where):
  return where.segment_S, where.index_S, where.position_S


def _here(own, theirs):
  pairs = zip(own, theirs, strict=True)
  return Sites(*(site for pair in pairs for site in pair))


def _fold(rng, number, other):
  return jax.random.fold_in(jax.random.fold_in(rng, number), other)


def _unless_apart(where, can_skip, run, carry):
  """`run(carry)`, or `carry` if all keys of the tile are in the future."""
  if not can_skip:
    return run(carry)
  is_apart = where.index_S.min() > where.index_T.max()
  return jax.lax.cond(is_apart, lambda carry: carry, run, carry)


def _scan(step, carry, blocks):
  """`lax.scan` over numbered blocks; a single block needs no loop."""
  num_blocks = jax.tree.leaves(blocks)[0].shape[0]
  numbered = (jnp.arange(num_blocks), *blocks)
  if num_blocks > 1:
    return jax.lax.scan(step, carry, numbered)
  carry, result = step(carry, jax.tree.map(lambda x: x[0], numbered))
  return carry, jax.tree.map(lambda x: x[None], result)
