"""Softmax attention on one head of one example: dense, and linear in memory.

    S_ij = <q_i, k_j> / sqrt(K)     P = softmax over admissible j     O = P V
    LSE_i = log sum_j exp(S_ij)

Sources: Vaswani et al. 2017 (1706.03762); the form in blocks, Rabe and Staats
2021 (2112.05682); the backward pass from O and LSE, Dao et al. 2022
(2205.14135). Both forms return `(O, LSE)`, since results over disjoint sets of
keys can then be merged.

Key j is admissible for query i if their segments are equal and not 0, and
their indices satisfy the `Pattern`. The mask of a tile is made from these
vectors where the tile is, never for all pairs at once. A query without
admissible keys returns 0, LSE -inf, and sends no gradient.

Cost: time T S (K + V). Memory: dense T S, chunked T + S.

Logits and sums are float32 for every input type; products take the input
type. Dropout acts on P; its mask is a function of the key and of the numbers of
the two blocks, so that the backward pass makes the same one again. The masks of
two forms, or of two block sizes, differ.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.shapes import Array

# Finite, so that no inf - inf arises. A maximum is never taken below FLOOR, so
# exp(MASKED - maximum) is 0 even where every key of a row is masked.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
FLOOR = 0.5 * MASKED

# Logits that are in work together, see `tile_side`.
TILE_NUMBERS = 1 << 19


class Pattern(NamedTuple):
  """Which pairs of indices i (query), j (key) are admissible; static.

  Attributes:
    causal: j <= i.
    window: tokens; |i - j| < window. 0 is no limit.
    dropout: probability that an entry of P becomes 0.
  """

  causal: bool = False
  window: int = 0
  dropout: float = 0.0


EVERYTHING = Pattern()


class Sites(NamedTuple):
  """Where queries and keys stand: segments (0 is padding) and indices."""

  segment_T: Array
  segment_S: Array
  index_T: Array
  index_S: Array


def sites(segment_T: Array, segment_S: Array) -> Sites:
  """Sites of queries and keys that both start at index 0."""
  index_T, index_S = (
    jnp.arange(segment.shape[0], dtype=jnp.int32)
    for segment in (segment_T, segment_S)
  )
  return Sites(segment_T, segment_S, index_T, index_S)


def admissible(where: Sites, pattern: Pattern) -> Array:
  """bool [T, S], true where the query may see the key."""
  # Padding among the queries has an id that no key has.
  segment_T = jnp.where(where.segment_T > 0, where.segment_T, -1)
  keep_TS = segment_T[:, None] == where.segment_S[None, :]
  ahead_TS = where.index_S[None, :] - where.index_T[:, None]
  if pattern.causal:
    keep_TS &= ahead_TS <= 0
  if pattern.window:
    keep_TS &= ahead_TS > -pattern.window
    if not pattern.causal:
      keep_TS &= ahead_TS < pattern.window
  return keep_TS


def dense(
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None = None,
  *,
  pattern: Pattern = EVERYTHING,
) -> tuple[Array, Array]:
  """The definition, with all logits at once. Arguments as in `chunked`."""
  logits_TS = _logits(q_TK, k_SK, where, pattern)
  top_T1 = jnp.maximum(logits_TS.max(-1, keepdims=True), FLOOR)
  top_T1 = jax.lax.stop_gradient(top_T1)
  weights_TS = jnp.exp(logits_TS - top_T1)
  total_T1 = weights_TS.sum(-1, keepdims=True)
  # Rows without keys divide by one, so that the untaken branch is finite.
  divisor_T1 = jnp.where(total_T1 > 0, total_T1, 1.0)
  attn_TS = weights_TS / divisor_T1
  if pattern.dropout:
    attn_TS *= _survivors(rng, 0, 0, attn_TS.shape, pattern.dropout)
  o_TV = _product('ts,sv->tv', attn_TS.astype(v_SV.dtype), v_SV)
  lse_T1 = jnp.where(total_T1 > 0, top_T1 + jnp.log(divisor_T1), -jnp.inf)
  return o_TV, lse_T1[:, 0]


def chunked(
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None = None,
  *,
  pattern: Pattern = EVERYTHING,
  block: int = 256,
) -> tuple[Array, Array]:
  """The same in tiles: forward and backward hold O(T + S) numbers.

  Args:
    q_TK: queries, any floating type.
    k_SK: keys.
    v_SV: values.
    where: segments and indices. Index arrays need not be in order.
    rng: key of the dropout; needed when `pattern.dropout` is not 0.
    pattern: admissible pairs and dropout.
    block: tokens, side of a tile of block x block logits; with fewer queries
      than that there are more keys in a tile, and the reverse. Need not divide
      the lengths. See `tile_side`.

  Returns:
    o_TV and lse_T, float32. A row without admissible keys has 0 and -inf.
  """
  num_queries, num_keys = q_TK.shape[0], k_SK.shape[0]
  q_NCK, segment_NC, index_NC = _in_blocks(
    max(block, block**2 // max(num_keys, 1)),
    q_TK,
    where.segment_T,
    where.index_T,
  )
  k_NCK, v_NCV, key_segment_NC, key_index_NC = _in_blocks(
    max(block, block**2 // max(num_queries, 1)),
    k_SK,
    v_SV,
    where.segment_S,
    where.index_S,
  )
  blocks = Sites(segment_NC, key_segment_NC, index_NC, key_index_NC)
  o_NCV, lse_NC = _attend(pattern, q_NCK, k_NCK, v_NCV, blocks, rng)
  o_TV = o_NCV.reshape(-1, o_NCV.shape[-1])[:num_queries]
  return o_TV, lse_NC.reshape(-1)[:num_queries]


def tile_side(rows: int) -> int:
  """A block length for `chunked` under `vmap` over so many rows.

  All rows work on their tiles together, so the more rows, the smaller the
  tile, for the numbers in work to stay in cache (measured on CPU: 2^19).
  """
  side = math.isqrt(TILE_NUMBERS // max(rows, 1))
  return min(max(1 << max(side.bit_length() - 1, 0), 64), 256)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(pattern, q_NCK, k_NCK, v_NCV, where, rng):
  """Attention of blocks of queries over blocks of keys -> o_NCV, lse_NC."""
  can_skip = pattern.causal and k_NCK.shape[0] > 1

  def query_step(_, query):
    number, q_TK, segment_T, index_T = query

    def key_step(carry, key):
      other, k_SK, v_SV, segment_S, index_S = key
      here = Sites(segment_T, segment_S, index_T, index_S)

      def merge(carry):
        top_T1, total_T1, sum_TV = carry
        logits_TS = _logits(q_TK, k_SK, here, pattern)
        new_top_T1 = jnp.maximum(top_T1, logits_TS.max(-1, keepdims=True))
        fade_T1 = jnp.exp(top_T1 - new_top_T1)
        weights_TS = jnp.exp(logits_TS - new_top_T1)
        total_T1 = total_T1 * fade_T1 + weights_TS.sum(-1, keepdims=True)
        if pattern.dropout:
          weights_TS *= _survivors(
            rng, number, other, weights_TS.shape, pattern.dropout
          )
        part_TV = _product('ts,sv->tv', weights_TS.astype(v_SV.dtype), v_SV)
        return new_top_T1, total_T1, sum_TV * fade_T1 + part_TV

      return _unless_apart(here, can_skip, merge, carry), None

    num_rows = q_TK.shape[0]
    start = (
      jnp.full((num_rows, 1), FLOOR, jnp.float32),
      jnp.zeros((num_rows, 1), jnp.float32),
      jnp.zeros((num_rows, v_NCV.shape[-1]), jnp.float32),
    )
    keys = (k_NCK, v_NCV, where.segment_S, where.index_S)
    (top_T1, total_T1, sum_TV), _ = _scan(key_step, start, keys)
    divisor_T1 = jnp.where(total_T1 > 0, total_T1, 1.0)
    lse_T1 = jnp.where(total_T1 > 0, top_T1 + jnp.log(divisor_T1), -jnp.inf)
    return None, (sum_TV / divisor_T1, lse_T1[:, 0])

  queries = (q_NCK, where.segment_T, where.index_T)
  return _scan(query_step, None, queries)[1]


def _attend_forward(pattern, q_NCK, k_NCK, v_NCV, where, rng):
  o_NCV, lse_NC = _attend(pattern, q_NCK, k_NCK, v_NCV, where, rng)
  return (o_NCV, lse_NC), (q_NCK, k_NCK, v_NCV, where, rng, o_NCV, lse_NC)


def _attend_backward(pattern, saved, cotangents):
  """Gradients from O and LSE; P is made again, tile by tile.

    P = exp(S - LSE)   dS = P (dO V^T - <dO, O> + dLSE)
    dQ = dS K          dK = dS^T Q          dV = P^T dO

  Tiles are laid out [S, T], so that all products but the one for dQ contract
  the last axis of the tile, which is three times faster on XLA:CPU.
  """
  q_NCK, k_NCK, v_NCV, where, rng, o_NCV, lse_NC = saved
  do_NCV, dlse_NC = cotangents
  do_NCV = do_NCV.astype(jnp.float32)
  has_keys_NC = jnp.isfinite(lse_NC)
  delta_NC = (do_NCV * o_NCV).sum(-1) - jnp.where(has_keys_NC, dlse_NC, 0.0)
  # Rows without keys: P = exp(MASKED - 0) = 0.
  lse_NC = jnp.where(has_keys_NC, lse_NC, 0.0)
  do_NCV = do_NCV.astype(v_NCV.dtype)
  scale = 1.0 / math.sqrt(q_NCK.shape[-1])
  can_skip = pattern.causal and k_NCK.shape[0] > 1

  def key_step(dq_NCK, key):
    other, k_SK, v_SV, segment_S, index_S = key

    def query_step(carry, query):
      number, q_TK, do_TV, lse_T, delta_T, segment_T, index_T, dq_TK = query
      here = Sites(segment_T, segment_S, index_T, index_S)

      def gather(carry):
        dq_TK, dk_SK, dv_SV = carry
        logits_ST = _logits(q_TK, k_SK, here, pattern, keys_first=True)
        attn_ST = jnp.exp(logits_ST - lse_T[None, :])
        dattn_ST = _product('sv,tv->st', v_SV, do_TV)
        kept_ST = attn_ST
        if pattern.dropout:
          survivors_ST = _survivors(
            rng, number, other, attn_ST.shape[::-1], pattern.dropout
          ).T
          dattn_ST *= survivors_ST
          kept_ST = attn_ST * survivors_ST
        dv_SV += _product('st,tv->sv', kept_ST.astype(do_TV.dtype), do_TV)
        dlogits_ST = attn_ST * (dattn_ST - delta_T[None, :]) * scale
        dlogits_ST = dlogits_ST.astype(q_TK.dtype)
        dk_SK += _product('st,tk->sk', dlogits_ST, q_TK)
        dlogits_TS = jax.lax.optimization_barrier(dlogits_ST.T)
        dq_TK += _product('ts,sk->tk', dlogits_TS, k_SK)
        return dq_TK, dk_SK, dv_SV

      dq_TK, *carry = _unless_apart(here, can_skip, gather, (dq_TK, *carry))
      return tuple(carry), dq_TK

    zeros = tuple(jnp.zeros(a.shape, jnp.float32) for a in (k_SK, v_SV))
    queries = (q_NCK, do_NCV, lse_NC, delta_NC)
    queries += (where.segment_T, where.index_T, dq_NCK)
    (dk_SK, dv_SV), dq_NCK = _scan(query_step, zeros, queries)
    return dq_NCK, (dk_SK, dv_SV)

  keys = (k_NCK, v_NCV, where.segment_S, where.index_S)
  zeros_NCK = jnp.zeros(q_NCK.shape, jnp.float32)
  dq_NCK, (dk_NCK, dv_NCV) = _scan(key_step, zeros_NCK, keys)
  gradients = zip((dq_NCK, dk_NCK, dv_NCV), (q_NCK, k_NCK, v_NCV), strict=True)
  return *(d.astype(x.dtype) for d, x in gradients), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _logits(q_TK, k_SK, where, pattern, keys_first=False):
  """Scaled logits [T, S], or [S, T], float32, MASKED where inadmissible."""
  keep = admissible(where, pattern)
  if keys_first:
    keep = keep.T
    logits = _product('sk,tk->st', k_SK, q_TK)
  else:
    logits = _product('tk,sk->ts', q_TK, k_SK)
  return jnp.where(keep, logits / math.sqrt(q_TK.shape[-1]), MASKED)


def _product(subscripts, a, b):
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _unless_apart(where, can_skip, run, carry):
  """`run(carry)`, or `carry` if all keys of the tile are in the future."""
  if not can_skip:
    return run(carry)
  is_apart = where.index_S.min() > where.index_T.max()
  return jax.lax.cond(is_apart, lambda carry: carry, run, carry)


def _survivors(rng, number, other, shape, rate):
  """Dropout mask of the tile (number, other): 0, or 1 / (1 - rate).

  Random bits are the larger part of the time, so each 32 of them decide for
  two entries; the rate is met to 1 / 65,536, and the scale fits it exactly.
  """
  rng = jax.random.fold_in(jax.random.fold_in(rng, number), other)
  half = -(-shape[1] // 2)
  bits = jax.random.bits(rng, (shape[0], half), jnp.uint32)
  bits = jnp.concatenate([bits >> 16, bits & 0xFFFF], axis=1)[:, : shape[1]]
  threshold = min(round(rate * 65536), 65535)
  return jnp.where(bits >= threshold, 65536 / (65536 - threshold), 0.0)


def _in_blocks(block, *arrays):
  """Splits the first axis into equal blocks of at most `block`, zero padded.

  Zeros are padding in a segment array too.
  """
  length = arrays[0].shape[0]
  num_blocks = max(-(-length // block), 1)
  size = -(-length // num_blocks)
  padding = num_blocks * size - length

  def split(x):
    x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(num_blocks, size, *x.shape[1:])

  return tuple(split(x) for x in arrays)


def _scan(step, carry, blocks):
  """`lax.scan` over numbered blocks; a single block needs no loop."""
  num_blocks = jax.tree.leaves(blocks)[0].shape[0]
  numbered = (jnp.arange(num_blocks), *blocks)
  if num_blocks > 1:
    return jax.lax.scan(step, carry, numbered)
  carry, result = step(carry, jax.tree.map(lambda x: x[0], numbered))
  return carry, jax.tree.map(lambda x: x[None], result)
