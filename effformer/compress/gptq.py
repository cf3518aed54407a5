"""Rounding that makes up for its errors.

GPTQ (Frantar et al. 2022, 2210.17323).

Of a layer y = x W the error of the outputs on calibration inputs X is made
small, not that of the weights. With H = X^T X + damp * mean(diag) I, and U the
upper Cholesky factor of its inverse, H^-1 = U^T U, the rows of W (inputs) are
rounded one after the other, and the rows that are still to come take over the
error:

    e = (w_i - round(w_i)) / U_ii
    w_j <- w_j - U_ij e          for j > i

Tiles get their scales when they are reached, from what their rows are then.
An input that is always 0 has no error to make up for.

Time k^2 n for each matrix, memory k^2 + k n.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from effformer.compress import grid as grids
from effformer.compress import tensors
from effformer.compress.calibrate import Moments
from effformer.compress.grid import Grid, Scales
from effformer.compress.tensors import Plan
from effformer.shapes import Array

DAMP = 0.01


@functools.partial(jax.jit, static_argnames=('grid', 'damp'))
def gptq(
  w_KN: Array, gram_KK: Array, grid: Grid, *, damp: float = DAMP
) -> tuple[Array, Scales]:
  """Codes and scales of a matrix.

  Args:
    w_KN: float32.
    gram_KK: X^T X of its inputs, sums or means over calibration tokens.
    grid: to round to, without a pattern, for which see `prune.sparsegpt`.
    damp: share of the mean of the diagonal that is added to it.

  Returns:
    As `grids.encode` and `grids.scales`.

  Raises:
    ValueError: the grid has a pattern.
  """
  if grid.keep:
    raise ValueError(f'{grid} has a pattern; use sparsegpt')
  k, n = w_KN.shape
  upper_KK = inverse_factor(gram_KK, damp)
  length = grid.tile or k
  # Rows that fill up the last tile are 0 and touch no other.
  rest = -k % length
  w_KN = jnp.pad(w_KN, ((0, rest), (0, 0)))
  upper_KK = jnp.pad(upper_KK, ((0, rest), (0, rest)))
  upper_KK += jnp.diag(jnp.pad(jnp.zeros(k), (0, rest), constant_values=1.0))
  # A tile is rounded as a matrix of its own, row by row.
  own = grid.of_tile
  number_K = jnp.arange(k + rest)

  def tile(w_KN, start):
    own_TN = jax.lax.dynamic_slice_in_dim(w_KN, start, length)
    count = jnp.minimum(length, k - start) if grid.tile else None
    found = grids.scales(own_TN, own, count)

    def row(w_KN, i):
      w_1N, u_K = w_KN[i][None], upper_KK[i]
      codes_1N = grids.encode(w_1N, found, own)
      error_1N = (w_1N - grids.decode(codes_1N, found, own)) / u_K[i]
      later_K = jnp.where(number_K > i, u_K, 0.0)
      return w_KN - later_K[:, None] * error_1N, codes_1N[0]

    w_KN, codes_TN = jax.lax.scan(row, w_KN, start + jnp.arange(length))
    return w_KN, (codes_TN, found)

  starts = jnp.arange(0, k + rest, length)
  _, (codes_GTN, found) = jax.lax.scan(tile, w_KN, starts)
  codes_KN = codes_GTN.reshape(-1, n)[:k]
  # One row for each tile, or the rows of a codebook.
  return codes_KN, Scales(*(x.reshape(-1, x.shape[-1]) for x in found))


def inverse_factor(gram_KK: Array, damp: float) -> Array:
  """U, upper triangular, with U^T U = (X^T X + damp * mean(diag) I)^-1."""
  diagonal_K = jnp.diagonal(gram_KK)
  mean = jnp.mean(diagonal_K)
  # Of inputs that are never seen; any positive number will do.
  unseen_K = jnp.where(diagonal_K > 0, 0.0, jnp.where(mean > 0, mean, 1.0))
  hessian_KK = gram_KK + jnp.diag(damp * mean + unseen_K)
  factor = jax.scipy.linalg.cho_factor(hessian_KK, lower=True)
  inverse_KK = jax.scipy.linalg.cho_solve(factor, jnp.eye(len(diagonal_K)))
  return jnp.linalg.cholesky((inverse_KK + inverse_KK.T) / 2).T


def quantise(
  params: Any,
  plan: Plan,
  moments: Mapping[str, Moments],
  *,
  factors: Mapping[str, Array] | None = None,
  damp: float = DAMP,
  sweep: Callable[..., tuple[Array, Scales]] = gptq,
) -> Any:
  """`tensors.quantise`, by GPTQ where the inputs of a matrix are known.

  Args:
    params: of a model.
    plan: what is rounded; what is in it and not in `moments`, such as tables,
      is rounded to the nearest.
    moments: from `calibrate.collect`.
    factors: as of `tensors.quantise`. The inputs of diag(s) W are x / s, and so
      its Gram matrix is diag(1/s) X^T X diag(1/s).
    damp: see `gptq`.
    sweep: what is called as `gptq` is.

  Raises:
    ConfigError: see `tensors.quantise`.
  """
  factors = dict(factors or {})
  plain = tensors.quantise(params, plan, factors=factors)
  flat = flax.traverse_util.flatten_dict(plain, sep='/')
  numbers = flax.traverse_util.flatten_dict(params, sep='/')
  for path in set(plan) & set(moments):
    w_KN = tensors.matrix(path, jnp.asarray(numbers[path]))
    gram_KK = moments[path].gram_KK
    if path in factors:
      s_K = jnp.asarray(factors[path])
      w_KN, gram_KK = w_KN * s_K[:, None], gram_KK / jnp.outer(s_K, s_K)
    codes_KN, found = sweep(w_KN, gram_KK, plan[path], damp=damp)
    flat[path] = flat[path].replace(
      codes=codes_KN.astype(flat[path].codes.dtype),
      scale=found.scale,
      zero=found.zero,
    )
  return flax.traverse_util.unflatten_dict(flat, sep='/')
