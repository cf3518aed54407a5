"""Softmax attention over all tokens (Vaswani et al. 2017, 1706.03762).

    O = softmax(Q K^T / sqrt(K)) V

Cost: time T^2 K; memory T (form 'chunked') or T^2 (form 'dense', the
reference). Not supported: causal with a context. Dropout acts on the attention
probabilities. Streaming keeps all keys and values (a cache of `max_length`).
"""

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from effformer.attention import softmax
from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.shapes import Array


@flax.struct.dataclass
class Cache:
  """Keys and values of one head, in order of arrival.

  Attributes:
    k_SK: keys, rotated where positions are rotary.
    v_SV: values.
    segment_S: int32, 0 where nothing is stored yet.
    count: int32 scalar, number of stored tokens.
  """

  k_SK: Array
  v_SV: Array
  segment_S: Array
  count: Array


class FullAttention(MultiHead):
  """Exact softmax attention.

  In a stream, tokens beyond the `max_length` of the state have no room: from
  then on the output of that row is NaN.

  Attributes:
    form: 'chunked' (memory-linear, own backward pass) or 'dense'.
    block: tokens, side of a tile of the chunked form; 0 chooses it such that
      the tiles of all heads and examples fit a CPU's cache.
  """

  mechanism: ClassVar[str] = 'full'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    cross=True,
    streaming=True,
    packing=True,
    rotary=True,
    row_normalised=True,
    permutation=True,
    linear_memory=True,
  )

  form: str = 'chunked'
  block: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.form not in ('chunked', 'dense'):
      raise ValueError(
        f"full: form must be 'chunked' or 'dense', got {self.form!r}"
      )
    self.at_least('block', 0)

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    where = softmax.sites(head.segment_T, head.segment_S)
    return self._attend(head, where, call.rows)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`."""
    zeros_SK = jnp.zeros((max_length, head_width), dtype)
    return Cache(
      zeros_SK,
      zeros_SK,
      jnp.zeros((max_length,), jnp.int32),
      jnp.zeros((), jnp.int32),
    )

  @nn.nowrap
  def step(self, head: Head, state: Cache, call: Call):
    """See `MultiHead`."""
    max_length = state.segment_S.shape[0]
    keep_T = head.segment_T > 0
    slot_T = state.count + jnp.cumsum(keep_T, dtype=jnp.int32) - 1
    # Padding is written past the end, that is, nowhere.
    target_T = jnp.where(keep_T, slot_T, max_length)

    def write(cache, new):
      return cache.at[target_T].set(new.astype(cache.dtype), mode='drop')

    state = Cache(
      write(state.k_SK, head.k_SK),
      write(state.v_SV, head.v_SV),
      write(state.segment_S, head.segment_T),
      state.count + keep_T.sum(dtype=jnp.int32),
    )
    where = softmax.Sites(
      head.segment_T,
      state.segment_S,
      slot_T,
      jnp.arange(max_length, dtype=jnp.int32),
    )
    head = head._replace(k_SK=state.k_SK, v_SV=state.v_SV)
    o_TV = self._attend(head, where, call.rows)
    return jnp.where(state.count <= max_length, o_TV, jnp.nan), state

  @nn.nowrap
  def _attend(self, head, where, rows):
    pattern = softmax.Pattern(
      causal=self.causal, dropout=0.0 if head.rng is None else self.dropout
    )
    inputs = (head.q_TK, head.k_SK, head.v_SV, where, head.rng)
    if self.form == 'dense':
      return softmax.dense(*inputs, pattern=pattern)[0]
    block = self.block or softmax.tile_side(rows)
    return softmax.chunked(*inputs, pattern=pattern, block=block)[0]
