"""The alphabet of dimensions, and what every mixer is told about its tokens.

Arrays carry their shape in the name, one letter a dimension (`x_BTD`); einsum
letters are the same in lower case. A new letter is a new row of this table.

    B  batch: examples
    T  query length: tokens that are asked for (with self attention, all)
    S  source length: tokens that are attended to
    D  model width
    H  heads
    K  width of queries and keys of one head
    V  width of values of one head
    F  width of the feed-forward layer
    M  features, landmarks, rank
    W  window
    N  blocks, chunks
    C  tokens of one block or chunk; classes (a file says which)
    Y  vocabulary
    1  a dimension of one

Masks are true where something is kept.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

Array = jax.Array

__all__ = ['Array', 'ArrayLike', 'DTypeLike', 'Tokens']


@flax.struct.dataclass
class Tokens:
  """Which tokens are real, which may see each other, and where they stand.

  Attributes:
    segment_BT: int32. 0 is padding. Tokens of a row with equal ids may see
      each other. A segment does not come back: once another id followed, its
      id does not occur again in the row. Padding may stand anywhere.
    position_BT: int32, >= 0, tokens since the start of the segment.
    is_packed: static. False promises at most one segment a row, with id 1,
      which lets a mechanism take a cheaper path. True (the default) is
      always right.
    step: int32 scalar, number of training steps so far, for what a mechanism
      draws anew on a schedule; None outside of training.
  """

  segment_BT: Array
  position_BT: Array
  step: Array | None = None
  is_packed: bool = flax.struct.field(pytree_node=False, default=True)

  @classmethod
  def from_lengths(cls, lengths_B: ArrayLike, num_positions: int) -> 'Tokens':
    """Rows of one segment, padded on the right.

    Args:
      lengths_B: integers, number of real tokens of each row. Below 0 counts
        as 0, above `num_positions` as `num_positions`.
      num_positions: T, length of the padded rows.

    Returns:
      Tokens with positions 0, 1, ... T-1 and segment 1 where real.

    Raises:
      ValueError: if `lengths_B` is not one-dimensional.
    """
    lengths_B = jnp.asarray(lengths_B)
    if lengths_B.ndim != 1:
      raise ValueError(
        f'lengths must have 1 dimension, got {lengths_B.ndim}: '
        f'{lengths_B.shape}'
      )
    index_BT = jnp.broadcast_to(
      jnp.arange(num_positions, dtype=jnp.int32)[None],
      (lengths_B.shape[0], num_positions),
    )
    segment_BT = (index_BT < lengths_B[:, None]).astype(jnp.int32)
    return cls(segment_BT, index_BT, is_packed=False)

  @classmethod
  def from_segments(cls, segment_BT: ArrayLike) -> 'Tokens':
    """Packed rows; positions are counted from the first token of each segment.

    Args:
      segment_BT: integers, 0 is padding. Padding inside a segment is not
        counted, and has the position of the real token before it.

    Returns:
      Tokens with `is_packed`.

    Raises:
      ValueError: if `segment_BT` is not two-dimensional.
    """
    segment_BT = jnp.asarray(segment_BT, jnp.int32)
    if segment_BT.ndim != 2:
      raise ValueError(
        f'segments must have 2 dimensions, got {segment_BT.ndim}: '
        f'{segment_BT.shape}'
      )
    keep_BT = segment_BT > 0
    count_BT = jnp.cumsum(keep_BT, axis=-1, dtype=jnp.int32)
    index_BT = jnp.broadcast_to(
      jnp.arange(segment_BT.shape[-1], dtype=jnp.int32)[None],
      segment_BT.shape,
    )
    # The id of the last real token so far, carried over padding.
    real_BT = jax.lax.cummax(jnp.where(keep_BT, index_BT, -1), axis=1)
    live_BT = jnp.where(
      real_BT >= 0,
      jnp.take_along_axis(segment_BT, jnp.maximum(real_BT, 0), axis=-1),
      0,
    )
    previous_BT = jnp.pad(live_BT[:, :-1], ((0, 0), (1, 0)))
    first_BT = keep_BT & (live_BT != previous_BT)
    start_BT = jax.lax.cummax(jnp.where(first_BT, count_BT, 1), axis=1)
    return cls(segment_BT, jnp.maximum(count_BT - start_BT, 0))

  def behind(self, number: int) -> 'Tokens':
    """These tokens, each row's behind so many more of the same segment.

    The new ones are real in rows that have real tokens. For one segment a row.
    """
    is_empty_B1 = ~self.keep_BT.any(axis=1, keepdims=True)
    index_BM = jnp.broadcast_to(
      jnp.arange(number, dtype=jnp.int32)[None],
      (self.segment_BT.shape[0], number),
    )
    new_BM = jnp.where(is_empty_B1, 0, jnp.ones_like(index_BM))
    segment_BT = jnp.concatenate([new_BM, self.segment_BT], axis=1)
    position_BT = jnp.concatenate([index_BM, self.position_BT + number], axis=1)
    return self.replace(segment_BT=segment_BT, position_BT=position_BT)

  @property
  def keep_BT(self) -> Array:
    """bool, true where the token is real."""
    return self.segment_BT > 0
