"""GPTQ against its definition: rows are removed from the inverse one by one."""

import jax
import numpy as np
import pytest

from effformer.compress import calibrate, gptq, tensors
from effformer.compress import grid as grids
from effformer.compress.grid import Grid

K, N, ROWS = 10, 3, 40
GRIDS = (
  Grid(3), Grid(2, 'tensor'), Grid(4, symmetric=False), Grid(3, 'tile', 5),
  Grid(3, 'tile', 4, symmetric=False, rule='clip'),
  Grid(2, rule='absmean'), Grid(2, 'tile', 4, rule='ternary'),
  Grid(2, 'tensor', rule='ternary'), Grid(1, 'tile', 4, rule='sign'),
)  # fmt: skip


def problem(seed=0):
  """Weights, and inputs of which each depends on those before."""
  rng = np.random.default_rng(seed)
  mix = np.eye(K) + 0.6 * np.tri(K, k=-1)
  x_RK = rng.normal(size=(ROWS, K)) @ mix.T
  return rng.normal(size=(K, N)).astype('f4'), x_RK.astype('f4')


def rounded_row(w_N, found, grid):
  scale, zero, threshold = (np.asarray(x, np.float64)[0] for x in found)
  if grid.rule == 'sign':
    codes = np.where(w_N >= 0, 1, -1)
    return codes, codes * scale
  if grid.rule == 'ternary':
    codes = np.sign(w_N) * (np.abs(w_N) > threshold)
    return codes, codes * scale
  codes = np.clip(np.round(w_N / scale) + zero, grid.low, grid.high)
  return codes, (codes - zero) * scale


def by_definition(w_KN, gram_KK, grid, damp):
  """Optimal brain surgeon, in a fixed order, float64: codes."""
  w = w_KN.astype(np.float64)
  hessian = gram_KK + damp * np.diag(gram_KK).mean() * np.eye(K)
  inverse = np.linalg.inv(hessian)
  codes = np.zeros((K, N), int)
  step = grid.tile or K
  own = Grid(
    grid.bits,
    'tensor' if grid.group == 'tensor' else 'channel',
    symmetric=grid.symmetric,
    rule=grid.rule,
  )
  for i in range(K):
    if i % step == 0:
      found = grids.scales(w[i : i + step].astype('f4'), own)
    codes[i], rounded = rounded_row(w[i], found, grid)
    error = (w[i] - rounded) / inverse[i, i]
    w -= np.outer(inverse[:, i], error)
    inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    # Rows that are done have no part any more.
    inverse[i], inverse[:, i] = 0, 0
    inverse[i, i] = 1
  return codes


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_codes_are_those_of_the_definition(grid):
  w_KN, x_RK = problem()
  gram_KK = x_RK.T @ x_RK
  codes_KN, found = gptq.gptq(w_KN, gram_KK, grid, damp=0.05)
  expected = by_definition(w_KN, gram_KK.astype(np.float64), grid, 0.05)
  np.testing.assert_array_equal(codes_KN, expected)
  assert found.scale.shape == grids.num_groups((K, N), grid)
  # The scales are those that codes are read with.
  assert grids.decode(codes_KN, found, grid).shape == (K, N)


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_inputs_that_are_independent_leave_nothing_to_make_up_for(grid):
  w_KN, _ = problem()
  codes_KN, found = gptq.gptq(w_KN, np.eye(K, dtype='f4'), grid)
  plain = grids.scales(w_KN, grid)
  np.testing.assert_allclose(found.scale, plain.scale, rtol=1e-5)
  np.testing.assert_array_equal(codes_KN, grids.encode(w_KN, plain, grid))


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_outputs_are_closer_than_by_rounding_to_the_nearest(grid):
  ratios = []
  for seed in range(15):
    w_KN, x_RK = problem(seed)
    codes_KN, found = gptq.gptq(w_KN, x_RK.T @ x_RK, grid)
    plain = grids.scales(w_KN, grid)
    errors = [
      np.square(x_RK @ (np.asarray(y_KN) - w_KN)).sum()
      for y_KN in (
        grids.decode(codes_KN, found, grid),
        grids.decode(grids.encode(w_KN, plain, grid), plain, grid),
      )
    ]
    ratios.append(errors[0] / errors[1])
  # With one or two bits not each time.
  assert np.median(ratios) < 0.85


def test_the_size_of_the_sums_does_not_matter():
  w_KN, x_RK = problem()
  gram_KK = x_RK.T @ x_RK
  first, second = (
    gptq.gptq(w_KN, scale * gram_KK, Grid(3))[0] for scale in (1.0, 0.01)
  )
  np.testing.assert_array_equal(first, second)


def test_patterns_are_for_another_sweep():
  w_KN, x_RK = problem()
  with pytest.raises(ValueError, match='use sparsegpt'):
    gptq.gptq(w_KN, x_RK.T @ x_RK, Grid(3, keep=2, of=4))


@pytest.mark.parametrize('grid', [Grid(3), Grid(3, 'tile', 4)], ids=str)
def test_inputs_that_are_never_seen(grid):
  w_KN, x_RK = problem()
  x_RK[:, [0, 4, 9]] = 0
  codes_KN, found = gptq.gptq(w_KN, x_RK.T @ x_RK, grid)
  y_KN = np.asarray(grids.decode(codes_KN, found, grid))
  assert np.isfinite(y_KN).all()
  # They are rounded to the nearest, whatever else is made up for.
  plain = np.asarray(grids.fake_quantise(w_KN, Grid(3)))
  if grid.group == 'channel':
    np.testing.assert_allclose(y_KN[[0, 4, 9]], plain[[0, 4, 9]], rtol=1e-5)
  nothing, _ = gptq.gptq(w_KN, np.zeros((K, K), 'f4'), grid)
  assert jax.numpy.isfinite(nothing).all()


def test_a_model_has_each_matrix_by_its_inputs():
  w_KN, x_RK = problem()
  other_KN, _ = problem(3)
  params = {
    'a': {'kernel': w_KN, 'bias': np.ones(N, 'f4')},
    'b': {'kernel': other_KN},
    'positions': w_KN,
  }
  plan = {
    'a/kernel': Grid(3), 'b/kernel': Grid(3, 'tile', 4), 'positions': Grid(4),
  }  # fmt: skip
  gram_KK = x_RK.T @ x_RK
  found = {
    'a/kernel': calibrate.Moments(gram_KK, 0, 0, 0),
    'elsewhere/kernel': calibrate.Moments(gram_KK, 0, 0, 0),
  }
  s_K = np.linspace(0.5, 2, K).astype('f4')
  for factors in ({}, {'a/kernel': s_K}):
    small = gptq.quantise(params, plan, found, factors=factors)
    plain = tensors.quantise(params, plan, factors=factors)
    scale_K = s_K if factors else np.ones(K, 'f4')
    codes_KN, own = gptq.gptq(
      scale_K[:, None] * w_KN,
      gram_KK / np.outer(scale_K, scale_K),
      plan['a/kernel'],
    )
    kernel = small['a']['kernel']
    np.testing.assert_array_equal(kernel.codes, codes_KN)
    np.testing.assert_array_equal(kernel.scale, own.scale)
    assert kernel.codes.dtype == plain['a']['kernel'].codes.dtype
    assert np.any(kernel.codes != plain['a']['kernel'].codes)
    # The outputs, not the weights, are near.
    errors = [
      np.square(x_RK @ (tensors.dequantised(q) - w_KN)).sum()
      for q in (kernel, plain['a']['kernel'])
    ]
    assert errors[0] < errors[1]
    for path in ('b', 'positions'):
      jax.tree.map(np.testing.assert_array_equal, small[path], plain[path])
    np.testing.assert_array_equal(small['a']['bias'], params['a']['bias'])
