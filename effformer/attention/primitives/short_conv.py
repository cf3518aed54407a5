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

from effformer.shapes import Array, DTypeLike


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


@jax.checkpoint
def batch(x_BTD: Array, filter_WD: Array, segment_BT: Array) -> Array:
  """All tokens at once, in the type of x.

  Args:
    x_BTD: inputs.
    filter_WD: `filter_WD[0]` belongs to the token itself.
    segment_BT: int32, 0 is padding, where the output is finite and unspecified.
  """
  taps, width = filter_WD.shape

  def dense(x_TD, segment_T):
    tail = empty(taps, width, x_TD.dtype)
    return _taps(x_TD, filter_WD, segment_T, tail)

  def sparse(x_TD, segment_T):
    tail = empty(taps, width, x_TD.dtype)
    return stream(x_TD, filter_WD, segment_T, tail)[0]

  # Moving the tokens together costs as much as the convolution, and hardly
  # ever is there padding within a segment.
  return jax.lax.cond(
    _has_holes(segment_BT), jax.vmap(sparse), jax.vmap(dense), x_BTD, segment_BT
  )


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
