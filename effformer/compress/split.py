"""From ternary weights to twice as many binary ones.

Ternary weight splitting of BinaryBERT (Bai et al. 2021, 2012.15701): a binary
model that starts as good as a ternary one of half its width. A latent weight w
becomes u + v = w, whose binary values add up to the ternary value of w. With
ternary codes c, their scale s, n weights of a group of which z have code 0:

    u = a w,                  v = (1 - a) w          where c != 0
    u = w + b sign(w),        v = -b sign(w)         where c = 0, first kind
    u = -b sign(w),           v = w + b sign(w)      where c = 0, second kind

    b = (n s - sum|w|) / 2 z,  sign(0) = 1
    a = 1/2 + (S2 - S1) / 2 S0

with S0, S1 and S2 the sums of |w| where c != 0, of the first and second kind.
Then mean|u| = mean|v| = s / 2, signs agree where c != 0 and differ where c = 0.
In the paper zeros with w > 0 are of the first kind. But where small weights are
mostly of one sign, a is then not between 0 and 1, and signs do not agree. Here
the kinds take turns, from the greatest |w| with c = 0 down: S1 - S2 is at most
one |w|, which is less than any with c != 0, so that 0 < a <= 1/2.

A dense layer [k, n] becomes one of [k, 2n], u beside v, and its two halves of
outputs are added before anything else is done to them. Each half has half of
the bias. A table has twice as many vectors, and those of i and of n + i are
added.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from effformer.compress import grid as grids
from effformer.compress.grid import Grid, Scales
from effformer.shapes import Array


class Halves(NamedTuple):
  """Of a matrix of latent ternary weights.

  Attributes:
    first_KN, second_KN: latent binary weights, u and v.
    scales: s / 2 of the ternary scales. They are those of both halves, but for
      the last bits of a mean.
  """

  first_KN: Array
  second_KN: Array
  scales: Scales


class Dense(NamedTuple):
  """A dense layer of which the outputs n and N + n are added, M = 2N.

  Attributes:
    kernel_KM: latent binary weights.
    bias_M: half of the bias, twice.
    scales: of the kernel, as of `Halves`.
  """

  kernel_KM: Array
  bias_M: Array
  scales: Scales


def binary(grid: Grid) -> Grid:
  """The grid of the halves, with groups as of the ternary grid."""
  return dataclasses.replace(grid, bits=1, rule='sign')


def ternary(grid: Grid) -> Grid:
  """The grid to split from, with groups as of the binary grid."""
  return dataclasses.replace(grid, bits=2, rule='ternary')


def split(w_KN: Array, grid: Grid) -> Halves:
  """Two matrices whose binary values add up to the ternary ones of `w_KN`.

  Args:
    w_KN: latent weights, float32.
    grid: of rule 'ternary', without a pattern.

  Raises:
    ValueError: the grid has another rule, or a pattern.
  """
  # Of it the zeros are not the smallest weights.
  if grid.keep:
    raise ValueError(f'{grid} has a pattern, and cannot be split')
  if grid.rule != 'ternary':
    raise ValueError(f"only rule 'ternary' can be split, got {grid.rule!r}")
  found = grids.scales(w_KN, grid)
  size_KN = jnp.abs(w_KN)
  is_zero_KN = grids.encode(w_KN, found, grid) == 0
  is_first_KN = is_zero_KN & _is_even(size_KN, is_zero_KN, grid)

  def mean(where_KN, x_KN=size_KN):
    return grids.mean_size(jnp.where(where_KN, x_KN, 0.0), grid)

  def spread(x_GN):
    return grids.spread(x_GN, w_KN.shape, grid)

  share_GN = mean(is_zero_KN, jnp.ones_like(w_KN))
  excess_GN = found.scale - grids.mean_size(w_KN, grid)
  offset_GN = excess_GN / 2 / jnp.where(share_GN == 0, 1.0, share_GN)
  above_GN = mean(~is_zero_KN)
  apart_GN = mean(is_zero_KN & ~is_first_KN) - mean(is_first_KN)
  half_GN = 0.5 + apart_GN / 2 / jnp.where(above_GN == 0, 1.0, above_GN)

  offset_KN = spread(offset_GN) * jnp.where(w_KN >= 0, 1.0, -1.0)
  zero_KN = jnp.where(is_first_KN, w_KN + offset_KN, -offset_KN)
  first_KN = jnp.where(is_zero_KN, zero_KN, spread(half_GN) * w_KN)
  other_KN = jnp.where(is_first_KN, -offset_KN, w_KN + offset_KN)
  second_KN = jnp.where(is_zero_KN, other_KN, w_KN - first_KN)
  none_GN = jnp.zeros_like(found.scale)
  return Halves(first_KN, second_KN, Scales(found.scale / 2, none_GN, none_GN))


def dense(kernel_KN: Array, bias_N: Array, grid: Grid) -> Dense:
  """A dense layer of binary weights in place of one of ternary weights.

  Args:
    kernel_KN: latent weights, float32.
    bias_N: its bias.
    grid: of rule 'ternary'; that of the new kernel is `binary(grid)`.

  Raises:
    ValueError: see `split`.
  """
  first_KN, second_KN, found = split(kernel_KN, grid)
  if grid.group != 'tensor':
    found = Scales(*(jnp.concatenate([x, x], axis=1) for x in found))
  return Dense(
    jnp.concatenate([first_KN, second_KN], axis=1),
    jnp.concatenate([bias_N, bias_N]) / 2,
    found,
  )


def _is_even(size_KN, is_zero_KN, grid):
  """Of the zeros of a group the 1st, 3rd ... greatest."""
  size_KN = jnp.where(is_zero_KN, size_KN, -1.0)
  order_GTN = jnp.argsort(-grids.grouped(size_KN, grid), axis=1)
  rank_GTN = jnp.argsort(order_GTN, axis=1)
  return grids.ungrouped(rank_GTN % 2 == 0, size_KN.shape, grid)
