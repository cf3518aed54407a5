"""Pearson's correlation of two quantities over a split, from means.

    r = (E[xy] - E[x] E[y]) / sqrt(var x var y),  var x = E[x^2] - E[x]^2

and 0 where one of them does not vary. Sums over a batch are float32, in whose
rounding a spread that is small beside the mean would be lost. So each quantity
is taken in two parts, x = c + f with c a multiple of 2^-8: of the coarse parts
and their products the sums are exact (over 256 rows of |x| <= 1), and what is
left, as E[x^2] = E[c^2] + E[f (x + c)], is small, and so is its rounding.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PARTS = 256
# A variance below this is rounding: float32 knows values of 1 to 6e-8.
_LEAST = 1e-9
# Means that `summarise` makes the measure of.
_NAMES = ('_x', '_y', '_xx', '_yy', '_xy')
_COARSE, _FINE = '_coarse', '_fine'


def moments(x_B: jax.Array, y_B: jax.Array) -> dict[str, jax.Array]:
  """What each example adds to the means, for `summarise`; |x|, |y| <= 1."""
  c_B, d_B = (jnp.round(_PARTS * v_B) / _PARTS for v_B in (x_B, y_B))
  f_B, g_B = x_B - c_B, y_B - d_B
  coarse = (c_B, d_B, c_B * c_B, d_B * d_B, c_B * d_B)
  fine = (
    f_B, g_B, f_B * (x_B + c_B), g_B * (y_B + d_B), f_B * y_B + c_B * g_B,
  )  # fmt: skip
  return {
    f'{name}{part}': value_B
    for part, values in ((_COARSE, coarse), (_FINE, fine))
    for name, value_B in zip(_NAMES, values, strict=True)
  }


def summarise(means: dict[str, Any]) -> dict[str, Any]:
  """Means over a split, with `pearson` in place of what it is made of."""
  found = dict(means)
  x, y, xx, yy, xy = (
    found.pop(f'{name}{_COARSE}') + found.pop(f'{name}{_FINE}')
    for name in _NAMES
  )
  return {**found, 'pearson': _ratio(xy - x * y, xx - x * x, yy - y * y)}


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float:
  """r of two rows of numbers, in float64; 0 where one does not vary."""
  x_N, y_N = (np.asarray(v_N, np.float64) for v_N in (x_N, y_N))
  x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
  return _ratio(*(float(np.mean(p)) for p in (x_N * y_N, x_N**2, y_N**2)))


def _ratio(covariance: float, variance: float, other: float) -> float:
  if variance < _LEAST or other < _LEAST:
    return 0.0
  # Rounding may lead beyond; NaN stays.
  return float(np.clip(covariance / math.sqrt(variance * other), -1, 1))
