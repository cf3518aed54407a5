"""Learned steps: values and gradients by the formulas of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import grid as grids
from effformer.compress import lsq
from effformer.compress.grid import Grid

K, N = 10, 3
GRIDS = (
  Grid(2, 'tensor'), Grid(3), Grid(2, 'tile', 4), Grid(3, symmetric=False),
)  # fmt: skip


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype('f4')


def groups_of(grid):
  """Slices of the weights of each group, in the order of the steps."""
  if grid.group == 'tensor':
    return [np.s_[:, :]]
  tile = grid.tile or K
  return [np.s_[i : i + tile, n] for i in range(0, K, tile) for n in range(N)]


def by_hand(x, s, g, low, high):
  """Value, gradient of x, gradient of s: of one group, one by one."""
  y, dx, ds = [], [], 0.0
  for x_i, g_i in zip(x.ravel(), g.ravel(), strict=True):
    v = float(x_i) / s
    y.append(s * min(max(np.round(v), low), high))
    dx.append(g_i if low < v < high else 0.0)
    slope = low if v <= low else high if v >= high else np.round(v) - v
    ds += float(g_i) * slope / np.sqrt(x.size * high)
  return np.reshape(y, x.shape), np.reshape(dx, x.shape), ds


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_value_and_gradients_are_those_of_the_paper(grid):
  x_KN, g_KN = 2 * normal(K, N), normal(K, N, seed=1)
  groups = grids.num_groups((K, N), grid)
  step_GN = 0.4 + np.abs(normal(*groups, seed=2))
  y_KN, pull = jax.vjp(lambda x, s: lsq.lsq(x, s, grid), x_KN, step_GN)
  dx_KN, dstep_GN = pull(g_KN)
  parts = groups_of(grid)
  assert len(parts) == np.prod(groups)
  for part, s, ds in zip(
    parts, step_GN.ravel(), np.ravel(dstep_GN), strict=True
  ):
    wanted = by_hand(x_KN[part], s, g_KN[part], grid.low, grid.high)
    np.testing.assert_allclose(y_KN[part], wanted[0], rtol=1e-6)
    np.testing.assert_array_equal(dx_KN[part], wanted[1])
    np.testing.assert_allclose(ds, wanted[2], rtol=1e-4, atol=1e-6)


def test_the_ends_themselves_are_outside():
  # v is -3, -2.9, 3, 3.1; Qp is 3.
  x_KN = np.array([[-6.0], [-5.8], [6.0], [6.2]], 'f4')
  for i, (dx, ds) in enumerate([(0, -3), (1, -0.1), (0, 3), (0, 3)]):
    gradient = jax.grad(
      lambda x, s, i=i: lsq.lsq(x, s, Grid(3))[i, 0], argnums=(0, 1)
    )(x_KN, np.full((1, 1), 2.0, 'f4'))
    assert gradient[0][i, 0] == dx
    np.testing.assert_allclose(gradient[1] * np.sqrt(12), [[ds]], rtol=1e-5)


def test_the_first_step_is_that_of_the_paper():
  x_KN = normal(K, N)
  x_KN[:, 2] = 0
  step_GN = lsq.initial_step(x_KN, Grid(4, 'tile', 4))
  for (tile, n), step in np.ndenumerate(np.asarray(step_GN)):
    mean = np.abs(x_KN[tile * 4 : tile * 4 + 4, n]).mean()
    np.testing.assert_allclose(step, 2 * mean / np.sqrt(7) or 1, rtol=1e-6)


def test_steps_that_are_learned_are_closer_than_the_first_ones():
  x_KN, grid = normal(64, 2), Grid(3)
  error = jax.jit(lambda s: jnp.sum((lsq.lsq(x_KN, s, grid) - x_KN) ** 2))
  slope = jax.jit(jax.grad(error))
  step_GN = first_GN = 3 * lsq.initial_step(x_KN, grid)
  for _ in range(100):
    step_GN = step_GN - 0.02 * slope(step_GN)
  # The best of many fixed ones, for each column.
  best = sum(
    min(
      np.square(np.clip(np.round(x / s), -3, 3) * s - x).sum()
      for s in np.linspace(0.1, 2, 200)
    )
    for x in x_KN.T
  )
  assert error(step_GN) < 1.1 * best < 0.5 * error(first_GN)


@pytest.mark.parametrize('step', [0.0, -1.0])
def test_a_step_that_is_not_above_0_can_recover(step):
  x_KN = normal(K, N)
  step_GN = np.full((1, N), step, 'f4')
  y_KN, pull = jax.vjp(lambda s: lsq.lsq(x_KN, s, Grid(3)), step_GN)
  assert np.abs(y_KN).max() <= 3 * lsq.LEAST_STEP
  # Towards x all steps have to grow.
  assert (pull(np.asarray(y_KN - x_KN))[0] < 0).all()


@pytest.mark.parametrize(
  'grid', [Grid(2, rule='ternary'), Grid(1, rule='sign')], ids=str
)
def test_rules_whose_codes_are_not_of_a_step(grid):
  for call in (
    lambda: lsq.initial_step(normal(K, N), grid),
    lambda: lsq.lsq(normal(K, N), np.ones((1, N)), grid),
  ):
    with pytest.raises(ValueError, match='no step can be learned with rule'):
      call()
  with pytest.raises(ValueError, match='with the pattern 2 of 4'):
    lsq.initial_step(normal(K, N), Grid(3, keep=2, of=4))
  with pytest.raises(ValueError, match=r'have to be \(1, 3\), got \(3,\)'):
    lsq.lsq(normal(K, N), np.ones(3), Grid(3))
