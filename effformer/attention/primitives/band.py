"""Softmax attention to the nearest tokens, for queries and keys of one row.

    query i sees key j  iff  i - j = step t,  |t| < window    (causal: t >= 0)

with i, j the indices in the row. Each block of queries sees its own keys and a
halo of `window` keys on each side (causal: on the left), so nothing of size
T x T exists. With a step, the tokens of each remainder are a row of their own.

Cost: time T W (K + V), memory T (forward and backward).

A stream keeps the last tokens. It counts real tokens only, so padding inside a
segment takes up room in the window of a batch call, but not in that of a
stream.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from effformer.attention.heads import Head
from effformer.attention.primitives import (
  blocks,
  chunked,
  one_by_one,
  sliding,
  softmax,
)
from effformer.attention.primitives.softmax import Pattern
from effformer.shapes import Array, DTypeLike

# Smaller blocks make products too small to be fast.
LEAST_BLOCK = 64


@flax.struct.dataclass
class Ring:
  """The last W real tokens of one head, oldest first.

  Attributes:
    k_WK: keys, rotated where positions are rotary.
    v_WV: values.
    segment_W: int32, 0 where nothing is stored yet, or nobody may see it.
    position_W: int32, in the segment.
  """

  k_WK: Array
  v_WV: Array
  segment_W: Array
  position_W: Array


def attend(
  head: Head, pattern: Pattern, *, block: int = 0, rows: int = 1, step: int = 1
) -> tuple[Array, Array]:
  """`softmax.tile` within the window of the pattern.

  Args:
    head: queries and keys of the same tokens.
    pattern: `window` is at least 1.
    block: tokens, at most so many queries in a tile, if not less than the
      window; 0 for the window, or 64 if that is more.
    rows: under `vmap` over so many, fewer blocks are in work together.
    step: tokens between two that see each other.

  Returns:
    o_TV and lse_T, float32. A row without admissible keys has 0 and -inf.
  """
  length = head.q_TK.shape[0]
  block = _block(pattern, block)
  # A row of one block needs no halo.
  halo = pattern.window if -(-length // step) > block else 0
  sides = (halo, 0 if pattern.causal else halo)
  return _in_window(head, sides, halo, pattern, block, rows, step)


def empty(
  window: int, head_width: int, dtype: DTypeLike, step: int = 1
) -> Ring:
  """The ring before the first token; holds any number of tokens."""
  zeros_WK = jnp.zeros((window * step, head_width), dtype)
  zeros_W = jnp.zeros((window * step,), jnp.int32)
  return Ring(zeros_WK, zeros_WK, zeros_W, zeros_W)


def extend(
  head: Head,
  ring: Ring,
  pattern: Pattern,
  *,
  block: int = 0,
  rows: int = 1,
  step: int = 1,
) -> tuple[tuple[Array, Array], Ring]:
  """`attend`, causal, of new tokens to themselves and those in the ring."""
  keep_T = head.segment_T > 0
  # Real tokens first, in order, so that distances count real tokens.
  order_T = jnp.argsort(~keep_T, stable=True)
  rank_T = jnp.maximum(jnp.cumsum(keep_T) - 1, 0)

  def append(old, new):
    return jnp.concatenate([old, new[order_T].astype(old.dtype)])

  stored = (ring.k_WK, ring.v_WV, ring.segment_W, ring.position_W)
  keys = [append(*pair) for pair in zip(stored, _keys(head), strict=True)]
  head = head._replace(
    q_TK=head.q_TK[order_T],
    segment_T=head.segment_T[order_T],
    position_T=head.position_T[order_T],
  )
  o_TV, lse_T = _in_window(
    _with_keys(head, *keys), (0, 0),
    pattern.window, pattern, _block(pattern, block), rows, step,
  )  # fmt: skip

  def last(x):
    size = ring.segment_W.shape[0]
    return jax.lax.dynamic_slice_in_dim(x, keep_T.sum(), size)

  return (o_TV[rank_T], lse_T[rank_T]), Ring(*map(last, keys))


def same_remainder(
  head: Head, pattern: Pattern, step: int, *, rows: int = 1
) -> tuple[Array, Array]:
  """`softmax.tile` among tokens with the same index modulo `step`.

  The pattern reads the index divided by `step`. Time T^2 / step.
  """
  length = head.q_TK.shape[0]

  def one(head):
    inputs = (head.q_TK, head.k_SK, head.v_SV, softmax.sites(*head[-4:]))
    return chunked.attend(
      *inputs, head.rng, head.bias, pattern=pattern, rows=rows
    )

  size = -(-length // step)
  together = one_by_one.numbers(rows) // size**2
  return _in_phases(head, one, step, together)


def over_tokens(one: Callable, head: Head) -> Head:
  """`one` of each array of tokens; further streams are left as they are."""
  changed = {
    field: one(x)
    for field, x in head._asdict().items()
    if field not in ('more', 'bias', 'rng')
  }
  return head._replace(**changed)


def in_turn(one, inputs, together: int):
  """`one` over the first axis; as many together as given, evenly divided."""
  number = jax.tree.leaves(inputs)[0].shape[0]
  together = blocks.divisor(number, together)
  if together == number:
    return jax.vmap(one)(inputs)
  return jax.lax.map(one, inputs, batch_size=together)


def _block(pattern, block):
  return max(pattern.window, block or LEAST_BLOCK)


def _keys(head):
  return head.k_SK, head.v_SV, head.segment_S, head.position_S


def _with_keys(head, k_SK, v_SV, segment_S, position_S):
  return head._replace(
    k_SK=k_SK, v_SV=v_SV, segment_S=segment_S, position_S=position_S
  )


def _in_phases(head, one, step, together):
  """`one(head)` for the tokens of each remainder by themselves."""
  length = head.q_TK.shape[0]
  rng = None if head.rng is None else jax.random.split(head.rng, step)
  split = over_tokens(lambda x: _phases(x, step), head)
  # All phases share the weights of the bias, so they are no input.
  split = split._replace(more=None, bias=None, rng=rng)

  def phase(part):
    return one(part._replace(bias=head.bias))

  outputs = in_turn(phase, split, together)
  return jax.tree.map(lambda x: _rejoin(x, length), outputs)


def _phases(x, step):
  """[T, ...] -> [step, ceil(T / step), ...], zero padded: tokens by i % step.

  Zeros are padding in a segment array too.
  """
  x = sliding.pad(x, 0, -(-x.shape[0] // step) * step)
  return x.reshape(-1, step, *x.shape[1:]).swapaxes(0, 1)


def _rejoin(x, length):
  """The inverse of `_phases`."""
  x = x.swapaxes(0, 1)
  return x.reshape(-1, *x.shape[2:])[:length]


def _in_window(head, sides, first, pattern, block, rows, step):
  """Attention within the window, for the tokens of each remainder.

  Before and after the keys there is padding, `sides`, with which the first
  query has the index `first` among them. All count tokens of one remainder.
  """
  if step > 1:
    one = functools.partial(
      _in_window, sides=sides, first=first, pattern=pattern, block=block,
      rows=rows * step, step=1,
    )  # fmt: skip
    return _in_phases(head, one, step, step)
  length = head.q_TK.shape[0]
  num_blocks = max(-(-length // block), 1)
  size = max(-(-length // num_blocks), 1)
  width = head.k_SK.shape[0] + sum(sides) - length + size
  cut = sliding.choose(
    length, size=size, width=width, first=first, padding=sides[0], rows=rows
  )
  return sliding.attend(
    sliding.Side((head.q_TK,), head.segment_T, head.position_T),
    sliding.Side((head.k_SK, head.v_SV), head.segment_S, head.position_S),
    head.rng, head.bias, pattern=pattern, cut=cut,
  )  # fmt: skip
