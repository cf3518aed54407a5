"""The chunked linear recurrence, on one head of one example.

    S_i = Lambda_i S_{i-1} + k_i u_i^T,  S in R^{K x V}
    o_i = S_i^T q_i         (exclusive: o_i = (Lambda_i S_{i-1})^T q_i)

    Lambda_i = exp(g_i), g_i <= 0 one number a token, or one for each of K
    u_i = v_i                                   (sum)
    u_i = beta_i (v_i - (Lambda_i S_{i-1})^T k_i)    (delta rule)

over the tokens of a segment; each segment starts from S = 0. Without decay and
delta rule o_i is the sum of <q_i, k_j> v_j over the past.

Within a chunk of C tokens this is a few masked products: with G_ij the sum of g
over j < u <= i, and P = (q_i . k_j exp(G_ij))_ij,

    O = P U + exp(G_i) Q S
    sum:    U = V
    delta:  (I + A) U = beta (V - exp(G_i) K S),  A = beta K K^T exp(G), j < i

(Hua et al. 2022, 2202.10447; Yang et al. 2024, 2312.06635 for decay by channel,
2412.06464 for the gated delta rule). The state S goes from chunk to chunk by
`lax.scan`. The batch call and the continuation of a stream are the same
function, which takes and returns the state.

All exponents are sums of g over ranges of tokens, added up from their own terms
and never as a difference of two running sums, so none is positive and none
loses digits. Everything is float32: rounding errors of a sum over T tokens grow
with T.

Cost: time T K V + T C (K + V), with the delta rule T C^2 more; memory
T (K + V) + T K V / C. The backward pass makes the tiles again from the states.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import softmax, triangular
from effformer.shapes import Array

# Tokens of a part of a chunk, where decay differs by channel.
PART = 16


class Memory(NamedTuple):
  """State of the segment that is under way.

  Attributes:
    sum_KV: float32, S.
    segment: int32 scalar, id of that segment; 0 before the first token.
  """

  sum_KV: Array
  segment: Array


class Streams(NamedTuple):
  """What goes into the recurrence, all float32.

  Attributes:
    q_TK: what reads the state.
    k_TK: where it is written.
    v_TV: what is written.
    decay: g <= 0, [T] or [T, K]; None for no decay.
    beta_T: rate of the delta rule; None for a plain sum.
  """

  q_TK: Array
  k_TK: Array
  v_TV: Array
  decay: Array | None = None
  beta_T: Array | None = None


def empty(key_width: int, value_width: int) -> Memory:
  """The state before the first token."""
  return Memory(
    jnp.zeros((key_width, value_width), jnp.float32),
    jnp.zeros((), jnp.int32),
  )


def causal(
  streams: Streams,
  segment_T: Array,
  memory: Memory,
  *,
  chunk: int = 64,
  is_inclusive: bool = True,
) -> tuple[Array, Memory]:
  """Reads each token's past.

  Args:
    streams: float32 inputs.
    segment_T: int32, 0 is padding, which returns 0 and leaves the memory as
      it was. A segment does not come back after another one.
    memory: of all tokens before these.
    chunk: tokens, at most so many in a chunk; need not divide T.
    is_inclusive: False reads before the token itself is written.

  Returns:
    o_TV and the memory after these tokens.
  """
  leaves, structure = jax.tree.flatten(streams)

  def step(memory, segment_C, *leaves):
    streams = jax.tree.unflatten(structure, leaves)
    return one_chunk(memory, streams, segment_C, is_inclusive)

  part = PART if streams.decay is not None and streams.decay.ndim == 2 else 1
  return in_chunks(step, memory, segment_T, *leaves, chunk=chunk, part=part)


def in_chunks(
  step: Callable, state: Any, *inputs: Array, chunk: int, part: int = 1
) -> tuple[Array, Any]:
  """`state, o_CV = step(state, *inputs_of_a_chunk)` from chunk to chunk.

  The backward pass runs each step again, so only states and inputs are kept.

  Args:
    step: as above.
    state: before the first token.
    inputs: arrays [T, ...]; zeros fill up the last chunk.
    chunk: tokens, at most so many in a chunk; need not divide T.
    part: the length of a chunk is a multiple of it, unless it is smaller.

  Returns:
    o_TV and the state after these tokens.
  """
  length = inputs[0].shape[0]
  size = softmax.even_size(length, chunk)
  if size > part:
    size = -(-size // part) * part
  blocks = softmax.in_blocks(size, *inputs)
  if blocks[0].shape[0] == 1:
    state, o_CV = step(state, *(x[0] for x in blocks))
    return o_CV[:length], state
  step = jax.checkpoint(step)
  state, o_NCV = jax.lax.scan(lambda state, x: step(state, *x), state, blocks)
  return o_NCV.reshape(-1, o_NCV.shape[-1])[:length], state


def bidirectional(
  streams: Streams, segment_T: Array, *, chunk: int = 64
) -> Array:
  """Reads each token's past with the token itself, plus its future.

  The future is the same recurrence over the tokens in reverse order.
  """
  memory = empty(streams.k_TK.shape[-1], streams.v_TV.shape[-1])
  past_TV, _ = causal(streams, segment_T, memory, chunk=chunk)
  backwards = jax.tree.map(lambda x: x[::-1], (streams, segment_T))
  future_TV, _ = causal(*backwards, memory, chunk=chunk, is_inclusive=False)
  return past_TV + future_TV[::-1]


def one_chunk(
  memory: Memory,
  streams: Streams,
  segment_C: Array,
  is_inclusive: bool = True,
) -> tuple[Memory, Array]:
  """`causal` of a single chunk: the memory after it, and o_CV."""
  keep_C = segment_C > 0
  size = segment_C.shape[0]
  same_CC = segment_C[:, None] == jnp.where(keep_C, segment_C, -1)[None]
  before_CC = same_CC & jnp.tri(size, k=-1, dtype=bool)
  past_CC = same_CC & jnp.tri(size, dtype=bool) if is_inclusive else before_CC
  is_continued_C1 = (keep_C & (segment_C == memory.segment))[:, None]
  last = jnp.max(jnp.where(keep_C, jnp.arange(size), -1))
  segment = jnp.where(last >= 0, segment_C[last], memory.segment)
  is_live_C1 = (keep_C & (segment_C == segment))[:, None]
  sum_KV = jnp.where(segment == memory.segment, memory.sum_KV, 0.0)

  q_CK, k_CK, u_CV, decay, beta_C = streams
  fades = _fades(decay, keep_C)
  if beta_C is not None:
    beta_C1 = jnp.where(keep_C, beta_C, 0.0)[:, None]
    from_CK = jnp.where(is_continued_C1, fades.since_start(k_CK), 0.0)
    inner_CC = jnp.where(before_CC, fades.products(k_CK, k_CK), 0.0)
    u_CV = triangular.solve(
      beta_C1 * inner_CC, beta_C1 * (u_CV - from_CK @ memory.sum_KV)
    )
  inner_CC = jnp.where(past_CC, fades.products(q_CK, k_CK), 0.0)
  from_CK = jnp.where(is_continued_C1, fades.since_start(q_CK), 0.0)
  o_CV = inner_CC @ u_CV + from_CK @ memory.sum_KV
  to_CK = jnp.where(is_live_C1, fades.to_end(k_CK), 0.0)
  sum_KV = fades.over_all(sum_KV) + to_CK.T @ u_CV
  return Memory(sum_KV, segment), o_CV


class _NoDecay:
  """Factors exp(sum of g) over ranges of a chunk, here 1.

  products: [C, C], <a_i, b_j exp(g over j < u <= i)>, right where j <= i.
  since_start: a_i times the factor over u <= i.
  to_end: a_j times the factor over u > j.
  over_all: the state times the factor over the chunk.
  """

  def products(self, a_CK, b_CK):
    return a_CK @ b_CK.T

  def since_start(self, a_CK):
    return a_CK

  def to_end(self, a_CK):
    return a_CK

  def over_all(self, sum_KV):
    return sum_KV


class _OneDecay(_NoDecay):
  """One g a token."""

  def __init__(self, g_C):
    size = g_C.shape[0]
    lower_CC = jnp.tri(size, dtype=jnp.float32)
    after_CC = 1.0 - lower_CC.T
    # Entry (i, j): sum of g over j < u <= i; 0 where that is no range.
    self._factors_CC = jnp.exp(
      _sums('iu,uj->ij', lower_CC, g_C[:, None] * after_CC)
    )
    self._since_start_C1 = jnp.exp(_sums('iu,u->i', lower_CC, g_C))[:, None]
    self._to_end_C1 = jnp.exp(_sums('u,uj->j', g_C, after_CC))[:, None]
    self._over_all = jnp.exp(g_C.sum())

  def products(self, a_CK, b_CK):
    return (a_CK @ b_CK.T) * self._factors_CC

  def since_start(self, a_CK):
    return a_CK * self._since_start_C1

  def to_end(self, a_CK):
    return a_CK * self._to_end_C1

  def over_all(self, sum_KV):
    return sum_KV * self._over_all


class _ChannelDecay(_NoDecay):
  """One g for each token and channel of the keys; chunks in parts of C tokens.

  Between parts the exponent is the sum of three ranges: from the start of the
  query's part, whole parts, to the end of the key's part. Within a part it is
  made for every pair.
  """

  def __init__(self, g_CK):
    size, width = g_CK.shape
    part = min(size, PART)
    self._shape = (size // part, part, width)
    g_NCK = g_CK.reshape(self._shape)
    num_parts = self._shape[0]
    lower_CC = jnp.tri(part, dtype=jnp.float32)
    self._lower_CC, self._after_CC = lower_CC, 1.0 - lower_CC.T
    self._g_NCK = g_NCK
    # Sums within the part: up to a token with it, and after it.
    self._head_NCK = _sums('ij,njk->nik', lower_CC, g_NCK)
    self._tail_NCK = _sums('ij,nik->njk', self._after_CC, g_NCK)
    total_NK = g_NCK.sum(1)
    order_N = jnp.arange(num_parts)
    between_NNN = (order_N[None, :, None] < order_N[:, None, None]) & (
      order_N[None, :, None] > order_N[None, None, :]
    )
    # Entry (m, n): whole parts after n and before m.
    self._between_MNK = _sums(
      'mun,uk->mnk', between_NNN.astype(jnp.float32), total_NK
    )
    before_NN = (order_N[None, :] < order_N[:, None]).astype(jnp.float32)
    self._before_NK = _sums('nu,uk->nk', before_NN, total_NK)
    self._behind_NK = _sums('un,uk->nk', before_NN, total_NK)
    self._total_K = total_NK.sum(0)

  def products(self, a_CK, b_CK):
    num_parts, part, _ = self._shape
    a_NCK, b_NCK = a_CK.reshape(self._shape), b_CK.reshape(self._shape)
    # Entry (i, j) of a part: g over j < u <= i.
    range_NCCK = _sums(
      'iu,uj,nuk->nijk', self._lower_CC, self._after_CC, self._g_NCK
    )
    own_NCC = jnp.einsum('nik,njk,nijk->nij', a_NCK, b_NCK, jnp.exp(range_NCCK))
    if num_parts == 1:
      return own_NCC[0]
    fade_MNCK = self._between_MNK[:, :, None] + self._tail_NCK[None]
    left_NCK = a_NCK * jnp.exp(self._head_NCK)
    right_MNCK = b_NCK[None] * jnp.exp(fade_MNCK)
    product_MCNC = jnp.einsum('mik,mnjk->minj', left_NCK, right_MNCK)
    is_own_NN = jnp.eye(num_parts, dtype=bool)[:, None, :, None]
    # Parts after the query's own hold no range; callers leave them out.
    product_MCNC = jnp.where(is_own_NN, own_NCC[:, :, None], product_MCNC)
    return product_MCNC.reshape(num_parts * part, -1)

  def since_start(self, a_CK):
    exponent_NCK = self._before_NK[:, None] + self._head_NCK
    return a_CK * jnp.exp(exponent_NCK).reshape(a_CK.shape)

  def to_end(self, a_CK):
    exponent_NCK = self._behind_NK[:, None] + self._tail_NCK
    return a_CK * jnp.exp(exponent_NCK).reshape(a_CK.shape)

  def over_all(self, sum_KV):
    return sum_KV * jnp.exp(self._total_K)[:, None]


def _fades(decay, keep_C):
  if decay is None:
    return _NoDecay()
  if decay.ndim == 1:
    return _OneDecay(jnp.where(keep_C, decay, 0.0))
  return _ChannelDecay(jnp.where(keep_C[:, None], decay, 0.0))


def _sums(subscripts, *arrays):
  """An einsum of exponents, in full float32 on every device."""
  return jnp.einsum(subscripts, *arrays, precision=jax.lax.Precision.HIGHEST)
