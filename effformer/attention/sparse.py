"""Sparse Transformer: a token sees its surroundings, and a part of all others
(Child et al. 2019, 1904.10509).

    strided   A1 = {|i - j| < l}             A2 = {(i - j) mod l = 0}
    fixed     A1 = {floor(i/l) = floor(j/l)} A2 = {j mod l >= l - c}

l is `stride`, c is `columns`. In one softmax stand the keys of A1 or A2, every
key once, or those of A1 in even and of A2 in odd heads (`split_heads`). i and j
are indices in the row, counted from the first token of the segment. Cost: time
T (l + T / l) K (strided) or T (l + c T / l) K (fixed), which is least where l
is about sqrt(T), memory T K.

Causal (j <= i) is the paper; the bidirectional form is ours, the same sets
without j <= i. Not supported: a context. Dropout acts on the attention
probabilities. Deviations: A1 of 'strided' holds l tokens, as in the authors'
code, not l + 1; in a head of A2 a token sees itself too, so that no token sees
nothing; all heads have the same columns; layers do not alternate between the
sets. `split_heads` costs every head what
both sets cost.

A stream stores all keys and values (a cache of `max_length`) and reads those of
the two sets. It counts real tokens only, so padding inside a segment takes up
room in a batch call, but not in a stream.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import (
  band,
  blocks,
  cache,
  chunked,
  gather,
  one_by_one,
  softmax,
)
from effformer.attention.primitives.softmax import Sites


class SparseAttention(MultiHead):
  """Attention to the union of two sparse sets of tokens.

  In a stream, tokens beyond the `max_length` of the state have no room: from
  then on the output of that row is NaN.

  Attributes:
    pattern: 'strided' (for data with a period) or 'fixed' (for text).
    stride: l, tokens.
    columns: c, tokens, the last ones of each block of l that all others see;
      at most l. Of 'fixed' only.
    split_heads: even heads see A1 and odd ones A2, instead of both.
  """

  mechanism: ClassVar[str] = 'sparse'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    streaming=True,
    packing=True,
    rotary=True,
    relative_bias=True,
    grouped=True,
    row_normalised=True,
    linear_memory=True,
  )

  pattern: str = 'fixed'
  stride: int = 128
  columns: int = 8
  split_heads: bool = False

  def __post_init__(self):
    super().__post_init__()
    self.one_of('pattern', ('strided', 'fixed'))
    self.at_least('stride', 1)
    self.at_least('columns', 1)
    if self.pattern == 'fixed' and self.columns > self.stride:
      raise ValueError(
        f'sparse: columns must be at most the stride {self.stride}, got '
        f'{self.columns}'
      )

  @nn.nowrap
  def head_params(self, num_source, step):
    """Whether a head sees A2 alone, [H]; no parameters."""
    if not self.split_heads:
      return None, False
    return jnp.arange(self.num_heads) % 2 == 1, True

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    if self.pattern == 'strided' or call.is_packed:
      return self._mix(head, params, call)
    # The first token begins a block, wherever it stands.
    first = jnp.argmax(head.segment_S > 0)
    head = band.over_tokens(lambda x: jnp.roll(x, -first, axis=0), head)
    o_TV = self._mix(head, params, call)
    return jnp.roll(o_TV, first, axis=0)

  @nn.nowrap
  def _mix(self, head, params, call):
    rngs = (None,) * 3
    if head.rng is not None:
      rngs = jax.random.split(head.rng, 3)
    place_T = jnp.arange(head.q_TK.shape[0], dtype=jnp.int32)
    if self.pattern == 'fixed' and call.is_packed:
      place_T = _places(head)
    is_column_T = self._is_column(place_T)
    is_second = params
    near_T = far_T = head.segment_S > 0
    if is_second is not None:
      near_T &= ~is_second | is_column_T
      far_T &= is_second

    def seen(keep_T, rng):
      segment_T = jnp.where(keep_T, head.segment_S, 0)
      return head._replace(segment_S=segment_T, rng=rng)

    near, far = seen(near_T, rngs[0]), seen(far_T, rngs[1])
    if self.pattern == 'strided':
      parts = [self._band(near, self.stride, call), *self._phases(far, call)]
    else:
      parts = [
        self._block(near, place_T, call),
        *self._columns(far, place_T, is_column_T, call),
      ]
    if is_second is not None:
      itself = seen(far_T & ~is_column_T, rngs[2])
      parts.append(self._band(itself, 1, call))
    return softmax.merge(*parts)[0]

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`."""
    return cache.empty(max_length, head_width, head_width, dtype)

  @nn.nowrap
  def step(self, head: Head, state: cache.Cache, params, call: Call):
    """See `MultiHead`."""
    state, head, where = cache.append(state, head)
    max_length, width = head.k_SK.shape

    def one(inputs):
      q_K, segment, index, position = inputs
      index_J = self._seen_in_stream(index, position, max_length, params)
      here = Sites(
        segment[None],
        gather.at(head.segment_S, index_J),
        index[None],
        index_J,
        position[None],
        gather.at(head.position_S, index_J),
      )
      o_1V, _ = softmax.tile(
        q_K[None],
        gather.at(head.k_SK, index_J),
        gather.at(head.v_SV, index_J),
        here,
        None,
        head.bias,
        pattern=self._pattern(head),
      )
      return o_1V[0]

    num_seen = self.stride + -(-max_length // self.stride) * self.columns
    together = one_by_one.numbers(call.rows) // (num_seen * width)
    inputs = head.q_TK, where.segment_T, where.index_T, where.position_T
    o_TV = band.in_turn(one, inputs, together)
    return jnp.where(state.is_full, jnp.nan, o_TV), state

  @nn.nowrap
  def _seen_in_stream(self, index, position, max_length, is_second):
    """Where the keys of a token are stored; `max_length` where there is none.

    Tokens of other segments may be among them.
    """
    number_N = jnp.arange(-(-max_length // self.stride))
    place = position if self.pattern == 'fixed' else index
    start = index - place
    if self.pattern == 'fixed':
      near_J = index - place % self.stride + jnp.arange(self.stride)
      column_C = self.stride - self.columns + jnp.arange(self.columns)
      far_NC = start + number_N[:, None] * self.stride + column_C[None, :]
      far_J = far_NC.reshape(-1)
      is_far_J = far_J < near_J[0]
    else:
      near_J = index - jnp.arange(self.stride)
      far_J = index - (number_N + 1) * self.stride
      is_far_J = far_J >= 0
    is_near_J = (near_J >= 0) & (near_J <= index)
    if is_second is not None:
      is_in_both_J = self._is_column(near_J - start) | (near_J == index)
      is_near_J &= ~is_second | is_in_both_J
      is_far_J &= is_second
    return jnp.concatenate(
      [
        jnp.where(is_near_J, near_J, max_length),
        jnp.where(is_far_J, far_J, max_length),
      ]
    )

  @nn.nowrap
  def _band(self, head, window, call):
    pattern = self._pattern(head)._replace(window=window)
    return band.attend(head, pattern, rows=call.rows)

  @nn.nowrap
  def _phases(self, head, call):
    """Same remainder of the index, without the token itself; no or one part."""
    if head.q_TK.shape[0] <= self.stride:
      return []
    pattern = self._pattern(head)._replace(apart=1)
    return [band.same_remainder(head, pattern, self.stride, rows=call.rows)]

  @nn.nowrap
  def _block(self, head, place_T, call):
    """The own block of `stride` places."""
    length = head.q_TK.shape[0]
    number_N = np.arange(-(-length // self.stride))
    # Places of a packed row need not begin where blocks of indices do.
    before, after = int(call.is_packed), int(call.is_packed and not self.causal)
    table_NJ = number_N[:, None] + np.arange(-before, after + 1)[None]
    table_NJ = np.where(table_NJ < len(number_N), table_NJ, blocks.NOTHING)
    index_T = jnp.arange(length, dtype=jnp.int32)
    # Each block is a segment; its number is where it begins.
    block_T = index_T - place_T % self.stride + 1
    where = softmax.sites(
      jnp.where(head.segment_T > 0, block_T, 0),
      jnp.where(head.segment_S > 0, block_T, 0),
      head.position_T,
      head.position_S,
    )
    return blocks.attend(
      head.q_TK, head.k_SK, head.v_SV, where, table_NJ, head.rng, head.bias,
      pattern=self._pattern(head), block=self.stride, rows=call.rows,
    )  # fmt: skip

  @nn.nowrap
  def _columns(self, head, place_T, is_column_T, call):
    """Columns of other blocks; no or one part."""
    # However many segments there are, they have no more columns than one has.
    whole, rest = divmod(head.q_TK.shape[0], self.stride)
    own = max(rest - (self.stride - self.columns), 0)
    number = whole * self.columns + own
    if not number:
      return []
    (index_M,) = jnp.nonzero(
      is_column_T & (head.segment_S > 0),
      size=number,
      fill_value=is_column_T.shape[0],
    )
    sources = (head.segment_S, place_T, head.position_S)
    segment_M, place_M, position_M = (gather.at(x, index_M) for x in sources)
    where = Sites(
      head.segment_T, segment_M, place_T, place_M, head.position_T, position_M
    )
    return [
      chunked.attend(
        head.q_TK,
        gather.at(head.k_SK, index_M),
        gather.at(head.v_SV, index_M),
        where,
        head.rng,
        head.bias,
        pattern=self._pattern(head)._replace(apart=self.stride),
        rows=call.rows,
      )
    ]

  @nn.nowrap
  def _is_column(self, place_T):
    """bool, whether the token of A1 is in A2 for all others of its block."""
    if self.pattern == 'strided':
      return jnp.zeros(place_T.shape, bool)
    return place_T % self.stride >= self.stride - self.columns

  @nn.nowrap
  def _pattern(self, head):
    return softmax.Pattern(
      causal=self.causal,
      dropout=0.0 if head.rng is None else self.dropout,
      bias=self.bias_rule(),
    )


def _places(head):
  """Indices counted from the first token of each segment, int32 [T]."""
  index_T = jnp.arange(head.segment_S.shape[0], dtype=jnp.int32)
  is_first_T = (head.segment_S > 0) & (head.position_S == 0)
  return index_T - jax.lax.cummax(jnp.where(is_first_T, index_T, 0))
