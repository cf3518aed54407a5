"""Grids with patterns: what stays is rounded by its own scales."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import grid as grids
from effformer.compress.grid import Grid
from tests.compress.grid_test import K, N, by_hand, groups_of, rounded, weights
from tests.compress.patterns_test import stays_by_hand

# Groups of 4 of 10 inputs: the last one has two, and so has the last tile.
GRIDS = [
  Grid(bits, group, 4 if group == 'tile' else 0, rule=rule, keep=keep, of=4)
  for group in grids.GROUPS
  for bits, rule in (
    (3, 'extremes'), (3, 'clip'), (2, 'ternary'), (2, 'absmean'),
  )
  for keep in (1, 2)
]  # fmt: skip


def uneven(seed=0):
  """What leaves is of another size in each column."""
  return weights(seed) * np.array([1, 100, 0.01], 'f4')


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_what_stays_is_rounded_as_if_there_was_nothing_else(grid):
  w_KN = uneven()
  keep_KN = stays_by_hand(np.abs(w_KN), grid.keep, grid.of)
  y_KN = rounded(w_KN, grid)
  np.testing.assert_array_equal(y_KN[~keep_KN], 0)
  thin_KN = np.where(keep_KN, w_KN, 0)
  if grid.rule == 'clip':
    np.testing.assert_array_equal(y_KN, rounded(thin_KN, grid.dense))
    return
  for part in groups_of(w_KN, grid):
    own = keep_KN[part]
    np.testing.assert_allclose(
      y_KN[part][own], by_hand(w_KN[part][own], grid), rtol=1e-5, atol=1e-6
    )
  numbers = grids.num_elements((K, N), grid)
  counts = [keep_KN[part].sum() for part in groups_of(w_KN, grid)]
  groups = grids.num_groups((K, N), grid)
  np.testing.assert_array_equal(
    np.broadcast_to(numbers, groups).ravel(), counts
  )


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_fake_is_what_storing_and_reading_gives(grid):
  w_KN = uneven()
  fake_KN = jax.jit(lambda w: grids.fake_quantise(w, grid))(w_KN)
  assert np.asarray(fake_KN).tobytes() == rounded(w_KN, grid).tobytes()


@pytest.mark.parametrize('rule', ['ternary', 'absmean'])
def test_rows_that_fill_up_change_no_mean(rule):
  grid = Grid(2, rule=rule, keep=3, of=4)
  w_KN = weights()
  filled_KN = np.concatenate([w_KN, np.zeros((6, N), 'f4')])
  found = grids.scales(filled_KN, grid, np.int32(K))
  for x, y in zip(found, grids.scales(w_KN, grid), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)


# Few are compared, many are sorted.
@pytest.mark.parametrize('of', [4, 40])
@pytest.mark.parametrize('rule', ['extremes', 'clip', 'ternary', 'absmean'])
def test_what_is_not_a_number_is_seen(rule, of):
  w_KN = weights()
  w_KN[2, 1] = np.nan
  bits = 4 if rule in ('extremes', 'clip') else 2
  grid = Grid(bits, rule=rule, keep=1, of=of)
  y_KN = np.asarray(grids.fake_quantise(w_KN, grid))
  assert np.isnan(y_KN[:, 1]).any()
  assert np.isfinite(y_KN[:, [0, 2]]).all()


def test_gradients_of_those_that_left_are_as_if_they_had_stayed():
  w_KN = np.array([[-4.0], [3.7], [-3.6], [0.2], [3.4], [-3.6], [9], [1]], 'f4')
  found = grids.Scales(jnp.ones((1, 1)), jnp.zeros((1, 1)))
  direction = np.arange(1.0, 9.0, dtype='f4')[:, None]

  def gradient(grid, found):
    return jax.grad(
      lambda w: (grids.fake_quantise(w, grid, found) * direction).sum()
    )(w_KN)

  grid = Grid(3, keep=2, of=4)
  y_KN = np.ravel(grids.fake_quantise(w_KN, grid, found))
  assert y_KN.tolist() == [-3, 3, 0, 0, 0, -3, 3, 0]
  inside = np.array([0, 0, 0, 1, 1, 0, 0, 1])[:, None]
  np.testing.assert_array_equal(gradient(grid, found), direction * inside)
  # With scales of its own nothing lies outside.
  np.testing.assert_array_equal(gradient(grid, None), direction)


def test_training_can_change_which_weights_stay():
  """The greater one begins at the wrong place, and the gradient swaps them."""
  w_K1, wanted_K1 = jnp.array([[1.0], [0.9]]), np.array([[0.0], [2.0]])
  grid = Grid(8, keep=1, of=2)

  def loss(w_K1):
    return jnp.sum((grids.fake_quantise(w_K1, grid) - wanted_K1) ** 2)

  first = np.ravel(grids.fake_quantise(w_K1, grid))
  step = jax.jit(lambda w_K1: w_K1 - 0.1 * jax.grad(loss)(w_K1))
  for _ in range(40):
    w_K1 = step(w_K1)
  last = np.ravel(grids.fake_quantise(w_K1, grid))
  assert first.tolist() == [1, 0]
  np.testing.assert_allclose(last, [0, 2], atol=1e-3)


def test_without_a_pattern():
  grid = Grid(3, 'tile', 8, rule='clip', keep=2, of=4)
  assert grid.dense == Grid(3, 'tile', 8, rule='clip')
  assert grid.of_tile == Grid(3, rule='clip', keep=2, of=4)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'keep': 0}, 'got 0 of 4'),
    ({'keep': 4}, 'got 4 of 4'),
    ({'of': 0}, 'got 2 of 0'),
    ({'of': 257}, '<= 256'),
    ({'symmetric': False}, 'needs a symmetric grid'),
    ({'bits': 1, 'rule': 'sign'}, "a code for 0, not rule='sign'"),
    ({'rule': 'kmeans'}, "a code for 0, not rule='kmeans'"),
    ({'group': 'tile', 'tile': 6}, 'tile=6 is no multiple of 4'),
  ],
)
def test_what_is_no_grid(change, words):
  grid = Grid(4, keep=2, of=4)
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(grid, **change)
