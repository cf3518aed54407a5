"""Grids: what a group of weights is rounded to.

A code stands for W' = s (code - z). The rule says what the scale s is and which
code a weight gets; halves are rounded to even.

'extremes', symmetric, with z = 0, s = max|W| / q, q = 2^(b-1) - 1:

    code = clip(round(W / s), -q, q)

'extremes', asymmetric, with s = (max W - min W) / (2^b - 1),
z = round(-min W / s); the range includes 0, so that 0 stays 0:

    code = clip(round(W / s) + z, 0, 2^b - 1)

'clip': as 'extremes' with the share of the range, 0.5 to 1, that gives the
least squared error.

'ternary', 2 bits (TWN, Li & Liu 2016, 1605.04711), with d = 0.7 mean|W| and s
the mean of those |W| that are above d:

    code = sign(W) where |W| > d, else 0

'absmean', 2 bits (BitNet b1.58, Ma et al. 2024, 2402.17764), with s = mean|W|:

    code = clip(round(W / s), -1, 1)

'sign', 1 bit (BWN, Rastegari et al. 2016, 1603.05279), with s = mean|W|:

    code = 1 where W >= 0, else -1

'kmeans', 1 to 8 bits (Han et al. 2016, 1510.00149): W' = c_code, the nearest of
2^b values c of a codebook, see `lloyd`. It stands where scales do.

Scales are of groups of a matrix [k, n], n being outputs (channels): the whole
matrix, each channel, or `tile` inputs of each channel; of codebooks there are
no tiles. A group of zeros has scale 1, with rule 'sign' 0.

With a pattern, n of every m weights of an output stay, those of greatest size
(`patterns`); the others have code 0, and scales are of those that stay.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from effformer.compress import lloyd, patterns, straight
from effformer.shapes import Array

GROUPS = ('tensor', 'channel', 'tile')
# Rules, and the bits that each has.
RULES = {
  'extremes': range(2, 9),
  'clip': range(2, 9),
  'ternary': range(2, 3),
  'absmean': range(2, 3),
  'sign': range(1, 2),
  'kmeans': range(1, 9),
}
# Shares of the range that a search of the clipping point tries.
CLIP_STEPS = 21
LEAST_CLIP = 0.5
TERNARY_THRESHOLD = 0.7
# Numbers that are added up at a time.
_FAN_IN = 8


@dataclasses.dataclass(frozen=True)
class Grid:
  """How numbers are rounded.

  Attributes:
    bits: of each code; see `RULES`.
    group: 'tensor', 'channel' or 'tile': what shares a scale.
    tile: inputs of a tile; 0 unless `group` is 'tile'. The last tile of a
      channel may be shorter.
    symmetric: whether the grid is symmetric about 0, and so has no zero point;
      a codebook has none either.
    rule: key of `RULES`; see the module. Only those of the range, 'extremes'
      and 'clip', can be asymmetric.
    keep, of: the pattern, `keep` of every `of` inputs; 0 and 0 for all. Only of
      symmetric grids that have a 0; tiles have whole groups.
  """

  bits: int
  group: str = 'channel'
  tile: int = 0
  symmetric: bool = True
  rule: str = 'extremes'
  keep: int = 0
  of: int = 0

  def __post_init__(self):
    if self.rule not in RULES:
      raise ValueError(
        f'rule has to be one of {", ".join(RULES)}, got {self.rule!r}'
      )
    bits = RULES[self.rule]
    if self.bits not in bits:
      wanted = ' to '.join(str(b) for b in sorted({bits[0], bits[-1]}))
      raise ValueError(
        f'bits has to be {wanted} with rule={self.rule!r}, got {self.bits}'
      )
    if not self.symmetric and self.rule not in ('extremes', 'clip'):
      raise ValueError(
        f'rule={self.rule!r} has no zero point: it has no symmetric=False'
      )
    if self.group not in GROUPS:
      raise ValueError(
        f'group has to be one of {", ".join(GROUPS)}, got {self.group!r}'
      )
    if (self.group == 'tile') != (self.tile > 0):
      raise ValueError(
        f"tile={self.tile} does not go with group={self.group!r}: group 'tile' "
        'needs a tile of 1 or more, the others 0'
      )
    if self.rule == 'kmeans' and self.tile:
      raise ValueError(
        "rule='kmeans' has a codebook for each tensor or channel, not for tiles"
      )
    if self.keep or self.of:
      patterns.check(self.keep, self.of, self.tile)
      if not self.symmetric or self.rule in ('sign', 'kmeans'):
        raise ValueError(
          f'a pattern needs a symmetric grid with a code for 0, not rule='
          f'{self.rule!r} with symmetric={self.symmetric}'
        )

  @property
  def low(self) -> int:
    """The least code."""
    if self.rule == 'sign':
      return -1
    if self.rule == 'kmeans':
      return 0
    return 1 - 2 ** (self.bits - 1) if self.symmetric else 0

  @property
  def high(self) -> int:
    """The greatest code."""
    if self.rule == 'sign':
      return 1
    if self.rule == 'kmeans':
      return 2**self.bits - 1
    return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

  @property
  def of_tile(self) -> 'Grid':
    """Of one tile, or of all where there are none, as a matrix of its own."""
    group = 'tensor' if self.group == 'tensor' else 'channel'
    return dataclasses.replace(self, group=group, tile=0)

  @property
  def dense(self) -> 'Grid':
    """The same without a pattern."""
    return dataclasses.replace(self, keep=0, of=0)

  @property
  def stride(self) -> int:
    """From one code to the next."""
    return 2 if self.rule == 'sign' else 1


class Scales(NamedTuple):
  """Of the groups, float32 [G, 1] for a tensor, else [G, n].

  Attributes:
    scale: s, above 0; of zeros it is 0 with rule 'sign'. With rule 'kmeans' the
      codebook, from the least value up.
    zero: z, whole numbers; 0 where the grid is symmetric.
    threshold: d of rule 'ternary', which only encoding needs; else 0.
  """

  scale: Array
  zero: Array
  threshold: Array | float = 0.0


# One program wherever it is called, so that scales have the same bits.
@functools.partial(jax.jit, static_argnames='grid')
def scales(w_KN: Array, grid: Grid, count: Array | None = None) -> Scales:
  """The scales of a matrix, by the rule of the grid.

  Args:
    w_KN: float32.
    grid: to round to.
    count: rows of each group, where some only fill the matrix up and are 0;
      None where there are none.
  """
  w_KN = _thinned(w_KN, grid)
  w_GTN = grouped(w_KN, grid)
  if grid.rule == 'extremes':
    return _of_range(jnp.min(w_GTN, axis=1), jnp.max(w_GTN, axis=1), grid)
  if grid.rule == 'clip':
    return _of_clipped_range(w_GTN, grid)
  if grid.rule == 'kmeans':
    codebook_VN = lloyd.codebook(w_GTN[0], grid.bits)
    return Scales(codebook_VN, *[jnp.zeros_like(codebook_VN)] * 2)
  return _of_means(w_GTN, mean_size(w_KN, grid, count), grid)


def encode(w_KN: Array, found: Scales, grid: Grid) -> Array:
  """Codes, int32 [k, n], from `grid.low` to `grid.high`."""
  w_GTN = grouped(_thinned(w_KN, grid), grid)
  codes_GTN = _codes(w_GTN, found, grid).astype(jnp.int32)
  return ungrouped(codes_GTN, w_KN.shape, grid)


def decode(codes_KN: Array, found: Scales, grid: Grid) -> Array:
  """The numbers that codes stand for, float32 [k, n]."""
  codes_GTN = grouped(codes_KN.astype(jnp.float32), grid)
  return ungrouped(_decoded(codes_GTN, found, grid), codes_KN.shape, grid)


def fake_quantise(
  w_KN: Array, grid: Grid, found: Scales | None = None
) -> Array:
  """`decode(encode(w))`, with straight-through gradients.

  They are 0 where a weight lies outside of the grid: with rules of the range
  more than half a step beyond its ends, as up to there rounding alone takes a
  weight to the end; with 'sign' where |W| > s (Hubara et al. 2016). 'ternary'
  and 'absmean' have no outside, as in their papers: of a scale that is a mean,
  many weights are beyond the ends, and they would never come back; nor has
  'kmeans', for the same reason. A weight that a pattern leaves out has the
  gradient it would have if it stayed, and so can come back (Zhou et al. 2021,
  2102.04010, equation 3; the decay of these weights in SR-STE is left out).

  Args:
    w_KN: float32.
    grid: to round to.
    found: scales, None for those of `w_KN`; they are constants.
  """
  if found is None:
    found = scales(jax.lax.stop_gradient(w_KN), grid)
  codes_GTN = _codes(grouped(_thinned(w_KN, grid), grid), found, grid)
  rounded_KN = ungrouped(_decoded(codes_GTN, found, grid), w_KN.shape, grid)
  w_GTN = grouped(w_KN, grid)
  inside_GTN = _is_inside(w_GTN, found, grid)
  inside_KN = ungrouped(inside_GTN, w_KN.shape, grid)
  return straight.through(w_KN, jax.lax.stop_gradient(rounded_KN), inside_KN)


def scales_shape(shape: tuple[int, int], grid: Grid) -> tuple[int, int]:
  """Shape of the scales of a matrix of this shape; [V, n] of codebooks."""
  groups, n = num_groups(shape, grid)
  return (2**grid.bits if grid.rule == 'kmeans' else groups), n


def num_groups(shape: tuple[int, int], grid: Grid) -> tuple[int, int]:
  """How many groups a matrix of this shape has, among inputs and outputs."""
  k, n = shape
  if grid.group == 'tensor':
    return 1, 1
  return (-(-k // grid.tile) if grid.group == 'tile' else 1), n


def num_elements(shape: tuple[int, int], grid: Grid) -> np.ndarray:
  """Weights of each group that stay, int [G, 1]; a short tile has fewer."""
  k, n = shape
  if grid.group == 'tensor':
    return np.array([[_num_stay(k, grid) * n]])
  length = grid.tile or k
  rows_G = np.minimum(length, k - np.arange(0, k, length))
  return _num_stay(rows_G, grid)[:, None]


def mean_size(w_KN: Array, grid: Grid, count: Array | None = None) -> Array:
  """mean|W| of each group, [G, 1] or [G, n]; `count` as of `scales`.

  With a pattern, W is 0 where it does not stay.
  """
  shape, rows = w_KN.shape, count
  number = num_elements(shape, grid) if rows is None else _num_stay(rows, grid)
  return _sum(jnp.abs(grouped(w_KN, grid))) / number


def spread(x_GN: Array, shape: tuple[int, int], grid: Grid) -> Array:
  """[k, n]: what each group has, at each of its weights."""
  if grid.group == 'tensor':
    return jnp.broadcast_to(x_GN, shape)
  return jnp.repeat(x_GN, grid.tile or shape[0], axis=0)[: shape[0]]


def grouped(x_KN: Array, grid: Grid) -> Array:
  """[G, T, n], T being what shares a scale; zeros fill up a short last tile."""
  k, n = x_KN.shape
  if grid.group == 'tensor':
    return x_KN.reshape(1, k * n, 1)
  groups, _ = num_groups((k, n), grid)
  length = grid.tile or k
  padded_KN = jnp.pad(x_KN, ((0, groups * length - k), (0, 0)))
  return padded_KN.reshape(groups, length, n)


def ungrouped(x_GTN: Array, shape: tuple[int, int], grid: Grid) -> Array:
  """The matrix of this shape; the inverse of `grouped`."""
  k, n = shape
  if grid.group == 'tensor':
    return x_GTN.reshape(k, n)
  return x_GTN.reshape(-1, n)[:k]


def _thinned(w_KN, grid):
  return patterns.largest(w_KN, grid.keep, grid.of) if grid.keep else w_KN


def _num_stay(rows, grid):
  return patterns.num_stay(rows, grid.keep, grid.of) if grid.keep else rows


def _of_range(low_GN, high_GN, grid):
  if grid.symmetric:
    scale_GN = jnp.maximum(-low_GN, high_GN) / grid.high
    scale_GN = _not_zero(scale_GN)
    zero_GN = jnp.zeros_like(scale_GN)
    return Scales(scale_GN, zero_GN, zero_GN)
  low_GN, high_GN = jnp.minimum(low_GN, 0.0), jnp.maximum(high_GN, 0.0)
  scale_GN = (high_GN - low_GN) / grid.high
  scale_GN = _not_zero(scale_GN)
  zero_GN = jnp.round(-low_GN / scale_GN)
  return Scales(scale_GN, zero_GN, jnp.zeros_like(scale_GN))


def _of_clipped_range(w_GTN, grid):
  low_GN, high_GN = jnp.min(w_GTN, axis=1), jnp.max(w_GTN, axis=1)

  def error(share):
    found = _of_range(share * low_GN, share * high_GN, grid)
    rounded_GTN = _decoded(_codes(w_GTN, found, grid), found, grid)
    return _sum((rounded_GTN - w_GTN) ** 2)

  # From 1 down, so that of equal errors the unclipped one is taken.
  shares_S = jnp.linspace(1.0, LEAST_CLIP, CLIP_STEPS)
  best_GN = shares_S[jnp.argmin(jax.lax.map(error, shares_S), axis=0)]
  return _of_range(best_GN * low_GN, best_GN * high_GN, grid)


def _of_means(w_GTN, mean_GN, grid):
  zero_GN = jnp.zeros_like(mean_GN)
  if grid.rule == 'sign':
    return Scales(mean_GN, zero_GN, zero_GN)
  if grid.rule == 'absmean':
    return Scales(_not_zero(mean_GN), zero_GN, zero_GN)
  size_GTN = jnp.abs(w_GTN)
  threshold_GN = TERNARY_THRESHOLD * mean_GN
  is_above_GTN = size_GTN > threshold_GN[:, None]
  total_GN = _sum(jnp.where(is_above_GTN, size_GTN, 0.0))
  scale_GN = total_GN / jnp.sum(is_above_GTN, axis=1)
  return Scales(jnp.where(mean_GN == 0, 1.0, scale_GN), zero_GN, threshold_GN)


def _not_zero(scale_GN):
  # What is not a number stays so and is seen.
  return jnp.where(scale_GN == 0, 1.0, scale_GN)


def _sum(x_GTN):
  """Over T, in an order that no compiler and no layout changes."""
  while x_GTN.shape[1] > 1:
    groups, length, n = x_GTN.shape
    x_GTN = jnp.pad(x_GTN, ((0, 0), (0, -length % _FAN_IN), (0, 0)))
    x_GATN = x_GTN.reshape(groups, _FAN_IN, -1, n)
    x_GTN = functools.reduce(jnp.add, jnp.moveaxis(x_GATN, 1, 0))
  return x_GTN[:, 0]


def _codes(w_GTN, found, grid):
  if grid.rule == 'kmeans':
    return lloyd.encode(w_GTN[0], found.scale)[None].astype(jnp.float32)
  if grid.rule == 'sign':
    return jnp.where(w_GTN >= 0, 1.0, -1.0)
  if grid.rule == 'ternary':
    threshold_GN = jnp.broadcast_to(found.threshold, found.scale.shape)
    is_above_GTN = jnp.abs(w_GTN) > threshold_GN[:, None]
    return jnp.where(is_above_GTN, jnp.sign(w_GTN), 0.0)
  steps_GTN = jnp.round(w_GTN / found.scale[:, None]) + found.zero[:, None]
  codes_GTN = jnp.clip(steps_GTN, grid.low, grid.high)
  # Codes that are stored have no -0.
  return jnp.where(codes_GTN == 0, 0.0, codes_GTN)


def _decoded(codes_GTN, found, grid):
  if grid.rule == 'kmeans':
    return lloyd.decode(codes_GTN[0], found.scale)[None]
  return (codes_GTN - found.zero[:, None]) * found.scale[:, None]


def _is_inside(w_GTN, found, grid):
  if grid.rule in ('ternary', 'absmean', 'kmeans'):
    return jnp.ones(w_GTN.shape, bool)
  if grid.rule == 'sign':
    return jnp.abs(w_GTN) <= found.scale[:, None]
  steps_GTN = w_GTN / found.scale[:, None] + found.zero[:, None]
  return (steps_GTN >= grid.low - 0.5) & (steps_GTN <= grid.high + 0.5)
