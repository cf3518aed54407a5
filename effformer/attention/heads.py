"""Heads: what the mathematics of one head works on, and its lift to all.

Mechanisms are functions on one head of one example, arrays [T, K]. With grouped
queries (Ainslie et al. 2023, 2305.13245) H query heads share H' heads of keys
and values; query head h uses head h // (H / H') of them, and nothing is ever
repeated. A mechanism whose heads of a group decide together works on the group
instead, with queries [T, H / H', K].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from effformer.shapes import Array


class Head(NamedTuple):
  """What the mathematics of one head of one example works on.

  Attributes:
    q_TK: queries in the compute dtype.
    k_SK: keys.
    v_SV: values.
    more: further streams of the sources; a pytree of [S, ...].
    bias: weights of the relative bias, or None.
    rng: key of what is drawn in training within the mechanism, such as dropout;
      None for nothing.
    segment_T: int32, of the queries; 0 is padding.
    segment_S: int32, of the keys.
    position_T: int32, of the queries, within their segments.
    position_S: int32, of the keys.
  """

  q_TK: Array
  k_SK: Array
  v_SV: Array
  more: Any
  bias: Array | None
  rng: Array | None
  segment_T: Array
  segment_S: Array
  position_T: Array
  position_S: Array


class Call(NamedTuple):
  """Static facts of one call.

  Attributes:
    is_packed: False promises at most one segment a row.
    is_cross: keys and values come from a context.
    rows: B H, heads of examples that are computed together.
  """

  is_packed: bool
  is_cross: bool
  rows: int


# Axes of the heads, once the batch is taken off: queries have [T, H', G, K],
# what belongs to the sources has [S, H', K], parameters have [H', G, ...].
_OF_GROUPS = Head(1, 1, 1, 1, 0, 0, None, None, None, None)
_BATCH = Head(0, 0, 0, 0, None, 0, 0, 0, 0, 0)
_IN_GROUP = Head(1, None, None, None, 0, 0, None, None, None, None)


def lift(
  one: Callable,
  head: Head,
  params: Any,
  is_per_head: bool,
  by_group: bool = False,
) -> Array:
  """`one(head, params)` -> o_TV for all heads of all examples -> o_BTHV.

  Args:
    one: the mechanism.
    head: q [B, T, H, K], k, v, more [B, S, H', ...], bias [H, ...], rng [B, H],
      sites [B, T] and [B, S].
    params: of the mechanism.
    is_per_head: whether their first axis is H; else all heads share them.
    by_group: `one` works on all heads of a group: queries, outputs [T, G, K],
      keys for dropout, biases and parameters [G, ...].
  """
  groups = head.k_SK.shape[2]
  axis = 0 if is_per_head else None
  if head.q_TK.shape[2] == groups and not by_group:
    over_heads = jax.vmap(one, in_axes=(_OF_GROUPS, axis), out_axes=1)
  else:
    in_group = one
    if not by_group:
      in_group = jax.vmap(one, in_axes=(_IN_GROUP, axis), out_axes=1)
    over_heads = jax.vmap(in_group, in_axes=(_OF_GROUPS, axis), out_axes=1)
    head = _in_groups(head, groups)
    params = _split(params, 0, groups) if is_per_head else params
  o_BTHV = jax.vmap(over_heads, in_axes=(_BATCH, None))(head, params)
  return o_BTHV.reshape(*o_BTHV.shape[:2], -1, o_BTHV.shape[-1])


def lift_step(
  one: Callable,
  head: Head,
  state: Any,
  params: Any,
  is_per_head: bool,
  by_group: bool = False,
) -> tuple[Array, Any]:
  """`one(head, state, params)` -> (o_TV, state); states are [B, H', ...]."""
  groups = head.k_SK.shape[2]
  axis = 0 if is_per_head else None
  if head.q_TK.shape[2] == groups and not by_group:
    over_heads = jax.vmap(one, in_axes=(_OF_GROUPS, 0, axis), out_axes=(1, 0))
  else:
    # The state is that of keys and values, the same for the whole group.
    in_group = one
    if not by_group:
      in_group = jax.vmap(
        one, in_axes=(_IN_GROUP, None, axis), out_axes=(1, None)
      )
    over_heads = jax.vmap(
      in_group, in_axes=(_OF_GROUPS, 0, axis), out_axes=(1, 0)
    )
    head = _in_groups(head, groups)
    params = _split(params, 0, groups) if is_per_head else params
  over_batch = jax.vmap(over_heads, in_axes=(_BATCH, 0, None))
  o_BTHV, state = over_batch(head, state, params)
  return o_BTHV.reshape(*o_BTHV.shape[:2], -1, o_BTHV.shape[-1]), state


def each(one: Callable, head: Head, out_axes: Any = 1) -> Any:
  """`one(head)` for the heads of a group, in a mechanism lifted `by_group`."""
  return jax.vmap(one, in_axes=(_IN_GROUP,), out_axes=out_axes)(head)


def _in_groups(head, groups):
  return head._replace(
    q_TK=_split(head.q_TK, 2, groups),
    bias=_split(head.bias, 0, groups),
    rng=_split(head.rng, 1, groups),
  )


def _split(tree, axis, groups):
  def split(x):
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])

  return jax.tree.map(split, tree)
