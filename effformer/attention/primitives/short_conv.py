"""Short causal depthwise convolution over tokens.

    y_i = sum_{w=0}^{W-1} filter_w x_{i-w}

over the real tokens of the segment of token i: padding between them takes up no
room in the taps, in a batch call as in a stream. Channels do not mix. A stream
keeps the last W - 1 real tokens.

Cost: time T D W, memory T D.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import softmax
from effformer.shapes import Array, DTypeLike

# Tokens of a block of the backward pass.
BLOCK = 64


class Tail(NamedTuple):
  """The last W - 1 real tokens of one example, oldest first.

  Attributes:
    x_WD: the inputs.
    segment_W: int32, 0 where nothing is stored yet.
  """

  x_WD: Array
  segment_W: Array


def empty(taps: int, width: int, dtype: DTypeLike = jnp.float32) -> Tail:
  """The tail before the first token, of `taps` W."""
  return Tail(
    jnp.zeros((taps - 1, width), dtype), jnp.zeros((taps - 1,), jnp.int32)
  )


@jax.custom_vjp
def batch(x_BTD: Array, filter_WD: Array, segment_BT: Array) -> Array:
  """All tokens at once, in the type of x.

  Args:
    x_BTD: inputs.
    filter_WD: `filter_WD[0]` belongs to the token itself.
    segment_BT: int32, 0 is padding, where the output is finite and unspecified.
  """
  # Moving the tokens together costs as much as the convolution, and hardly
  # ever is there padding within a segment.
  return jax.lax.cond(
    _has_holes(segment_BT), _sparse, _dense, x_BTD, filter_WD, segment_BT
  )


def _batch_forward(*inputs):
  return batch(*inputs), inputs


def _batch_backward(inputs, dy_BTD):
  *_, segment_BT = inputs

  def sparse(x_BTD, filter_WD, segment_BT, dy_BTD):
    _, pull = jax.vjp(
      lambda x_BTD, filter_WD: _sparse(x_BTD, filter_WD, segment_BT),
      x_BTD, filter_WD,
    )  # fmt: skip
    return pull(dy_BTD)

  def dense(x_BTD, filter_WD, segment_BT, dy_BTD):
    one = jax.vmap(_gradient_in_blocks, (0, None, 0, 0))
    dx_BTD, dfilter_BWD = one(x_BTD, filter_WD, segment_BT, dy_BTD)
    return dx_BTD, dfilter_BWD.sum(0).astype(filter_WD.dtype)

  gradients = jax.lax.cond(
    _has_holes(segment_BT), sparse, dense, *inputs, dy_BTD
  )
  return *gradients, None


batch.defvjp(_batch_forward, _batch_backward)


def stream(
  x_TD: Array, filter_WD: Array, segment_T: Array, tail: Tail
) -> tuple[Array, Tail]:
  """The same for further tokens of one example, and the tail after them."""
  keep_T = segment_T > 0
  num_real = keep_T.sum()
  # A permutation that moves the real tokens to the front, in order.
  place_T = jnp.where(
    keep_T, jnp.cumsum(keep_T) - 1, num_real + jnp.cumsum(~keep_T) - 1
  )
  index_T = jnp.arange(segment_T.shape[0])
  order_T = jnp.zeros_like(index_T).at[place_T].set(index_T)
  x_TD, sorted_T = x_TD[order_T], segment_T[order_T]
  y_TD = _taps(x_TD, filter_WD, sorted_T, tail)

  def last(old, new):
    joined = jnp.concatenate([old, new.astype(old.dtype)])
    return jax.lax.dynamic_slice_in_dim(joined, num_real, old.shape[0])

  return y_TD[place_T], Tail(
    last(tail.x_WD, x_TD), last(tail.segment_W, sorted_T)
  )


def _sparse(x_BTD, filter_WD, segment_BT):
  """Where padding may stand within a segment."""
  tail = empty(*filter_WD.shape, x_BTD.dtype)
  one = jax.vmap(stream, (0, None, 0, None))
  return one(x_BTD, filter_WD, segment_BT, tail)[0]


def _dense(x_BTD, filter_WD, segment_BT):
  tail = empty(*filter_WD.shape, x_BTD.dtype)
  one = jax.vmap(_taps, (0, None, 0, None))
  return one(x_BTD, filter_WD, segment_BT, tail)


def _taps(x_TD, filter_WD, segment_T, tail):
  """Sum over the taps of tokens that stand side by side."""
  taps, length = filter_WD.shape[0], segment_T.shape[0]
  # Token t of the output has index t + W - 1 here.
  x_SD = jnp.concatenate([tail.x_WD.astype(x_TD.dtype), x_TD])
  segment_S = jnp.concatenate([tail.segment_W, segment_T])
  y_TD = jnp.zeros_like(x_TD)
  for tap in range(taps):
    first = taps - 1 - tap
    is_same_T = segment_S[first : first + length] == segment_T
    tap_TD = jnp.where(is_same_T[:, None], x_SD[first : first + length], 0)
    y_TD += filter_WD[tap][None].astype(x_TD.dtype) * tap_TD
  return y_TD


def _gradient_in_blocks(x_TD, filter_WD, segment_T, dy_TD):
  """dx_TD and the float32 gradient of the filter, of `_dense`.

  In blocks that fit in cache: XLA:CPU is slow in sums over tokens of what it
  selects and shifts on the way.
  """
  (length, width), taps = x_TD.shape, filter_WD.shape[0]
  size = softmax.even_size(length, BLOCK)
  num_blocks, halo = -(-length // size), taps - 1
  rest = num_blocks * size - length
  # Zeros before what is read, and behind what was written.
  behind_SD = jnp.pad(x_TD, ((halo, rest), (0, 0)))
  ahead_SD = jnp.pad(dy_TD, ((0, rest + halo), (0, 0)))
  around_S = jnp.pad(segment_T, (halo, rest + halo))
  ones_1C = jnp.ones((1, size), x_TD.dtype)

  def block(dfilter_WD, number):
    def cut(x, more):
      return jax.lax.dynamic_slice_in_dim(x, number * size, size + more)

    x_SD, dy_SD = cut(behind_SD, halo), cut(ahead_SD, halo)
    segment_S = cut(around_S, 2 * halo)
    own_C, dy_CD = segment_S[halo : halo + size], dy_SD[:size]
    dx_CD, parts = jnp.zeros_like(dy_CD), []
    for tap in range(taps):
      is_after_C1 = (segment_S[halo + tap :][:size] == own_C)[:, None]
      after_CD = jnp.where(is_after_C1, dy_SD[tap:][:size], 0)
      dx_CD += filter_WD[tap][None].astype(dy_CD.dtype) * after_CD
      is_before_C1 = (segment_S[halo - tap :][:size] == own_C)[:, None]
      before_CD = jnp.where(is_before_C1, x_SD[halo - tap :][:size], 0)
      parts.append(softmax.product('mc,cd->md', ones_1C, dy_CD * before_CD))
    return dfilter_WD + jnp.concatenate(parts), dx_CD

  dfilter_WD, dx_NCD = jax.lax.scan(
    block, jnp.zeros((taps, width), jnp.float32), jnp.arange(num_blocks)
  )
  return dx_NCD.reshape(-1, width)[:length], dfilter_WD


def _has_holes(segment_BT):
  """Whether there is padding between two tokens of a segment."""
  index_1T = jnp.arange(segment_BT.shape[1])[None]
  keep_BT = segment_BT > 0
  real_BT = jax.lax.cummax(jnp.where(keep_BT, index_1T, -1), axis=1)
  # The real token before each, -1 for none.
  before_BT = jnp.pad(real_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  before_segment_BT = jnp.take_along_axis(
    segment_BT, jnp.maximum(before_BT, 0), axis=1
  )
  return jnp.any(
    keep_BT
    & (before_BT >= 0)
    & (before_BT < index_1T - 1)
    & (before_segment_BT == segment_BT)
  )
