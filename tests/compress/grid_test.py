"""Grids: rounding, groups, rules, and the gradient through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import grid as grids
from effformer.compress.grid import Grid

K, N = 10, 3
# The last tile of 4 of 10 inputs has two.
MEANS = {'ternary': 2, 'absmean': 2, 'sign': 1}
GRIDS = [
  Grid(bits, group, 4 if group == 'tile' else 0, symmetric, rule)
  for group in grids.GROUPS
  for bits, symmetric, rule in (
    *(
      (bits, symmetric, rule)
      for bits in (2, 3, 8)
      for symmetric in (True, False)
      for rule in ('extremes', 'clip')
    ),
    *((bits, True, rule) for rule, bits in MEANS.items()),
  )
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
  mean = np.abs(w).mean()
  if grid.rule == 'sign':
    return np.where(w >= 0, mean, -mean)
  if grid.rule == 'absmean':
    return np.clip(np.round(w / mean), -1, 1) * mean
  if grid.rule == 'ternary':
    is_above = np.abs(w) > 0.7 * mean
    return np.sign(w) * is_above * np.abs(w)[is_above].mean()
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
  'grid', [g for g in GRIDS if g.rule != 'clip'], ids=str
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
  assert not np.any((codes_KN - grid.low) % grid.stride)
  assert len(range(grid.low, grid.high + 1, grid.stride)) <= 2**grid.bits
  y_KN = grids.decode(codes_KN, found, grid)
  np.testing.assert_array_equal(grids.encode(y_KN, found, grid), codes_KN)


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_zeros_stay_zeros(grid):
  w_KN = weights()
  w_KN[0] = 0
  w_KN[:, 2] = 0
  y_KN = rounded(w_KN, grid)
  assert np.isfinite(y_KN).all()
  if grid.rule != 'sign':
    np.testing.assert_array_equal(y_KN[0], 0)
  # A sign says nothing of a zero beside others.
  if grid.rule != 'sign' or grid.group != 'tensor':
    np.testing.assert_array_equal(y_KN[:, 2], 0)


@pytest.mark.parametrize('bits', [2, 3])
@pytest.mark.parametrize('group', grids.GROUPS)
def test_the_best_clipping_point_is_no_worse(bits, group):
  w_KN = weights()
  # One outlier sets the scale of all.
  w_KN[3] *= 5
  tile = 4 if group == 'tile' else 0
  plain, searched = (
    rounded(w_KN, Grid(bits, group, tile, rule=rule)) - w_KN
    for rule in ('extremes', 'clip')
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


def test_the_threshold_of_a_ternary_grid_is_not_half_its_scale():
  # mean 1.7, threshold 1.19, and (4 + 1.3) / 2 of those above: 1.3 is 0.49 of
  # it, but above the threshold.
  w_KN = np.array([[4.0], [1.3], [-1.0], [0.5]], 'f4')
  grid = Grid(2, rule='ternary')
  found = grids.scales(w_KN, grid)
  np.testing.assert_allclose(found.scale, [[2.65]], rtol=1e-6)
  np.testing.assert_allclose(found.threshold, [[1.19]], rtol=1e-6)
  codes = np.ravel(grids.encode(w_KN, found, grid))
  assert codes.tolist() == [1, 1, 0, 0]
  codes = np.ravel(grids.encode(w_KN, found, Grid(2, rule='absmean')))
  assert codes.tolist() == [1, 0, 0, 0]


def test_a_sign_has_no_zero():
  w_KN = np.array([[-3.0], [0.0], [1.0], [2.0]], 'f4')
  assert rounded(w_KN, Grid(1, rule='sign')).ravel().tolist() == [
    -1.5, 1.5, 1.5, 1.5,
  ]  # fmt: skip


@pytest.mark.parametrize('rule', grids.RULES)
def test_what_is_not_a_number_is_seen(rule):
  w_KN = weights()
  w_KN[2, 1] = np.nan
  grid = Grid(MEANS.get(rule, 4), rule=rule)
  y_KN = np.asarray(grids.fake_quantise(w_KN, grid))
  assert np.isnan(y_KN[:, 1]).all()
  assert np.isfinite(y_KN[:, [0, 2]]).all()


@pytest.mark.parametrize('rule', ['sign', 'absmean', 'ternary'])
def test_rows_that_fill_up_change_no_mean(rule):
  grid = Grid(MEANS[rule], rule=rule)
  w_KN = weights()
  filled_KN = np.concatenate([w_KN, np.zeros((6, N), 'f4')])
  found = grids.scales(filled_KN, grid, np.int32(K))
  for x, y in zip(found, grids.scales(w_KN, grid), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize('grid', GRIDS[:: len(GRIDS) // 3], ids=str)
def test_each_weight_has_what_its_group_has(grid):
  shape = (K, N)
  groups = grids.num_groups(shape, grid)
  x_GN = np.arange(1.0, 1 + np.prod(groups)).reshape(groups)
  spread_KN = np.asarray(grids.spread(x_GN, shape, grid))
  parts = groups_of(spread_KN, grid)
  numbers = np.broadcast_to(grids.num_elements(shape, grid), groups)
  found = {spread_KN[part].min(): spread_KN[part].size for part in parts}
  assert found == dict(zip(x_GN.ravel(), numbers.ravel(), strict=True))
  assert all(np.ptp(spread_KN[part]) == 0 for part in parts)


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
  assert np.asarray(fake_KN).tobytes() == rounded(w_KN, grid).tobytes()


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


@pytest.mark.parametrize(
  ('rule', 'inside'),
  [
    ('sign', [0, 0, 1, 1, 1, 0]),
    # Of means, more than half a step beyond the ends is not outside.
    ('absmean', [1, 1, 1, 1, 1, 1]),
    ('ternary', [1, 1, 1, 1, 1, 1]),
  ],
)
def test_windows_of_the_rules_of_means(rule, inside):
  w_KN = np.array([[-9.0], [-2.1], [-1.9], [0.0], [2.0], [3.1]], 'f4')
  found = grids.Scales(np.full((1, 1), 2.0), np.zeros((1, 1)), 1.0)
  grid = Grid(MEANS[rule], rule=rule)
  direction = np.arange(1.0, 7.0, dtype='f4')[:, None]
  gradient = jax.grad(
    lambda w: (grids.fake_quantise(w, grid, found) * direction).sum()
  )(w_KN)
  np.testing.assert_array_equal(np.ravel(gradient), direction.ravel() * inside)


def test_scales_are_constants_of_the_gradient():
  w_KN = weights()
  gradient = jax.grad(lambda w: grids.fake_quantise(w, Grid(8)).sum())(w_KN)
  np.testing.assert_array_equal(gradient, np.ones((K, N)))


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'bits': 1}, "bits has to be 2 to 8 with rule='extremes', got 1"),
    ({'bits': 2, 'rule': 'sign'}, 'bits has to be 1 with'),
    ({'bits': 3, 'rule': 'ternary'}, 'bits has to be 2 with'),
    ({'bits': 3, 'rule': 'absmean'}, 'bits has to be 2 with'),
    ({'bits': 4, 'rule': 'other'}, "got 'other'"),
    ({'bits': 2, 'rule': 'absmean', 'symmetric': False}, 'no zero point'),
    ({'bits': 9}, 'got 9'),
    ({'bits': 4, 'group': 'row'}, "got 'row'"),
    ({'bits': 4, 'group': 'tile'}, 'tile=0 does not go'),
    ({'bits': 4, 'tile': 8}, 'tile=8 does not go'),
  ],
)
def test_what_is_no_grid(arguments, words):
  with pytest.raises(ValueError, match=words):
    Grid(**arguments)
