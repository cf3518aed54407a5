"""Integer grids: rounding, groups, clipping, and the gradient through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import grid as grids
from effformer.compress.grid import Grid

K, N = 10, 3
# The last tile of 4 of 10 inputs has two.
GRIDS = [
  Grid(bits, group, 4 if group == 'tile' else 0, symmetric, clip_search)
  for bits in (2, 3, 8)
  for group in grids.GROUPS
  for symmetric in (True, False)
  for clip_search in (False, True)
]


def weights(seed=0, shift=0.3):
  return np.random.default_rng(seed).normal(shift, size=(K, N)).astype('f4')


def groups_of(w_KN, grid):
  """Slices of the weights that share a scale."""
  if grid.group == 'tensor':
    return [np.s_[:, :]]
  step = grid.tile or K
  return [
    np.s_[start : start + step, column : column + 1]
    for start in range(0, K, step)
    for column in range(N)
  ]


def by_hand(w, grid):
  """A group, rounded in float64 by the formulas of the module."""
  w = w.astype(np.float64)
  if grid.symmetric:
    scale = np.abs(w).max() / grid.high or 1.0
    return np.clip(np.round(w / scale), grid.low, grid.high) * scale
  low, high = min(w.min(), 0), max(w.max(), 0)
  scale = (high - low) / grid.high or 1.0
  zero = np.round(-low / scale)
  codes = np.clip(np.round(w / scale) + zero, 0, grid.high)
  return (codes - zero) * scale


def rounded(w_KN, grid):
  found = grids.scales(w_KN, grid)
  return np.asarray(grids.decode(grids.encode(w_KN, found, grid), found, grid))


@pytest.mark.parametrize(
  'grid', [g for g in GRIDS if not g.clip_search], ids=str
)
def test_each_group_is_rounded_by_the_formula(grid):
  w_KN = weights()
  w_KN[:, 1] *= 100
  y_KN = rounded(w_KN, grid)
  for part in groups_of(w_KN, grid):
    np.testing.assert_allclose(
      y_KN[part], by_hand(w_KN[part], grid), rtol=1e-5, atol=1e-6
    )
  shape = grids.scales(w_KN, grid).scale.shape
  assert shape == grids.num_groups((K, N), grid)
  assert np.prod(shape) == len(groups_of(w_KN, grid))


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_codes_are_on_the_grid_and_rounding_twice_is_rounding_once(grid):
  w_KN = weights()
  found = grids.scales(w_KN, grid)
  codes_KN = np.asarray(grids.encode(w_KN, found, grid))
  assert codes_KN.dtype == np.int32
  assert grid.low <= codes_KN.min() <= codes_KN.max() <= grid.high
  y_KN = grids.decode(codes_KN, found, grid)
  np.testing.assert_array_equal(grids.encode(y_KN, found, grid), codes_KN)


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_zeros_stay_zeros(grid):
  w_KN = weights()
  w_KN[0] = 0
  w_KN[:, 2] = 0
  y_KN = rounded(w_KN, grid)
  assert np.isfinite(y_KN).all()
  np.testing.assert_array_equal(y_KN[0], 0)
  np.testing.assert_array_equal(y_KN[:, 2], 0)


@pytest.mark.parametrize('bits', [2, 3])
@pytest.mark.parametrize('group', grids.GROUPS)
def test_the_best_clipping_point_is_no_worse(bits, group):
  w_KN = weights()
  # One outlier sets the scale of all.
  w_KN[3] *= 5
  tile = 4 if group == 'tile' else 0
  plain, searched = (
    rounded(w_KN, Grid(bits, group, tile, clip_search=search)) - w_KN
    for search in (False, True)
  )
  for part in groups_of(w_KN, Grid(bits, group, tile)):
    assert (searched[part] ** 2).sum() <= (plain[part] ** 2).sum() * (1 + 1e-6)
  assert (searched**2).sum() < (plain**2).sum()


def test_halves_are_rounded_to_even():
  w_KN = np.array([[3.0], [0.5], [1.5], [2.5], [-0.5]], 'f4')
  found = grids.scales(w_KN, Grid(3))
  assert found.scale.tolist() == [[1.0]]
  codes = grids.encode(w_KN, found, Grid(3))
  assert np.ravel(codes).tolist() == [3, 0, 2, 2, 0]


def test_finer_groups_and_more_bits_are_closer():
  w_KN = weights() * np.geomspace(1, 100, K)[:, None]
  errors = [
    ((rounded(w_KN, grid) - w_KN) ** 2).sum()
    for grid in (
      Grid(3, 'tensor'), Grid(3), Grid(3, 'tile', 4), Grid(4, 'tile', 4),
      Grid(8, 'tile', 4),
    )
  ]  # fmt: skip
  assert errors == sorted(errors, reverse=True)
  assert len(set(errors)) == len(errors)


# Through the rounding.


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_fake_is_what_storing_and_reading_gives(grid):
  w_KN = weights()
  fake_KN = jax.jit(lambda w: grids.fake_quantise(w, grid))(w_KN)
  np.testing.assert_allclose(fake_KN, rounded(w_KN, grid), rtol=1e-6)


def test_gradients_go_straight_through_where_nothing_is_clipped():
  w_KN = np.array([[-4.0], [-3.6], [-3.4], [0.2], [3.4], [3.6], [9.0]], 'f4')
  found = grids.Scales(jnp.ones((1, 1)), jnp.zeros((1, 1)))
  grid = Grid(3)
  direction = np.arange(1.0, 8.0, dtype='f4')[:, None]
  gradient = jax.grad(
    lambda w: (grids.fake_quantise(w, grid, found) * direction).sum()
  )(w_KN)
  inside = np.array([0, 0, 1, 1, 1, 0, 0])[:, None]
  np.testing.assert_array_equal(gradient, direction * inside)


def test_scales_are_constants_of_the_gradient():
  w_KN = weights()
  gradient = jax.grad(lambda w: grids.fake_quantise(w, Grid(8)).sum())(w_KN)
  np.testing.assert_array_equal(gradient, np.ones((K, N)))


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'bits': 1}, 'bits has to be 2 to 8, got 1'),
    ({'bits': 9}, 'got 9'),
    ({'bits': 4, 'group': 'row'}, "got 'row'"),
    ({'bits': 4, 'group': 'tile'}, 'tile=0 does not go'),
    ({'bits': 4, 'tile': 8}, 'tile=8 does not go'),
  ],
)
def test_what_is_no_grid(arguments, words):
  with pytest.raises(ValueError, match=words):
    Grid(**arguments)
