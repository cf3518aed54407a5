"""Softmax attention within a sliding window (Child et al. 2019, 1904.10509;
Beltagy et al. 2020, 2004.05150).

    token i sees token j  iff  |i - j| < window            (bidirectional)
                               0 <= i - j < window         (causal)

with i, j the indices in the row, and only within its segment. This is the true
band, not attention within fixed blocks; the `local` of the Long Range Arena is
neither (its reshape groups strided tokens).

Each block of queries sees its own keys and a halo of `window` keys on each side
(causal: on the left), so nothing of size T x T exists. Cost: time T W K, memory
T K. Dropout acts on the attention probabilities. Not supported: a context.

A stream keeps the last `window` tokens. It counts real tokens only, so padding
inside a segment takes up room in the window of a batch call, but not in the
window of a stream.
"""

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from effformer.attention import softmax
from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.shapes import Array

# Smaller blocks make products too small to be fast.
LEAST_BLOCK = 64


@flax.struct.dataclass
class Ring:
  """The last W real tokens of one head, oldest first.

  Attributes:
    k_WK: keys, rotated where positions are rotary.
    v_WV: values.
    segment_W: int32, 0 where nothing is stored yet.
  """

  k_WK: Array
  v_WV: Array
  segment_W: Array


class LocalAttention(MultiHead):
  """Attention to the nearest tokens.

  Attributes:
    window: tokens; the distance to a visible token is less than this.
    block: tokens, at most so many queries in a tile, if not less than the
      window; 0 for the window, or 64 if that is more.
  """

  mechanism: ClassVar[str] = 'local'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    streaming=True,
    packing=True,
    rotary=True,
    row_normalised=True,
    linear_memory=True,
  )

  window: int = 64
  block: int = 0

  def __post_init__(self):
    super().__post_init__()
    self.at_least('window', 1)
    self.at_least('block', 0)

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    # A row of one block needs no halo.
    halo = self.window if head.q_TK.shape[0] > self._block() else 0
    sides = (halo, 0 if self.causal else halo)

    def widen(x):
      return jnp.pad(x, (sides,) + ((0, 0),) * (x.ndim - 1))

    head = head._replace(
      k_SK=widen(head.k_SK),
      v_SV=widen(head.v_SV),
      segment_S=widen(head.segment_S),
    )
    return self._band(head, halo, call.rows)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`; holds the last `window` of any number of tokens."""
    zeros_WK = jnp.zeros((self.window, head_width), dtype)
    return Ring(zeros_WK, zeros_WK, jnp.zeros((self.window,), jnp.int32))

  @nn.nowrap
  def step(self, head: Head, state: Ring, call: Call):
    """See `MultiHead`."""
    keep_T = head.segment_T > 0
    # Real tokens first, in order, so that distances count real tokens.
    order_T = jnp.argsort(~keep_T, stable=True)
    rank_T = jnp.maximum(jnp.cumsum(keep_T) - 1, 0)

    def append(old, new):
      return jnp.concatenate([old, new[order_T].astype(old.dtype)])

    k_SK = append(state.k_WK, head.k_SK)
    v_SV = append(state.v_WV, head.v_SV)
    segment_S = append(state.segment_W, head.segment_T)
    sorted_head = head._replace(
      q_TK=head.q_TK[order_T],
      segment_T=head.segment_T[order_T],
      k_SK=k_SK,
      v_SV=v_SV,
      segment_S=segment_S,
    )
    o_TV = self._band(sorted_head, self.window, call.rows)[rank_T]

    def last(x):
      return jax.lax.dynamic_slice_in_dim(x, keep_T.sum(), self.window)

    return o_TV, Ring(last(k_SK), last(v_SV), last(segment_S))

  @nn.nowrap
  def _block(self):
    return max(self.window, self.block or LEAST_BLOCK)

  @nn.nowrap
  def _band(self, head, halo, rows):
    """Attention within the window; key s has index s - halo."""
    length = head.q_TK.shape[0]
    num_blocks = max(-(-length // self._block()), 1)
    # Halos come from the neighbouring block, so blocks are no shorter.
    size = max(-(-length // num_blocks), halo if num_blocks > 1 else 1)
    num_blocks = max(-(-length // size), 1)
    num_keys = head.k_SK.shape[0]
    width = num_keys - length + size

    def queries(x):
      x = _pad_to(x, num_blocks * size)
      return x.reshape(num_blocks, size, *x.shape[1:])

    def keys(x):
      if num_blocks == 1:
        return x[None]
      return _windows(x, num_blocks, size, width)

    index_C = jnp.arange(size, dtype=jnp.int32) + halo
    index_S = jnp.arange(width, dtype=jnp.int32)
    is_dropping = head.rng is not None
    pattern = softmax.Pattern(
      causal=self.causal,
      window=self.window,
      dropout=self.dropout if is_dropping else 0.0,
    )

    def tile(inputs):
      q_CK, k_SK, v_SV, segment_C, segment_S, rng = inputs
      where = softmax.Sites(segment_C, segment_S, index_C, index_S)
      return softmax.chunked(q_CK, k_SK, v_SV, where, rng, pattern=pattern)[0]

    rngs = jax.random.split(head.rng, num_blocks) if is_dropping else None
    inputs = (
      queries(head.q_TK),
      keys(head.k_SK),
      keys(head.v_SV),
      queries(head.segment_T),
      keys(head.segment_S),
      rngs,
    )
    together = softmax.TILE_NUMBERS // (rows * size * width)
    o_NCV = _map(tile, inputs, num_blocks, together)
    return o_NCV.reshape(-1, o_NCV.shape[-1])[:length]


def _map(tile, inputs, num_blocks, together):
  """`tile` over blocks; as many together as stay in cache, evenly divided."""
  together = max(min(together, num_blocks), 1)
  while num_blocks % together:
    together -= 1
  if together == num_blocks:
    return jax.vmap(tile)(inputs)
  return jax.lax.map(tile, inputs, batch_size=together)


def _windows(x, num_blocks, size, width):
  """[N, width, ...]: rows n * size to n * size + width of x, zero padded.

  Made of three shifted views; a gather would scatter in the backward pass.
  """
  x = _pad_to(x, (num_blocks + -(-width // size)) * size)
  views, first = [], 0
  while first < width:
    view = x[first : first + num_blocks * size]
    view = view.reshape(num_blocks, size, *x.shape[1:])
    views.append(view[:, : width - first])
    first += size
  return jnp.concatenate(views, axis=1)


def _pad_to(x, length):
  return jnp.pad(x, ((0, length - x.shape[0]),) + ((0, 0),) * (x.ndim - 1))
