"""Learned step sizes.

LSQ (Esser et al. 2020, 1902.08153). A step size s of each group is a parameter
that is trained with the rest. With v = x / s and the ends Qn, Qp of the grid:

    y = s clip(round(v), Qn, Qp)
    dy/dx = 1 where Qn < v < Qp, else 0
    dy/ds = round(v) - v where Qn < v < Qp, Qn where v <= Qn, Qp where v >= Qp

The gradient of s is multiplied by 1 / sqrt(numel Qp), numel being the number of
x in the group, so that steps and weights learn at about the same rate (section
2.2). Ends are those of `Grid`: of symmetric ones Qn = -Qp, where the paper has
Qn = -Qp - 1; asymmetric ones are for numbers from 0 on, with zero point 0.
"""

import jax
import jax.numpy as jnp

from effformer.compress import grid as grids
from effformer.compress.grid import Grid, Scales
from effformer.shapes import Array

# Steps below stand for this one, so that no training step divides by 0.
LEAST_STEP = 1e-8


def initial_step(x_KN: Array, grid: Grid) -> Array:
  """2 mean|x| / sqrt(Qp) of each group, or 1 of zeros; the shape of scales.

  Args:
    x_KN: float32.
    grid: to round to.
  """
  _check(grid)
  mean_GN = grids.mean_size(x_KN, grid)
  return jnp.where(mean_GN == 0, 1.0, 2 * mean_GN / jnp.sqrt(grid.high))


def scales(step_GN: Array) -> Scales:
  """What steps are to `grid.encode` and `tensors.quantise`."""
  step_GN = jnp.maximum(step_GN, LEAST_STEP)
  return Scales(step_GN, jnp.zeros_like(step_GN))


def lsq(x_KN: Array, step_GN: Array, grid: Grid) -> Array:
  """x rounded with learned steps, float32 [k, n]; see the module.

  Args:
    x_KN: float32.
    step_GN: of the groups, as `grid.scales` has them.
    grid: to round to; of its rule nothing counts, as steps are learned, but
      that codes have to be clip(round(x / s)).

  Raises:
    ValueError: the rule has other codes, or steps another shape.
  """
  _check(grid)
  groups = grids.num_groups(x_KN.shape, grid)
  if step_GN.shape != groups:
    raise ValueError(f'steps have to be {groups}, got {step_GN.shape}')
  found = scales(jax.lax.stop_gradient(step_GN))
  codes_KN = grids.encode(x_KN, found, grid)
  rounded_KN = grids.decode(codes_KN, found, grid)
  v_KN = jax.lax.stop_gradient(x_KN) / grids.spread(
    found.scale, x_KN.shape, grid
  )
  inside_KN = (v_KN > grid.low) & (v_KN < grid.high)
  # Of codes beyond the ends the code itself, as they are clipped to them.
  slope_KN = codes_KN - jnp.where(inside_KN, v_KN, 0.0)
  number_G1 = grids.num_elements(x_KN.shape, grid)
  share_GN = jnp.broadcast_to((number_G1 * grid.high) ** -0.5, groups)
  slope_KN *= grids.spread(share_GN, x_KN.shape, grid)
  all_step_KN = grids.spread(step_GN, x_KN.shape, grid)
  return _learned(x_KN, all_step_KN, rounded_KN, inside_KN, slope_KN)


@jax.custom_jvp
def _learned(x, step, rounded, is_inside, slope):
  """`rounded`, with the derivatives for x and step that are given."""
  del x, step, is_inside, slope
  return rounded


@_learned.defjvp
def _learned_jvp(primals, tangents):
  _, _, _, is_inside, slope = primals
  dx, dstep = tangents[:2]
  return _learned(*primals), jnp.where(is_inside, dx, 0.0) + slope * dstep


def _check(grid):
  if grid.rule in ('ternary', 'sign', 'kmeans'):
    raise ValueError(
      f'no step can be learned with rule={grid.rule!r}, whose codes are not '
      "clip(round(x / s)); take 'extremes'"
    )
  if grid.keep:
    raise ValueError(
      f'no step can be learned with the pattern {grid.keep} of {grid.of}; take '
      'a grid without one'
    )
