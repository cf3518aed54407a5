"""Integer grids: what a group of weights is rounded to.

Symmetric, with s = max|W| / q, q = 2^(b-1) - 1:

    code = clip(round(W / s), -q, q),             W' = s code

Asymmetric, with s = (max W - min W) / (2^b - 1), z = round(-min W / s):

    code = clip(round(W / s) + z, 0, 2^b - 1),    W' = s (code - z)

Halves are rounded to even. The range of an asymmetric grid includes 0, so that
0 stays 0. Scales are of groups of a matrix [k, n], n being outputs (channels):
the whole matrix, each channel, or `tile` inputs of each channel. A group of
zeros has scale 1.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.shapes import Array

GROUPS = ('tensor', 'channel', 'tile')
# Shares of the range that a search of the clipping point tries.
CLIP_STEPS = 21
LEAST_CLIP = 0.5


@dataclasses.dataclass(frozen=True)
class Grid:
  """How numbers are rounded.

  Attributes:
    bits: 2 to 8 of each code.
    group: 'tensor', 'channel' or 'tile': what shares a scale.
    tile: inputs of a tile; 0 unless `group` is 'tile'. The last tile of a
      channel may be shorter.
    symmetric: whether the grid is symmetric about 0, and so has no zero point.
    clip_search: whether each group is clipped at the share of its range, 0.5
      to 1, that gives the least squared error.
  """

  bits: int
  group: str = 'channel'
  tile: int = 0
  symmetric: bool = True
  clip_search: bool = False

  def __post_init__(self):
    if not 2 <= self.bits <= 8:
      raise ValueError(f'bits has to be 2 to 8, got {self.bits}')
    if self.group not in GROUPS:
      raise ValueError(
        f'group has to be one of {", ".join(GROUPS)}, got {self.group!r}'
      )
    if (self.group == 'tile') != (self.tile > 0):
      raise ValueError(
        f"tile={self.tile} does not go with group={self.group!r}: group 'tile' "
        'needs a tile of 1 or more, the others 0'
      )

  @property
  def low(self) -> int:
    """The least code."""
    return 1 - 2 ** (self.bits - 1) if self.symmetric else 0

  @property
  def high(self) -> int:
    """The greatest code."""
    return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1


class Scales(NamedTuple):
  """Of the groups, float32 [G, 1] for a tensor, else [G, n].

  Attributes:
    scale: s, above 0.
    zero: z, whole numbers; 0 where the grid is symmetric.
  """

  scale: Array
  zero: Array


def scales(w_KN: Array, grid: Grid) -> Scales:
  """The scales of a matrix, from its extremes or the best clipping point."""
  w_GTN = _grouped(w_KN, grid)
  low_GN, high_GN = jnp.min(w_GTN, axis=1), jnp.max(w_GTN, axis=1)
  if not grid.clip_search:
    return _scales(low_GN, high_GN, grid)

  def error(share):
    found = _scales(share * low_GN, share * high_GN, grid)
    rounded_GTN = _decoded(_codes(w_GTN, found, grid), found)
    return jnp.sum((rounded_GTN - w_GTN) ** 2, axis=1)

  # From 1 down, so that of equal errors the unclipped one is taken.
  shares_S = jnp.linspace(1.0, LEAST_CLIP, CLIP_STEPS)
  best_GN = shares_S[jnp.argmin(jax.lax.map(error, shares_S), axis=0)]
  return _scales(best_GN * low_GN, best_GN * high_GN, grid)


def encode(w_KN: Array, found: Scales, grid: Grid) -> Array:
  """Codes, int32 [k, n], from `grid.low` to `grid.high`."""
  w_GTN = _grouped(w_KN, grid)
  return _ungrouped(_codes(w_GTN, found, grid), w_KN.shape, grid).astype(
    jnp.int32
  )


def decode(codes_KN: Array, found: Scales, grid: Grid) -> Array:
  """The numbers that codes stand for, float32 [k, n]."""
  codes_GTN = _grouped(codes_KN.astype(jnp.float32), grid)
  return _ungrouped(_decoded(codes_GTN, found), codes_KN.shape, grid)


@jax.custom_jvp
def straight_through(x: Array, rounded: Array, is_inside: Array) -> Array:
  """`rounded`, whose derivative is that of x where it is inside of the grid.

  Bengio et al. 2013, 1308.3432; outside of the range the gradient is clipped to
  0 (Hubara et al. 2016, 1602.02830).
  """
  del x, is_inside
  return rounded


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
  x, rounded, is_inside = primals
  dx = tangents[0]
  return straight_through(x, rounded, is_inside), jnp.where(is_inside, dx, 0.0)


def fake_quantise(
  w_KN: Array, grid: Grid, found: Scales | None = None
) -> Array:
  """`decode(encode(w))`, with straight-through gradients.

  Args:
    w_KN: float32.
    grid: to round to.
    found: scales, None for those of `w_KN`; they are constants.
  """
  found = scales(w_KN, grid) if found is None else found
  w_GTN = _grouped(w_KN, grid)
  rounded_GTN = _decoded(_codes(w_GTN, found, grid), found)
  steps_GTN = w_GTN / found.scale[:, None] + found.zero[:, None]
  # Half a step beyond the ends is rounded to them without being clipped.
  inside_GTN = (steps_GTN >= grid.low - 0.5) & (steps_GTN <= grid.high + 0.5)
  rounded_KN = _ungrouped(rounded_GTN, w_KN.shape, grid)
  inside_KN = _ungrouped(inside_GTN, w_KN.shape, grid)
  return straight_through(w_KN, jax.lax.stop_gradient(rounded_KN), inside_KN)


def num_groups(shape: tuple[int, int], grid: Grid) -> tuple[int, int]:
  """Shape of the scales of a matrix of this shape."""
  k, n = shape
  if grid.group == 'tensor':
    return 1, 1
  return (-(-k // grid.tile) if grid.group == 'tile' else 1), n


def _scales(low_GN, high_GN, grid):
  if grid.symmetric:
    scale_GN = jnp.maximum(-low_GN, high_GN) / grid.high
    scale_GN = jnp.where(scale_GN > 0, scale_GN, 1.0)
    return Scales(scale_GN, jnp.zeros_like(scale_GN))
  low_GN, high_GN = jnp.minimum(low_GN, 0.0), jnp.maximum(high_GN, 0.0)
  scale_GN = (high_GN - low_GN) / grid.high
  scale_GN = jnp.where(scale_GN > 0, scale_GN, 1.0)
  return Scales(scale_GN, jnp.round(-low_GN / scale_GN))


def _codes(w_GTN, found, grid):
  steps_GTN = jnp.round(w_GTN / found.scale[:, None]) + found.zero[:, None]
  return jnp.clip(steps_GTN, grid.low, grid.high)


def _decoded(codes_GTN, found):
  return (codes_GTN - found.zero[:, None]) * found.scale[:, None]


def _grouped(x_KN, grid):
  """[G, T, n]; zeros fill up a short last tile and change no scale."""
  k, n = x_KN.shape
  if grid.group == 'tensor':
    return x_KN.reshape(1, k * n, 1)
  groups, _ = num_groups((k, n), grid)
  length = grid.tile if grid.group == 'tile' else k
  padded_KN = jnp.pad(x_KN, ((0, groups * length - k), (0, 0)))
  return padded_KN.reshape(groups, length, n)


def _ungrouped(x_GTN, shape, grid):
  k, n = shape
  if grid.group == 'tensor':
    return x_GTN.reshape(k, n)
  return x_GTN.reshape(-1, n)[:k]
