"""Some rows of an array, at indices that may be made from data.

An index past the end stands for no row: zeros are read (padding, in a segment
array), nothing is written.
"""

from effformer.shapes import Array


def at(x: Array, index_M: Array) -> Array:
  """[T, ...] -> [M, ...]."""
  return x.at[index_M].get(mode='fill', fill_value=0)


def put(x: Array, index_M: Array, values: Array) -> Array:
  """`x` with rows of [M, ...] in place of its own, in the type of `x`."""
  return x.at[index_M].set(values.astype(x.dtype), mode='drop')
