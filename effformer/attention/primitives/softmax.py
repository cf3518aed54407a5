"""One tile of softmax attention, on one head of one example.

    S_ij = <q_i, k_j> / sqrt(K) + bias     P = softmax over admissible j
    O = P V                                LSE_i = log sum_j exp(S_ij)

A tile has all its logits at once (Vaswani et al. 2017, 1706.03762); `chunked`
and `blocks` go over many tiles. Everything returns `(O, LSE)`, so that results
over disjoint sets of keys can be merged, and gradients come from these two
(Dao et al. 2022, 2205.14135).

Key j is admissible for query i if their segments are equal and not 0, and
their indices satisfy the `Pattern`. The mask of a tile is made from these
vectors where the tile is, never for all pairs at once. A query without
admissible keys returns 0, LSE -inf, and sends no gradient.

Logits and sums are float32 for every input type; products take the input
type. Dropout acts on P; its mask is a function of the key, so that the backward
pass makes the same one again.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import positions
from effformer.shapes import Array

# Finite, so that no inf - inf arises. A maximum is never taken below FLOOR, so
# exp(MASKED - maximum) is 0 even where every key of a row is masked.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
FLOOR = 0.5 * MASKED


class Pattern(NamedTuple):
  """Which pairs of indices i (query), j (key) are admissible, and how; static.

  Attributes:
    causal: j <= i.
    window: tokens; |i - j| < window. 0 is no limit.
    apart: tokens; only keys outside of the query's block of so many. 0 is no
      limit.
    dropout: probability that an entry of P becomes 0.
    bias: of the logits, or None.
  """

  causal: bool = False
  window: int = 0
  apart: int = 0
  dropout: float = 0.0
  bias: positions.Rule | None = None


EVERYTHING = Pattern()


class Sites(NamedTuple):
  """Where queries and keys stand.

  Attributes:
    segment_T, segment_S: int32; 0 is padding.
    index_T, index_S: int32, in the row; what a `Pattern` reads.
    position_T, position_S: int32, in the segment; what a bias reads.
  """

  segment_T: Array
  segment_S: Array
  index_T: Array
  index_S: Array
  position_T: Array
  position_S: Array


def sites(
  segment_T: Array,
  segment_S: Array,
  position_T: Array | None = None,
  position_S: Array | None = None,
) -> Sites:
  """Sites of queries and keys that both start at index 0.

  Positions that are not given are the indices.
  """
  index_T, index_S = (
    jnp.arange(segment.shape[0], dtype=jnp.int32)
    for segment in (segment_T, segment_S)
  )
  position_T = index_T if position_T is None else position_T
  position_S = index_S if position_S is None else position_S
  return Sites(segment_T, segment_S, index_T, index_S, position_T, position_S)


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
  if pattern.apart:
    block_T, block_S = (
      index // pattern.apart for index in (where.index_T, where.index_S)
    )
    keep_TS &= block_T[:, None] != block_S[None, :]
  return keep_TS


def tile(
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None = None,
  bias: Array | None = None,
  *,
  pattern: Pattern = EVERYTHING,
) -> tuple[Array, Array]:
  """Attention with all logits at once: the definition.

  Args:
    q_TK: queries, any floating type.
    k_SK: keys.
    v_SV: values.
    where: segments, indices, positions. Indices need not be in order.
    rng: key of the dropout; needed when `pattern.dropout` is not 0.
    bias: weights of `pattern.bias`.
    pattern: admissible pairs, dropout, bias.

  Returns:
    o_TV and lse_T, float32. A row without admissible keys has 0 and -inf.
  """
  logits_TS = logits(q_TK, k_SK, where, pattern, bias)
  return weigh(logits_TS, v_SV, rng, pattern.dropout)


def weigh(
  logits_TS: Array, v_SV: Array, rng: Array | None = None, dropout: float = 0.0
) -> tuple[Array, Array]:
  """Softmax over logits that are MASKED where inadmissible, times values.

  Returns o_TV and lse_T as `tile` does.
  """
  top_T1 = jnp.maximum(logits_TS.max(-1, keepdims=True), FLOOR)
  top_T1 = jax.lax.stop_gradient(top_T1)
  weights_TS = jnp.exp(logits_TS - top_T1)
  total_T1 = weights_TS.sum(-1, keepdims=True)
  # Rows without keys divide by one, so that the untaken branch is finite.
  divisor_T1 = jnp.where(total_T1 > 0, total_T1, 1.0)
  attn_TS = weights_TS / divisor_T1
  if dropout:
    attn_TS *= survivors(rng, attn_TS.shape, dropout)
  o_TV = product('ts,sv->tv', attn_TS.astype(v_SV.dtype), v_SV)
  lse_T1 = jnp.where(total_T1 > 0, top_T1 + jnp.log(divisor_T1), -jnp.inf)
  return o_TV, lse_T1[:, 0]


class Row(NamedTuple):
  """What the gradient of a tile needs to know of its queries.

  Attributes:
    q_TK: queries.
    do_TV: cotangent of O, in the type of V.
    lse_T: float32 logsumexp over all keys, of all tiles.
    delta_T: float32, see `row`.
  """

  q_TK: Array
  do_TV: Array
  lse_T: Array
  delta_T: Array


def row(q_TK, o_TV, lse_T, do_TV, dlse_T, dtype) -> Row:
  """`Row` from outputs and cotangents, any number of leading axes."""
  do_TV = do_TV.astype(jnp.float32)
  has_keys_T = jnp.isfinite(lse_T)
  delta_T = (do_TV * o_TV).sum(-1) - jnp.where(has_keys_T, dlse_T, 0.0)
  # Rows without keys: P = exp(MASKED - 0) = 0.
  lse_T = jnp.where(has_keys_T, lse_T, 0.0)
  return Row(q_TK, do_TV.astype(dtype), lse_T, delta_T)


def tile_gradient(
  row: Row,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  rng: Array | None,
  bias: Array | None,
  pattern: Pattern,
) -> tuple[Array, Array, Array, Array | None]:
  """What one tile adds to dQ, dK, dV and to the gradient of the bias.

    P = exp(S - LSE)   dS = P (dO V^T - <dO, O> + dLSE)
    dQ = dS K          dK = dS^T Q          dV = P^T dO

  Laid out [S, T], and dQ as [K, T], so that without dropout and bias no tile is
  transposed; XLA:CPU would do that for dS K, in the time of two products.
  """
  logits_ST = logits(row.q_TK, k_SK, where, pattern, bias, keys_first=True)
  attn_ST = jnp.exp(logits_ST - row.lse_T[None, :])
  dattn_ST = product('sv,tv->st', v_SV, row.do_TV)
  kept_ST = attn_ST
  if pattern.dropout:
    survivors_ST = survivors(rng, attn_ST.shape[::-1], pattern.dropout).T
    dattn_ST *= survivors_ST
    kept_ST = attn_ST * survivors_ST
  dv_SV = product('st,tv->sv', kept_ST.astype(row.do_TV.dtype), row.do_TV)
  dlogits_ST = attn_ST * (dattn_ST - row.delta_T[None, :])
  dbias = None
  if pattern.bias is not None:
    dbias = positions.bias_gradient(
      pattern.bias, dlogits_ST.T, where.position_T, where.position_S
    )
  dlogits_ST *= 1.0 / math.sqrt(row.q_TK.shape[-1])
  dlogits_ST = dlogits_ST.astype(row.q_TK.dtype)
  dk_SK = product('st,tk->sk', dlogits_ST, row.q_TK)
  dq_KT = jax.lax.optimization_barrier(product('ks,st->kt', k_SK.T, dlogits_ST))
  return dq_KT.T, dk_SK, dv_SV, dbias


def merge(*parts: tuple[Array, Array]) -> tuple[Array, Array]:
  """(O, LSE) over the union of disjoint sets of keys.

  O = sum_n exp(LSE_n - LSE) O_n
  """
  weight_NT, lse_T = union(jnp.stack([lse_T for _, lse_T in parts]))
  o_TV = sum(
    weight_T[:, None] * part_TV
    for weight_T, (part_TV, _) in zip(weight_NT, parts, strict=True)
  )
  return o_TV, lse_T


def union(lse_NT: Array) -> tuple[Array, Array]:
  """Shares exp(LSE_n - LSE) of N sets of keys, and LSE of all together.

  LSE = log sum_n exp(LSE_n); a set without keys has -inf, and the share 0.
  """
  has_keys_NT = jnp.isfinite(lse_NT)
  finite_NT = jnp.where(has_keys_NT, lse_NT, FLOOR)
  top_T = jax.lax.stop_gradient(finite_NT.max(0))
  weight_NT = jnp.where(has_keys_NT, jnp.exp(finite_NT - top_T[None]), 0.0)
  total_T = weight_NT.sum(0)
  divisor_T = jnp.where(total_T > 0, total_T, 1.0)
  lse_T = jnp.where(total_T > 0, top_T + jnp.log(divisor_T), -jnp.inf)
  return weight_NT / divisor_T[None], lse_T


def logits(
  q_TK: Array,
  k_SK: Array,
  where: Sites,
  pattern: Pattern,
  bias: Any = None,
  keys_first: bool = False,
) -> Array:
  """Scaled logits [T, S], or [S, T], float32, MASKED where inadmissible."""

  def turn(x_TS):
    return x_TS.T if keys_first else x_TS

  if keys_first:
    result = product('sk,tk->st', k_SK, q_TK)
  else:
    result = product('tk,sk->ts', q_TK, k_SK)
  result = result / math.sqrt(q_TK.shape[-1])
  if pattern.bias is not None:
    result += turn(
      positions.bias(pattern.bias, bias, where.position_T, where.position_S)
    )
  return jnp.where(turn(admissible(where, pattern)), result, MASKED)


def product(subscripts: str, a: Array, b: Array) -> Array:
  """An einsum that adds in float32."""
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def survivors(rng: Array, shape: tuple[int, int], rate: float) -> Array:
  """Dropout mask of a tile: 0, or 1 / (1 - rate).

  Random bits are the larger part of the time, so each 32 of them decide for
  two entries; the rate is met to 1 / 65,536, and the scale fits it exactly.
  """
  half = -(-shape[1] // 2)
  bits = jax.random.bits(rng, (shape[0], half), jnp.uint32)
  bits = jnp.concatenate([bits >> 16, bits & 0xFFFF], axis=1)[:, : shape[1]]
  threshold = min(round(rate * 65536), 65535)
  return jnp.where(bits >= threshold, 65536 / (65536 - threshold), 0.0)


def in_blocks(size: int, *arrays: Array) -> tuple[Array, ...]:
  """Splits the first axis into blocks of `size`, zero padded.

  Zeros are padding in a segment array too.
  """

  def split(x):
    num_blocks = max(-(-x.shape[0] // size), 1)
    padding = num_blocks * size - x.shape[0]
    x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(num_blocks, size, *x.shape[1:])

  return tuple(split(x) for x in arrays)


def even_size(length: int, most: int) -> int:
  """Size of equal blocks of at most `most`, with little padding."""
  return -(-length // max(-(-length // most), 1)) or 1
