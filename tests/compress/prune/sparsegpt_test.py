"""SparseGPT against its definition: rows leave the inverse one by one."""

import numpy as np
import pytest

from effformer.compress import grid as grids
from effformer.compress.grid import Grid
from effformer.compress.prune import masks, sparsegpt
from effformer.errors import ConfigError
from tests.compress.gptq_test import K, N, problem, rounded_row

SPARSITIES = [0.5, 0.3, (2, 4), (1, 3)]
# Blocks of which the last has fewer rows, and one that has all.
BLOCKS = [4, 10, 128]
GRIDS = [
  None, Grid(4), Grid(3, 'tile', 3), Grid(4, 'tensor', symmetric=False),
  # Means of a last tile of two.
  Grid(2, 'tile', 4, rule='ternary'),
  Grid(3, keep=2, of=4), Grid(2, 'tile', 4, rule='ternary', keep=2, of=4),
  Grid(2, 'tensor', rule='absmean', keep=1, of=3),
]  # fmt: skip


def chosen_by_hand(w, diagonal, start, sparsity, block):
  """The rows of the block that begins here: which stay."""
  step = sparsity[1] if isinstance(sparsity, tuple) else block
  rows = slice(start, min(start + step, K))
  error = (w[rows] / np.sqrt(diagonal[rows])[:, None]) ** 2
  keep = np.zeros(error.shape, bool)
  if isinstance(sparsity, tuple):
    for column in range(N):
      order = np.argsort(-error[:, column], kind='stable')
      keep[order[: sparsity[0]], column] = True
    return step, keep
  order = np.argsort(-error.ravel(), kind='stable')
  keep.ravel()[order[: keep.size - round(sparsity * keep.size)]] = True
  return step, keep


def by_definition(w_KN, gram_KK, sparsity, block, grid, damp):
  """Optimal brain surgeon, in a fixed order, float64: weights and masks."""
  w = w_KN.astype(np.float64)
  hessian = gram_KK + damp * np.diag(gram_KK).mean() * np.eye(K)
  # [i, i] of the inverse over the inputs from i on.
  diagonal = [np.linalg.inv(hessian[i:, i:])[0, 0] for i in range(K)]
  inverse = np.linalg.inv(hessian)
  out, keeps = np.zeros((K, N)), np.zeros((K, N), bool)
  step = block_start = 0
  own = grid and Grid(
    grid.bits,
    'tensor' if grid.group == 'tensor' else 'channel',
    symmetric=grid.symmetric,
    rule=grid.rule,
    keep=grid.keep,
    of=grid.of,
  )
  for i in range(K):
    if i == 0 or i == block_start + step:
      block_start = i
      step, keep = chosen_by_hand(w, np.array(diagonal), i, sparsity, block)
    if grid and i % (grid.tile or K) == 0:
      found = grids.scales(w[i : i + (grid.tile or K)].astype('f4'), own)
    keeps[i] = keep[i - block_start]
    out[i] = np.where(keeps[i], w[i], 0)
    if grid:
      out[i] = rounded_row(out[i], found, grid)[1]
    error = (w[i] - out[i]) / inverse[i, i]
    w -= np.outer(inverse[:, i], error)
    inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    # Rows that are done have no part any more.
    inverse[i], inverse[:, i] = 0, 0
    inverse[i, i] = 1
  return out, keeps


@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('sparsity', SPARSITIES, ids=str)
def test_weights_are_those_of_the_definition(sparsity, block, grid):
  if isinstance(sparsity, tuple) and block != BLOCKS[0]:
    return
  if grid and grid.keep and (grid.keep, grid.of) != sparsity:
    return
  w_KN, x_RK = problem()
  gram_KK = x_RK.T @ x_RK
  found = sparsegpt.sparsegpt(
    w_KN, gram_KK, sparsity, block=block, grid=grid, damp=0.05
  )
  w, keep = by_definition(
    w_KN, gram_KK.astype(np.float64), sparsity, block, grid, 0.05
  )
  np.testing.assert_array_equal(found.keep_KN, keep)
  np.testing.assert_allclose(found.w_KN, w, rtol=1e-3, atol=1e-4)
  assert not np.asarray(found.w_KN)[~keep].any()
  if grid is None:
    assert found.codes_KN is found.scales is None
    return
  # Codes and scales are read as those of GPTQ.
  assert found.scales.scale.shape == grids.num_groups((K, N), grid)
  decoded_KN = grids.decode(found.codes_KN, found.scales, grid)
  np.testing.assert_allclose(decoded_KN, found.w_KN, atol=1e-6)


@pytest.mark.parametrize('block', BLOCKS)
def test_the_number_that_leaves_each_block_is_exact(block):
  w_KN, x_RK = problem()
  keep_KN = sparsegpt.sparsegpt(w_KN, x_RK.T @ x_RK, 0.4, block=block).keep_KN
  for start in range(0, K, block):
    part = np.asarray(keep_KN[start : start + block])
    assert part.sum() == part.size - round(0.4 * part.size)


@pytest.mark.parametrize(('n', 'm'), [(2, 4), (1, 3), (4, 4)])
def test_n_of_every_m_stay(n, m):
  w_KN, x_RK = problem()
  keep_KN = sparsegpt.sparsegpt(w_KN, x_RK.T @ x_RK, (n, m)).keep_KN
  for start in range(0, K, m):
    counts_N = np.asarray(keep_KN[start : start + m]).sum(axis=0)
    np.testing.assert_array_equal(counts_N, min(n, K - start))


def test_independent_inputs_are_pruned_by_magnitude():
  w_KN, _ = problem()
  found = sparsegpt.sparsegpt(w_KN, 3 * np.eye(K, dtype='f4'), 0.5)
  keep_KN = masks.unstructured({'x/kernel': np.abs(w_KN)}, 0.5)['x/kernel']
  np.testing.assert_array_equal(found.keep_KN, keep_KN)
  np.testing.assert_allclose(found.w_KN, np.where(keep_KN, w_KN, 0), rtol=1e-5)


@pytest.mark.parametrize('sparsity', [0.5, (2, 4)], ids=str)
def test_outputs_are_closer_than_by_leaving_the_smallest_out(sparsity):
  better = 0
  for seed in range(5):
    w_KN, x_RK = problem(seed)
    w_new = sparsegpt.sparsegpt(w_KN, x_RK.T @ x_RK, sparsity).w_KN
    scores = {'x/kernel': np.abs(w_KN)}
    if isinstance(sparsity, tuple):
      keep = masks.n_of_m(scores, *sparsity)['x/kernel']
    else:
      keep = masks.unstructured(scores, sparsity)['x/kernel']
    errors = [
      np.square(x_RK @ (np.asarray(y_KN) - w_KN)).sum()
      for y_KN in (w_new, np.where(keep, w_KN, 0))
    ]
    better += errors[0] < errors[1]
  assert better == 5


def test_nothing_to_prune_is_nothing_changed():
  w_KN, x_RK = problem()
  for sparsity in (0.0, (3, 3)):
    found = sparsegpt.sparsegpt(w_KN, x_RK.T @ x_RK, sparsity)
    np.testing.assert_array_equal(found.w_KN, w_KN)
    assert np.asarray(found.keep_KN).all()


def test_inputs_that_are_never_seen_leave_first():
  w_KN, x_RK = problem()
  x_RK[:, [0, 4, 9]] = 0
  found = sparsegpt.sparsegpt(w_KN, x_RK.T @ x_RK, 0.3)
  assert np.isfinite(found.w_KN).all()
  keep_KN = np.asarray(found.keep_KN)
  assert not keep_KN[[0, 4, 9]].any()
  assert keep_KN.sum() == K * N - 9
  # What is never seen makes up for nothing, so the others stay as they were.
  np.testing.assert_allclose(
    np.asarray(found.w_KN)[keep_KN], w_KN[keep_KN], rtol=1e-5
  )


def test_what_cannot_be_pruned():
  w_KN, x_RK = problem()
  for sparsity in (-0.1, 1.1, (0, 4), (5, 4)):
    with pytest.raises(ConfigError, match=r'0 to 1|of 4'):
      sparsegpt.sparsegpt(w_KN, x_RK.T @ x_RK, sparsity)
  for sparsity in (0.5, (1, 4)):
    with pytest.raises(ValueError, match='has another pattern than'):
      sparsegpt.sparsegpt(
        w_KN, x_RK.T @ x_RK, sparsity, grid=Grid(4, keep=2, of=4)
      )
  with pytest.raises(ValueError, match='at least 1'):
    sparsegpt.sparsegpt(w_KN, x_RK.T @ x_RK, 0.5, block=0)
