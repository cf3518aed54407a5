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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import one_by_one, softmax
from effformer.attention.primitives.softmax import FLOOR, Pattern, Sites
from effformer.shapes import Array

# Above any index.
LATEST = jnp.iinfo(jnp.int32).max


class Tiles(NamedTuple):
  """How a call is cut; static.

  Attributes:
    forward: queries and keys in a tile.
    backward: the same, of the backward pass.
    in_turn: under `vmap`, heads and examples one after the other.
  """

  forward: tuple[int, int]
  backward: tuple[int, int]
  in_turn: bool = False


def attend(
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None = None,
  bias: Array | None = None,
  *,
  pattern: Pattern = softmax.EVERYTHING,
  block: int = 0,
  rows: int = 1,
) -> tuple[Array, Array]:
  """`softmax.tile` in tiles: forward and backward hold O(T + S) numbers.

  Args:
    q_TK, k_SK, v_SV, where, rng, bias, pattern: as there.
    block: tokens, side of a tile of block x block logits; with fewer queries
      than that there are more keys in a tile, and the reverse. Need not divide
      the lengths. 0 chooses it for speed, see `choose`.
    rows: heads of all examples, over which this runs under `vmap`.

  Returns:
    o_TV and lse_T, float32. A row without admissible keys has 0 and -inf.
  """
  lengths = q_TK.shape[0], k_SK.shape[0]
  tiles = square(block, *lengths)
  if not block:
    tiles = choose(*lengths, rows, pattern)
  # A custom gradient takes no constants of NumPy, but sums of them.
  where = jax.tree.map(lambda x: x + jnp.int32(0), where)
  return _attend(pattern, tiles, q_TK, k_SK, v_SV, where, rng, bias)


def side(rows: int) -> int:
  """A block length under `vmap` over so many rows.

  All rows work on their tiles together, so the more rows, the smaller the
  tile, for the numbers in work to stay in cache.
  """
  length = math.isqrt(one_by_one.numbers(max(rows, 1)))
  return min(max(1 << max(length.bit_length() - 1, 0), 64), 256)


def choose(
  num_queries: int, num_keys: int, rows: int, pattern: Pattern
) -> Tiles:
  """The tiles that were fastest on a CPU; `side` elsewhere and for few tokens.

  A CPU is faster with large tiles of one head than with small ones of all. The
  backward pass likes few queries in a tile, which are its columns.
  """
  tiles = square(side(rows), num_queries, num_keys)
  if not one_by_one.is_faster(num_queries, num_keys):
    return tiles
  if pattern.dropout:
    # Its mask depends on the tile, and is to be the same on any device.
    return tiles._replace(in_turn=True)
  forward, backward = (512, 256), (128, 512)
  if pattern.causal:
    # Tall tiles waste more at the diagonal, which is less of a long input.
    forward = (512 if num_queries > 8000 else 256, 256)
    backward = (256, 256)
  return Tiles(
    *(_fit(tile, num_queries, num_keys) for tile in (forward, backward)),
    in_turn=True,
  )


def square(block: int, num_queries: int, num_keys: int) -> Tiles:
  """Tiles with sides of at most `block`, where the other side allows."""
  tile = _fit((max(block, 1),) * 2, num_queries, num_keys)
  return Tiles(tile, tile)


def _fit(tile, num_queries, num_keys):
  """With fewer queries than in a tile there are more keys, and the reverse."""
  numbers = tile[0] * tile[1]
  return (
    softmax.even_size(num_queries, max(tile[0], numbers // max(num_keys, 1))),
    softmax.even_size(num_keys, max(tile[1], numbers // max(num_queries, 1))),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(pattern, tiles, *inputs):
  """o_TV and lse_T from (q_TK, k_SK, v_SV, where, rng, bias)."""
  in_tiles = functools.partial(forward, pattern, tiles.forward)
  return one_by_one.rows(in_tiles, tiles.in_turn)(*inputs)


def forward(
  pattern: Pattern,
  tile: tuple[int, int],
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None,
  bias: Array | None,
) -> tuple[Array, Array]:
  """`attend` with such tiles and without a gradient of its own.

  A loop over blocks of queries, in it one over blocks of keys.
  """
  num_queries = q_TK.shape[0]
  queries, (k_NCK, v_NCV, *sites) = _cut(tile, (q_TK,), (k_SK, v_SV), where)
  can_skip = pattern.causal and k_NCK.shape[0] > 1

  def query_step(_, query):
    number, q_TK, *own = query

    def key_step(carry, key):
      other, *theirs = key
      here = _here(own, theirs)

      def add(carry):
        # Read here, so that a tile that is skipped reads nothing.
        k_SK, v_SV = k_NCK[other], v_NCV[other]
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
    (top_T1, total_T1, sum_TV), _ = scan(key_step, start, sites)
    divisor_T1 = jnp.where(total_T1 > 0, total_T1, 1.0)
    lse_T1 = jnp.where(total_T1 > 0, top_T1 + jnp.log(divisor_T1), -jnp.inf)
    return None, (sum_TV / divisor_T1, lse_T1[:, 0])

  o_NCV, lse_NC = scan(query_step, None, queries)[1]
  o_TV = o_NCV.reshape(-1, o_NCV.shape[-1])[:num_queries]
  return o_TV, lse_NC.reshape(-1)[:num_queries]


def _attend_forward(pattern, tiles, *inputs):
  outputs = _attend(pattern, tiles, *inputs)
  return outputs, (inputs, outputs)


def _attend_backward(pattern, tiles, saved, cotangents):
  (q_TK, k_SK, v_SV, where, rng, bias), (o_TV, lse_T) = saved
  row_T = softmax.row(q_TK, o_TV, lse_T, *cotangents, v_SV.dtype)
  in_tiles = functools.partial(gradient, pattern, tiles.backward)
  gradients = one_by_one.rows(in_tiles, tiles.in_turn)(
    row_T, k_SK, v_SV, where, rng, bias
  )
  gradients = jax.tree.map(
    lambda dx, x: dx.astype(x.dtype),
    gradients,
    (q_TK, k_SK, v_SV, bias),
  )
  return *gradients[:3], None, None, gradients[3]


def gradient(
  pattern: Pattern,
  tile: tuple[int, int],
  row_T: softmax.Row,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None,
  bias: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
  """dQ, dK, dV and the gradient of the bias, float32, from `softmax.row`.

  A loop over blocks of keys, in it one over blocks of queries.
  """
  num_queries, num_keys = row_T.q_TK.shape[0], k_SK.shape[0]
  (*rows, segments, indices, positions), keys = _cut(
    tile, row_T, (k_SK, v_SV), where
  )
  can_skip = pattern.causal and keys[0].shape[0] > 1

  def key_step(carry, key):
    other, k_SK, v_SV, *theirs = key
    dq_NCK, dbias = carry

    def query_step(carry, query):
      number, dq_TK, *own = query
      here = _here(own, theirs)

      def add(carry):
        row = softmax.Row(*(x[number] for x in rows))
        here_rng = _fold(rng, number, other) if pattern.dropout else None
        parts = softmax.tile_gradient(
          row, k_SK, v_SV, here, here_rng, bias, pattern
        )
        return jax.tree.map(jnp.add, carry, parts)

      dq_TK, *sums = _unless_apart(here, can_skip, add, (dq_TK, *carry))
      return tuple(sums), dq_TK

    zeros = tuple(jnp.zeros(a.shape, jnp.float32) for a in (k_SK, v_SV))
    (dk_SK, dv_SV, dbias), dq_NCK = scan(
      query_step, (*zeros, dbias), (dq_NCK, segments, indices, positions)
    )
    return (dq_NCK, dbias), (dk_SK, dv_SV)

  start = (
    jnp.zeros(rows[0].shape, jnp.float32),
    jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bias),
  )
  (dq_NCK, dbias), (dk_NCK, dv_NCV) = scan(key_step, start, keys)
  dq_TK, dk_SK, dv_SV = (
    x.reshape(-1, x.shape[-1])[:length]
    for x, length in (
      (dq_NCK, num_queries),
      (dk_NCK, num_keys),
      (dv_NCV, num_keys),
    )
  )
  return dq_TK, dk_SK, dv_SV, dbias


def _cut(tile, of_queries, of_keys, where):
  """Blocks of queries and of keys, each followed by where they stand."""
  queries = softmax.in_blocks(
    tile[0], *of_queries, where.segment_T, where.index_T, where.position_T
  )
  keys = softmax.in_blocks(
    tile[1], *of_keys, where.segment_S, where.index_S, where.position_S
  )
  return queries, keys


_attend.defvjp(_attend_forward, _attend_backward)


def _here(own, theirs):
  pairs = zip(own, theirs, strict=True)
  return Sites(*(site for pair in pairs for site in pair))


def _fold(rng, number, other):
  return jax.random.fold_in(jax.random.fold_in(rng, number), other)


def _unless_apart(where, can_skip, run, carry):
  """`run(carry)`, or `carry` if all keys of the tile are in the future."""
  if not can_skip:
    return run(carry)
  # Index 0 of what fills up the last block is no past.
  index_S = jnp.where(where.segment_S > 0, where.index_S, LATEST)
  is_apart = index_S.min() > where.index_T.max()
  return jax.lax.cond(is_apart, lambda carry: carry, run, carry)


def scan(step: Callable, carry: Any, blocks: Any) -> tuple[Any, Any]:
  """`lax.scan` over numbered blocks; a single block needs no loop."""
  num_blocks = jax.tree.leaves(blocks)[0].shape[0]
  numbered = (jnp.arange(num_blocks), *blocks)
  if num_blocks > 1:
    return jax.lax.scan(step, carry, numbered)
  carry, result = step(carry, jax.tree.map(lambda x: x[0], numbered))
  return carry, jax.tree.map(lambda x: x[None], result)
