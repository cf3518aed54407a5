"""Weights of the inputs that matter, rounded more finely.

AWQ (Lin et al. 2023, 2306.00978, section 3.2). What is lost by rounding a
weight counts as much as its input is large. With rows of W multiplied by
factors s before they are rounded, and divided after,

    W' = diag(1 / s) round(diag(s) W),      s_j = mean |X_j|^r

the step of a row is smaller by s_j, as long as the greatest weight of its group
does not grow. s is divided by sqrt(max s min s), and r is that of 0, 1/20, ...,
19/20 with the least error of the outputs on calibration texts,

    |X W - X W'|^2 = tr((W - W')^T G (W - W')),      G = X^T X

summed over the matrices that read X. Of equal errors the least r is taken; 0
is rounding to the nearest. Rounding is that of the grid, with its search of the
clipping point, if it has one. Inputs that were always 0 have the factor of the
least one that was not.

Time 20 k^2 n for each matrix.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from effformer.compress import fold, tensors
from effformer.compress import grid as grids
from effformer.compress.calibrate import Moments
from effformer.compress.grid import Grid
from effformer.shapes import Array

POINTS = 20


class Found(NamedTuple):
  """What a search has found.

  Attributes:
    s_K: factors.
    power: r.
    error: squared error of the outputs with them.
    plain: that of rounding to the nearest.
  """

  s_K: Array
  power: Array
  error: Array
  plain: Array


def scales(
  matrices: Sequence[Array],
  plan: Sequence[Grid],
  mean_K: Array,
  gram_KK: Array,
) -> Found:
  """Factors of the matrices that share an input.

  Args:
    matrices: w_KN, float32.
    plan: grid of each.
    mean_K: mean |X_j|.
    gram_KK: X^T X, sums or means.

  Raises:
    ValueError: not one grid for each matrix.
  """
  if len(matrices) != len(plan):
    raise ValueError(f'{len(matrices)} matrices, but {len(plan)} grids')
  powers_S = jnp.arange(POINTS) / POINTS
  errors_S = sum(
    _errors(w_KN, grid, mean_K, gram_KK, powers_S)
    for w_KN, grid in zip(matrices, plan, strict=True)
  )
  best = jnp.argmin(errors_S)
  return Found(
    _factor(mean_K, powers_S[best]), powers_S[best], errors_S[best], errors_S[0]
  )


def factors(
  config: ml_collections.ConfigDict,
  params: Any,
  moments: Mapping[str, Moments],
  plan: tensors.Plan,
) -> dict[str, Array]:
  """s_K of the kernels of the plan that there are moments of.

  `fold.fold` hides those that can be, `tensors.quantise` takes the others.
  Each place is searched with the others as they are in `params`.

  Args:
    config: describes the model.
    params: numbers.
    moments: of `calibrate.collect`.
    plan: grids.
  """
  flat = tensors.flatten(params)
  found = {}
  for place in fold.places(config, params):
    own = [path for path in place.kernels if path in moments and path in plan]
    if not own:
      continue
    seen = moments[own[0]]
    mean_K = fold.tied(seen.absolute_K / seen.count, place, jnp.mean)
    matrices = [tensors.matrix(path, jnp.asarray(flat[path])) for path in own]
    grids_of = [plan[path] for path in own]
    s_K = scales(matrices, grids_of, mean_K, seen.gram_KK).s_K
    found |= dict.fromkeys(own, s_K)
  return found


def _factor(mean_K, power):
  # Where nothing was seen there is no scale to choose.
  least = jnp.min(jnp.where(mean_K > 0, mean_K, jnp.inf))
  mean_K = jnp.where(mean_K > 0, mean_K, jnp.where(least < jnp.inf, least, 1.0))
  s_K = mean_K**power
  return s_K / jnp.sqrt(s_K.max() * s_K.min())


@functools.partial(jax.jit, static_argnames='grid')
def _errors(w_KN, grid, mean_K, gram_KK, powers_S):
  """Squared errors of the outputs, float32 [S]."""

  def error(power):
    s_K1 = _factor(mean_K, power)[:, None]
    scaled_KN = s_K1 * w_KN
    found = grids.scales(scaled_KN, grid)
    codes_KN = grids.encode(scaled_KN, found, grid)
    lost_KN = w_KN - grids.decode(codes_KN, found, grid) / s_K1
    return jnp.sum(lost_KN * (gram_KK @ lost_KN))

  return jax.lax.map(error, powers_S)
