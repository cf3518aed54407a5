"""The chunked linear recurrence, on one head of one example.

    o_i = sum over j <= i of the same segment  <q_i, k_j> v_j

Within a chunk the sum is a masked product of C x C; what came before is a state
of K x V, carried from chunk to chunk by `lax.scan`. The batch call and the
continuation of a stream are the same function, which takes and returns the
state.

Sources: Katharopoulos et al. 2020 (2006.16236); in chunks, Hua et al. 2022
(2202.10447). Cost: time T K V + T C (K + V), memory T (K + V) + T K V / C. The
backward pass makes the tiles again from the states.

Everything is float32: rounding errors of a sum over T tokens grow with T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.shapes import Array


class Memory(NamedTuple):
  """Sum over the tokens of the segment that is under way.

  Attributes:
    sum_KV: float32, sum of k_j v_j^T.
    segment: int32 scalar, id of that segment; 0 before the first token.
  """

  sum_KV: Array
  segment: Array


def empty(key_width: int, value_width: int) -> Memory:
  """The state before the first token."""
  return Memory(
    jnp.zeros((key_width, value_width), jnp.float32),
    jnp.zeros((), jnp.int32),
  )


def causal(
  q_TK: Array,
  k_TK: Array,
  v_TV: Array,
  segment_T: Array,
  memory: Memory,
  *,
  chunk: int = 64,
  is_inclusive: bool = True,
) -> tuple[Array, Memory]:
  """Sums over each token's past.

  Args:
    q_TK: float32.
    k_TK: float32.
    v_TV: float32.
    segment_T: int32, 0 is padding, which returns 0 and leaves the memory as
      it was. A segment does not come back after another one.
    memory: of all tokens before these.
    chunk: tokens, at most so many in a chunk; need not divide T.
    is_inclusive: False leaves out the token itself (j < i).

  Returns:
    o_TV and the memory after these tokens.
  """
  length = q_TK.shape[0]
  num_chunks = max(-(-length // chunk), 1)
  size = -(-length // num_chunks)
  padding = num_chunks * size - length

  def split(x):
    x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(num_chunks, size, *x.shape[1:])

  inputs = tuple(split(x) for x in (q_TK, k_TK, v_TV, segment_T))
  # The mask of a chunk in [C, C] is the same for all of them.
  past_CC = jnp.tri(size, k=0 if is_inclusive else -1, dtype=bool)

  def step(memory, chunk):
    q_CK, k_CK, v_CV, segment_C = chunk
    keep_C = segment_C > 0
    same_CC = segment_C[:, None] == jnp.where(keep_C, segment_C, -1)[None]
    inner_CC = jnp.where(past_CC & same_CC, q_CK @ k_CK.T, 0.0)
    is_continued_C = keep_C & (segment_C == memory.segment)
    o_CV = inner_CC @ v_CV + is_continued_C[:, None] * (q_CK @ memory.sum_KV)
    last = jnp.max(jnp.where(keep_C, jnp.arange(size), -1))
    segment = jnp.where(last >= 0, segment_C[last], memory.segment)
    is_live_C = keep_C & (segment_C == segment)
    sum_KV = jnp.where(segment == memory.segment, memory.sum_KV, 0.0)
    sum_KV += (k_CK * is_live_C[:, None]).T @ v_CV
    return Memory(sum_KV, segment), o_CV

  if num_chunks == 1:
    memory, o_CV = step(memory, jax.tree.map(lambda x: x[0], inputs))
    return o_CV[:length], memory
  memory, o_NCV = jax.lax.scan(jax.checkpoint(step), memory, inputs)
  return o_NCV.reshape(-1, o_NCV.shape[-1])[:length], memory


def bidirectional(
  q_TK: Array, k_TK: Array, v_TV: Array, segment_T: Array, *, chunk: int = 64
) -> Array:
  """Sums over each token's whole segment: its past, then its future."""
  memory = empty(k_TK.shape[-1], v_TV.shape[-1])
  past_TV, _ = causal(q_TK, k_TK, v_TV, segment_T, memory, chunk=chunk)
  backwards = (x[::-1] for x in (q_TK, k_TK, v_TV, segment_T))
  future_TV, _ = causal(*backwards, memory, chunk=chunk, is_inclusive=False)
  return past_TV + future_TV[::-1]
