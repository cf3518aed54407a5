"""Ternary weights as the sum of two binary ones."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effformer.compress import grid as grids
from effformer.compress import split
from effformer.compress.grid import Grid

K, N = 10, 3
GRIDS = (
  Grid(2, 'tensor', rule='ternary'), Grid(2, rule='ternary'),
  Grid(2, 'tile', 4, rule='ternary'),
)  # fmt: skip


def weights(seed=0, shift=0.0):
  rng = np.random.default_rng(seed)
  return rng.normal(shift, size=(K, N)).astype('f4')


def ternary(w):
  """Of one group, float64."""
  w = w.astype(np.float64)
  is_above = np.abs(w) > 0.7 * np.abs(w).mean()
  return np.sign(w) * is_above * np.abs(w)[is_above].mean()


def binary(w):
  w = w.astype(np.float64)
  return np.where(w >= 0, 1, -1) * np.abs(w).mean()


def groups_of(grid, columns=N):
  if grid.group == 'tensor':
    return [np.s_[:, :]]
  tile = grid.tile or K
  return [
    np.s_[i : i + tile, n] for i in range(0, K, tile) for n in range(columns)
  ]


@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('shift', [0.0, 0.7])
def test_the_binary_values_add_up_to_the_ternary_ones(grid, shift):
  for seed in range(5):
    w_KN = weights(seed, shift)
    first_KN, second_KN, _ = (
      np.asarray(x) if not isinstance(x, grids.Scales) else x
      for x in split.split(w_KN, grid)
    )
    np.testing.assert_allclose(first_KN + second_KN, w_KN, atol=1e-6)
    for part in groups_of(grid):
      first, second = binary(first_KN[part]), binary(second_KN[part])
      wanted = ternary(w_KN[part])
      np.testing.assert_allclose(first + second, wanted, atol=1e-6)
      # Both halves have the same size.
      np.testing.assert_allclose(
        np.abs(first), np.abs(wanted).max() / 2, rtol=1e-5
      )


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_with_the_scales_that_are_given_they_do_so_bit_for_bit(grid):
  w_KN = weights()
  halves = split.split(w_KN, grid)
  one = split.binary(grid)
  assert (one.bits, one.rule, one.group) == (1, 'sign', grid.group)
  first_KN, second_KN = (
    grids.decode(grids.encode(x, halves.scales, one), halves.scales, one)
    for x in halves[:2]
  )
  np.testing.assert_array_equal(
    first_KN + second_KN, grids.fake_quantise(w_KN, grid)
  )
  # And they are those that the halves have of themselves.
  for half_KN in halves[:2]:
    np.testing.assert_allclose(
      grids.scales(half_KN, one).scale, halves.scales.scale, rtol=1e-5
    )


def test_small_weights_of_one_sign():
  """Where kinds by the sign, as in the paper, have no solution."""
  w_KN = np.full((20, 1), 0.5, 'f4') + np.linspace(0, 0.01, 20)[:, None]
  w_KN = w_KN.astype('f4')
  w_KN[3] = -8
  small = np.delete(w_KN, 3).sum()
  assert not 0 < (8 - small) / 16 < 1
  halves = split.split(w_KN, Grid(2, rule='ternary'))
  share = halves.first_KN[3, 0] / w_KN[3, 0]
  assert 0 < share <= 0.5
  # The greatest of the zeros in the first half, the next in the second.
  assert halves.first_KN[19, 0] > 0 > halves.second_KN[19, 0]
  assert halves.first_KN[18, 0] < 0 < halves.second_KN[18, 0]
  total = binary(np.asarray(halves.first_KN)) + binary(
    np.asarray(halves.second_KN)
  )
  np.testing.assert_allclose(total, ternary(w_KN), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
  st.lists(
    st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
    min_size=7,
    max_size=7,
  )
)
def test_whatever_the_weights_signs_agree_or_differ(numbers):
  w_KN = np.array(numbers, 'f4')[:, None]
  grid = Grid(2, rule='ternary')
  halves = split.split(w_KN, grid)
  codes_KN = grids.encode(w_KN, grids.scales(w_KN, grid), grid)
  signs = [np.where(np.asarray(x) >= 0, 1, -1) for x in halves[:2]]
  np.testing.assert_array_equal(signs[0] + signs[1], 2 * codes_KN)


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_a_dense_layer_of_two_binary_halves(grid):
  """Their outputs, added, are those of the ternary layer."""
  kernel_KN, bias_N = weights(), weights(seed=1)[0]
  x_BK = weights(seed=2)[:, :2].T
  layer = split.dense(kernel_KN, bias_N, grid)
  assert layer.kernel_KM.shape == (K, 2 * N)
  assert layer.bias_M.shape == (2 * N,)
  one = split.binary(grid)
  assert layer.scales.scale.shape == grids.num_groups((K, 2 * N), one)
  wanted_BN = x_BK @ np.asarray(grids.fake_quantise(kernel_KN, grid)) + bias_N
  for found in (None, layer.scales):
    binary_KM = grids.fake_quantise(layer.kernel_KM, one, found)
    y_BM = x_BK @ np.asarray(binary_KM) + np.asarray(layer.bias_M)
    np.testing.assert_allclose(y_BM[:, :N] + y_BM[:, N:], wanted_BN, atol=1e-5)


def test_a_group_of_zeros_and_one_without():
  w_KN = weights()
  w_KN[:, 1] = 0
  w_KN[:, 2] = np.where(np.arange(K) % 2, 1, -1.5)
  grid = Grid(2, rule='ternary')
  halves = jax.jit(split.split, static_argnums=1)(w_KN, grid)
  one = split.binary(grid)
  with jax.debug_nans(True):
    split.split(w_KN, grid)
  total_KN = sum(grids.fake_quantise(x, one) for x in halves[:2])
  expected_KN = grids.fake_quantise(w_KN, grid)
  np.testing.assert_allclose(total_KN, expected_KN, atol=1e-6)


def test_other_rules_are_refused():
  for grid in (Grid(2), Grid(2, rule='absmean'), Grid(1, rule='sign')):
    with pytest.raises(ValueError, match="only rule 'ternary'"):
      split.split(weights(), grid)
  with pytest.raises(ValueError, match='has a pattern'):
    split.split(weights(), Grid(2, rule='ternary', keep=2, of=4))
