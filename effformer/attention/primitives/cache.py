"""The stored keys and values of a stream, on one head of one example."""

import flax.struct
import jax.numpy as jnp

from effformer.attention.heads import Head
from effformer.attention.primitives.softmax import Sites
from effformer.shapes import Array, DTypeLike


@flax.struct.dataclass
class Cache:
  """Keys and values in order of arrival; padding is not stored.

  Attributes:
    k_SK: keys, rotated where positions are rotary.
    v_SV: values.
    segment_S: int32, 0 where nothing is stored yet.
    position_S: int32, in the segment.
    count: int32 scalar, number of stored tokens.
  """

  k_SK: Array
  v_SV: Array
  segment_S: Array
  position_S: Array
  count: Array

  @property
  def is_full(self) -> Array:
    """Whether more tokens came than there is room for."""
    return self.count > self.segment_S.shape[0]


def empty(
  max_length: int, key_width: int, value_width: int, dtype: DTypeLike
) -> Cache:
  """The cache before the first token."""
  zeros_S = jnp.zeros((max_length,), jnp.int32)
  return Cache(
    jnp.zeros((max_length, key_width), dtype),
    jnp.zeros((max_length, value_width), dtype),
    zeros_S,
    zeros_S,
    jnp.zeros((), jnp.int32),
  )


def append(cache: Cache, head: Head) -> tuple[Cache, Head, Sites]:
  """Stores new tokens.

  Returns:
    The new cache; the head with all stored keys and values in the place of its
    own; where queries and stored keys stand, the index being the order of
    arrival.
  """
  max_length = cache.segment_S.shape[0]
  keep_T = head.segment_T > 0
  slot_T = cache.count + jnp.cumsum(keep_T, dtype=jnp.int32) - 1
  # Padding is written past the end, that is, nowhere.
  target_T = jnp.where(keep_T, slot_T, max_length)

  def write(stored, new):
    return stored.at[target_T].set(new.astype(stored.dtype), mode='drop')

  cache = Cache(
    write(cache.k_SK, head.k_SK),
    write(cache.v_SV, head.v_SV),
    write(cache.segment_S, head.segment_T),
    write(cache.position_S, head.position_T),
    cache.count + keep_T.sum(dtype=jnp.int32),
  )
  where = Sites(
    head.segment_T,
    cache.segment_S,
    slot_T,
    jnp.arange(max_length, dtype=jnp.int32),
    head.position_T,
    cache.position_S,
  )
  stored = head._replace(
    k_SK=cache.k_SK,
    v_SV=cache.v_SV,
    segment_S=cache.segment_S,
    position_S=cache.position_S,
  )
  return cache, stored, where
