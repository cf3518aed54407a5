"""Softmax attention of one row whose keys lie in windows that slide along.

Queries are taken in blocks of C, and block n sees the keys n C ... n C + W - 1,
so nothing of size T x S exists, and no window is ever stored: a loop over
groups of blocks cuts them out, and again in the backward pass, which makes P
from the logsumexp. Cost: time T W (K + V), memory T + S.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import chunked, one_by_one, softmax
from effformer.attention.primitives.softmax import Pattern
from effformer.shapes import Array


class Side(NamedTuple):
  """Queries, or keys and values; and where they stand."""

  arrays: tuple[Array, ...]
  segment: Array
  position: Array


class Cut(NamedTuple):
  """How a row is cut; static.

  Attributes:
    size: queries in a block, C.
    width: keys in a window, W.
    first: index of the first query; that of the first key is 0.
    padding: zeros before the keys, which count in the indices.
    group: blocks that are in work together.
    num_groups: of them.
    in_turn: under `vmap`, heads and examples one after the other.
  """

  size: int
  width: int
  first: int
  padding: int
  group: int
  num_groups: int
  in_turn: bool


def choose(
  length: int, *, size: int, width: int, first: int, padding: int, rows: int
) -> Cut:
  """The cut of so many queries, of which `rows` rows are under `vmap`."""
  num_blocks = max(-(-length // size), 1)
  in_turn = one_by_one.is_faster(length, width)
  group = max(one_by_one.numbers(rows, in_turn) // (size * width), 1)
  num_groups = -(-num_blocks // group)
  # Even groups: less padding.
  group = -(-num_blocks // num_groups)
  return Cut(size, width, first, padding, group, num_groups, in_turn)


def attend(
  queries: Side,
  keys: Side,
  rng: Array | None,
  bias: Array | None,
  *,
  pattern: Pattern,
  cut: Cut,
) -> tuple[Array, Array]:
  """`softmax.tile` within the windows.

  Args:
    queries: q_TK.
    keys: k_SK and v_SV; where a window goes beyond them there is padding.
    rng: key of the dropout, or None.
    bias: weights of `pattern.bias`, or None.
    pattern: static.
    cut: static.

  Returns:
    o_TV and lse_T, float32. A row without admissible keys has 0 and -inf.
  """
  return _attend(pattern, cut, queries, keys, rng, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(pattern, cut, *inputs):
  forward = functools.partial(_forward, pattern, cut)
  return one_by_one.rows(forward, cut.in_turn)(*inputs)


def _forward(pattern, cut, queries, keys, rng, bias):
  def tile(number, query, key):
    return chunked.forward(
      pattern, _tile(cut), *query.arrays, *key.arrays,
      _where(cut, query, key), _fold(rng, number), bias,
    )  # fmt: skip

  def group(carry, number, blocks):
    window = _windows(cut, _of_group(cut, number, keys))
    return carry, jax.vmap(tile)(*blocks, window)

  keys = _padded_keys(cut, keys)
  outputs = _over_groups(cut, group, None, queries)[1]
  return tuple(_joined(x, queries) for x in outputs)


def _attend_forward(pattern, cut, *inputs):
  outputs = _attend(pattern, cut, *inputs)
  return outputs, (inputs, outputs)


def _attend_backward(pattern, cut, saved, cotangents):
  (queries, keys, rng, bias), (o_TV, lse_T) = saved
  (q_TK,), (k_SK, v_SV) = queries.arrays, keys.arrays
  row_T = softmax.row(q_TK, o_TV, lse_T, *cotangents, v_SV.dtype)
  backward = functools.partial(_backward, pattern, cut)
  gradients = one_by_one.rows(backward, cut.in_turn)(
    queries._replace(arrays=tuple(row_T)), keys, rng, bias
  )
  dq_TK, dk_SK, dv_SV, dbias = jax.tree.map(
    lambda gradient, x: gradient.astype(x.dtype),
    gradients,
    (q_TK, k_SK, v_SV, bias),
  )
  return (
    Side((dq_TK,), None, None), Side((dk_SK, dv_SV), None, None), None, dbias
  )  # fmt: skip


def _backward(pattern, cut, queries, keys, rng, bias):
  zero_bias = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bias)

  def tile(number, query, key):
    return chunked.gradient(
      pattern, _tile(cut), softmax.Row(*query.arrays), *key.arrays,
      _where(cut, query, key), _fold(rng, number), bias,
    )  # fmt: skip

  def group(carry, number, blocks):
    sums, dbias = carry
    cut_out = functools.partial(_of_group, cut, number)
    windows = functools.partial(_windows, cut)
    near = cut_out(padded)
    dq_NCK, *parts, dbias_N = jax.vmap(tile)(*blocks, windows(near))
    # Of the windows as if they were float32, which what they send is.
    fold = jax.linear_transpose(windows, cut_out(sums))
    near_sums = jax.tree.map(jnp.add, cut_out(sums), fold(tuple(parts))[0])
    first = number * cut.group * cut.size
    sums = jax.tree.map(
      lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, first, 0),
      sums, near_sums,
    )  # fmt: skip
    dbias = jax.tree.map(lambda x, part: x + part.sum(0), dbias, dbias_N)
    return (sums, dbias), dq_NCK

  padded = _padded_keys(cut, keys)
  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in padded.arrays)
  (sums, dbias), dq = _over_groups(cut, group, (zeros, zero_bias), queries)
  num_keys = keys.segment.shape[0]
  dkeys = [x[cut.padding : cut.padding + num_keys] for x in sums]
  return _joined(dq, queries), *dkeys, dbias


_attend.defvjp(_attend_forward, _attend_backward)


def _over_groups(cut, step, carry, queries):
  """`step(carry, number, (numbers of blocks, blocks))` for each group."""
  shape = cut.num_groups, cut.group
  total = cut.num_groups * cut.group * cut.size

  def split(x):
    return pad(x, 0, total).reshape(*shape, cut.size, *x.shape[1:])

  numbers = jnp.arange(cut.num_groups * cut.group).reshape(shape)

  def one(carry, block):
    number, *blocks = block
    return step(carry, number, blocks)

  blocks = numbers, jax.tree.map(split, queries)
  return chunked.scan(one, carry, blocks)


def _padded_keys(cut, keys):
  total = cut.num_groups * cut.group * cut.size + cut.width - cut.size
  return jax.tree.map(lambda x: pad(x, cut.padding, total), keys)


def _of_group(cut, number, tree):
  """The keys that a group of blocks sees."""
  step = cut.group * cut.size
  return jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(
      x, number * step, step + cut.width - cut.size
    ),
    tree,
  )


def _windows(cut, tree):
  """[N, W, ...]: rows n C to n C + W - 1 of x.

  Made of shifted views; a gather would scatter in the backward pass.
  """

  def one(x):
    x = pad(x, 0, (cut.group + -(-cut.width // cut.size)) * cut.size)
    views = []
    for first in range(0, cut.width, cut.size):
      view = x[first : first + cut.group * cut.size]
      view = view.reshape(cut.group, cut.size, *x.shape[1:])
      views.append(view[:, : cut.width - first])
    return jnp.concatenate(views, axis=1)

  return jax.tree.map(one, tree)


def _where(cut, query, key):
  index_C = jnp.arange(cut.size, dtype=jnp.int32) + cut.first
  index_S = jnp.arange(cut.width, dtype=jnp.int32)
  return softmax.Sites(
    query.segment, key.segment, index_C, index_S, query.position, key.position
  )


def _tile(cut):
  return chunked.square(chunked.side(1), cut.size, cut.width).forward


def _fold(rng, number):
  return None if rng is None else jax.random.fold_in(rng, number)


def _joined(x, queries):
  """Blocks of groups as one row again."""
  return x.reshape(-1, *x.shape[3:])[: queries.segment.shape[0]]


def pad(x: Array, before: int, total: int) -> Array:
  """Zeros around the first axis, `total` rows in all."""
  ends = (before, total - before - x.shape[0])
  return jnp.pad(x, (ends,) + ((0, 0),) * (x.ndim - 1))
