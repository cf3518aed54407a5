"""Some rows of an array, at indices that may be made from data.

An index past the end stands for no row: zeros are read (padding, in a segment
array), nothing is written.
"""

import jax.numpy as jnp

from effformer.shapes import Array


def at(x: Array, index_M: Array) -> Array:
  """[T, ...] -> [M, ...]."""
  return x.at[index_M].get(mode='fill', fill_value=0)


def put(x: Array, index_M: Array, values: Array) -> Array:
  """`x` with rows of [M, ...] in place of its own, in the type of `x`."""
  return x.at[index_M].set(values.astype(x.dtype), mode='drop')


def first(segment_T: Array, position_T: Array, number: int) -> Array:
  """Where in a row of one segment its first real tokens stand, [M].

  T, past the end, for those that the row does not have.
  """
  position_M = jnp.arange(number)
  is_it_MT = position_M[:, None] == position_T[None]
  is_it_MT &= (segment_T > 0)[None]
  length = segment_T.shape[0]
  return jnp.where(is_it_MT.any(-1), is_it_MT.argmax(-1), length)
