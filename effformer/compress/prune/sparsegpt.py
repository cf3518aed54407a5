"""Pruning that makes up for its errors: SparseGPT.

Frantar & Alistarh 2023, 2301.00774. As `gptq`, with H = X^T X + damp, and U the
upper Cholesky factor of H^-1, rows of W (inputs) are visited one after the
other; what leaves a row is made up for by the rows that are still to come:

    e = (w_i - m_i w_i) / U_ii,    w_j <- w_j - U_ij e       for j > i

The mask m of a block of rows is chosen when its first row is reached, from what
the rows are then: those of lowest w^2 / U_ii^2 leave, which is the error that
optimal brain surgeon adds, over all outputs of the block (section 3.3); with n
of m the blocks are of m rows, and n stay of each output. With a grid what stays
is rounded in the same sweep (section 3.5), with scales of tiles as in `gptq`;
where the grid has a pattern they are of the weights of greatest size, as the
mask is not known when a tile begins.

An input that is always 0 leaves first, and has no error to make up for.

Time k^2 n for each matrix, memory k^2 + k n.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from effformer.compress import gptq, patterns
from effformer.compress import grid as grids
from effformer.compress.calibrate import Moments
from effformer.compress.grid import Grid, Scales
from effformer.compress.prune import masks
from effformer.compress.tensors import Plan
from effformer.errors import ConfigError
from effformer.shapes import Array

BLOCK = 128


class Pruned(NamedTuple):
  """A matrix with zeros.

  Attributes:
    w_KN: the new weights, 0 where they left.
    keep_KN: bool, which stay; a weight that stays may be rounded to 0.
    codes_KN, scales: as of `gptq`; None without a grid.
  """

  w_KN: Array
  keep_KN: Array
  codes_KN: Array | None
  scales: Scales | None


def sparsegpt(
  w_KN: Array,
  gram_KK: Array,
  sparsity: float | tuple[int, int],
  *,
  block: int = BLOCK,
  grid: Grid | None = None,
  damp: float = gptq.DAMP,
) -> Pruned:
  """Prunes a matrix, and rounds it if asked to.

  Args:
    w_KN: float32.
    gram_KK: X^T X of its inputs, sums or means over calibration tokens.
    sparsity: share of each block that leaves, rounded to whole weights; or
      (n, m), to keep n of every m inputs of an output (of a last group of
      fewer, n or all).
    block: rows that a mask is chosen for; n of m has blocks of m.
    grid: to round to; None to keep float32. A pattern that it has is that of
      `sparsity`.
    damp: share of the mean of the diagonal that is added to it.

  Raises:
    ConfigError: sparsity is no share, or not 1 <= n <= m.
    ValueError: a block has no rows, or the grid has another pattern.
  """
  if isinstance(sparsity, tuple):
    masks.check_pattern(*sparsity)
  elif not 0 <= sparsity <= 1:
    raise ConfigError(f'sparsity has to be 0 to 1, got {sparsity}.')
  if block < 1:
    raise ValueError(f'block has to be at least 1, got {block}')
  if grid and grid.keep and (grid.keep, grid.of) != sparsity:
    raise ValueError(f'{grid} has another pattern than {sparsity}')
  return _sweep(w_KN, gram_KK, sparsity, block, grid, damp)


def quantise(
  params: Any,
  plan: Plan,
  moments: Mapping[str, Moments],
  *,
  factors: Mapping[str, Array] | None = None,
  damp: float = gptq.DAMP,
) -> Any:
  """`gptq.quantise`, by SparseGPT where grids have patterns.

  What is in the plan and not in `moments` keeps the weights of greatest size.

  Args:
    params: of a model.
    plan: what is rounded.
    moments: from `calibrate.collect`.
    factors: as of `gptq.quantise`.
    damp: see `sparsegpt`.

  Raises:
    ConfigError: see `tensors.quantise`.
  """
  return gptq.quantise(
    params, plan, moments, factors=factors, damp=damp, sweep=_rounded
  )


def _rounded(w_KN, gram_KK, grid, *, damp):
  if not grid.keep:
    return gptq.gptq(w_KN, gram_KK, grid, damp=damp)
  pattern = (grid.keep, grid.of)
  found = sparsegpt(w_KN, gram_KK, pattern, grid=grid, damp=damp)
  return found.codes_KN, found.scales


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _sweep(w_KN, gram_KK, sparsity, block, grid, damp):
  k, n = w_KN.shape
  upper_KK = gptq.inverse_factor(gram_KK, damp)
  is_pattern = isinstance(sparsity, tuple)
  length = min(sparsity[1] if is_pattern else block, k)
  tile = (grid and grid.tile) or k
  # Blocks and tiles that begin in the last rows end behind them, in zeros.
  rest = max(length, tile)
  w_KN = jnp.pad(w_KN, ((0, rest), (0, 0)))
  diagonal_K = jnp.pad(jnp.diagonal(upper_KK), (0, rest), constant_values=1.0)
  seen_K = jnp.pad(jnp.diagonal(gram_KK) > 0, (0, rest))
  number_K = jnp.arange(k + rest)

  def chosen(w_KN, start):
    """Which of the rows of a block stay, [C, n]."""

    def rows(x):
      return jax.lax.dynamic_slice_in_dim(x, start, length)

    error_CN = jnp.square(rows(w_KN) / rows(diagonal_K)[:, None])
    error_CN = jnp.where(rows(seen_K)[:, None], error_CN, 0.0)
    # Rows behind the last are 0, and of equal ones the earlier stay.
    if is_pattern:
      return patterns.highest(error_CN.T, sparsity[0]).T
    size = jnp.minimum(length, k - start) * n
    stay = size - jnp.round(sparsity * size).astype(jnp.int32)
    return patterns.highest(error_CN.ravel(), stay).reshape(error_CN.shape)

  def scaled(w_KN, start):
    own_TN = jax.lax.dynamic_slice_in_dim(w_KN, start, tile)
    count = jnp.minimum(tile, k - start) if grid.tile else None
    return grids.scales(own_TN, grid.of_tile, count)

  def row(carry, i):
    w_KN, keep_CN, found = carry
    keep_CN = jax.lax.cond(
      i % length == 0, lambda: chosen(w_KN, i), lambda: keep_CN
    )
    keep_N = keep_CN[i % length]
    new_1N = jnp.where(keep_N, w_KN[i], 0.0)[None]
    codes_1N = None
    if grid is not None:
      found = jax.lax.cond(
        i % tile == 0, lambda: scaled(w_KN, i), lambda: found
      )
      own = grid.of_tile.dense
      codes_1N = grids.encode(new_1N, found, own)
      new_1N = grids.decode(codes_1N, found, own)
    u_K = jnp.pad(upper_KK[i], (0, rest))
    error_1N = (w_KN[i][None] - new_1N) / u_K[i]
    later_K = jnp.where(number_K > i, u_K, 0.0)
    after = w_KN - later_K[:, None] * error_1N, keep_CN, found
    return after, (new_1N[0], keep_N, codes_1N, found)

  start = (
    w_KN,
    jnp.zeros((length, n), bool),
    None if grid is None else scaled(w_KN, 0),
  )
  _, (new_KN, keep_KN, codes_K1N, found) = jax.lax.scan(
    row, start, jnp.arange(k)
  )
  if grid is None:
    return Pruned(new_KN, keep_KN, None, None)
  # The scales of each tile, or the codebook: those of its first row.
  found = Scales(*(x[::tile].reshape(-1, x.shape[-1]) for x in found))
  return Pruned(new_KN, keep_KN, codes_K1N[:, 0], found)
