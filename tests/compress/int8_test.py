"""Products of integers against the same numbers as floats, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import calibrate, int8, tensors
from effformer.compress.grid import Grid

L, K, N = 5, 10, 3
GRIDS = [
  Grid(bits, group, 4 if group == 'tile' else 0, symmetric)
  for bits in (3, 8)
  for group in ('tensor', 'channel', 'tile')
  for symmetric in (True, False)
]


def weights(grid, factors=None, seed=0):
  w_KN = np.random.default_rng(seed).normal(0.4, size=(K, N)).astype('f4')
  given = None if factors is None else {'kernel': factors}
  small = tensors.quantise({'kernel': w_KN}, {'kernel': grid}, factors=given)
  return small['kernel']


def inputs(seed=1):
  x_LK = np.random.default_rng(seed).normal(size=(L, K)).astype('f4')
  x_LK *= np.geomspace(0.1, 50, L)[:, None]
  x_LK[2] = 0
  return x_LK


def numbers(w):
  """What the codes stand for, from codes, scales and zero points."""
  scale, zero = (np.asarray(x, np.float64) for x in (w.scale, w.zero))
  codes_KN, result = np.asarray(w.codes, np.float64), np.zeros((K, N))
  for k in range(K):
    for n in range(N):
      tile = k // w.grid.tile if w.grid.tile else 0
      at = (0, 0) if w.grid.group == 'tensor' else (tile, n)
      result[k, n] = (codes_KN[k, n] - zero[at]) * scale[at]
  return result


def rounded_inputs(x_LK, scale=None):
  result = np.zeros((L, K))
  for t in range(L):
    own = np.float32(np.abs(x_LK[t]).max() / np.float32(127)) or 1.0
    own = own if scale is None else scale
    result[t] = np.clip(np.round(x_LK[t] / np.float32(own)), -127, 127) * own
  return result


@pytest.mark.parametrize('grid', GRIDS, ids=str)
@pytest.mark.parametrize('scale', [None, np.float32(0.05)])
def test_the_product_is_that_of_the_rounded_numbers(grid, scale):
  x_LK, w = inputs(), weights(grid)
  y_LN = jax.jit(int8.product)(x_LK, w, scale)
  assert y_LN.dtype == jnp.float32
  expected_LN = rounded_inputs(x_LK, scale) @ numbers(w)
  np.testing.assert_allclose(y_LN, expected_LN, rtol=2e-5, atol=1e-5)
  np.testing.assert_array_equal(y_LN[2], 0)


@pytest.mark.parametrize('grid', [Grid(8), Grid(4, 'tile', 4, False)], ids=str)
def test_factors_divide_the_inputs_first(grid):
  x_LK, s_K = inputs(), np.geomspace(0.2, 5, K).astype('f4')
  w = weights(grid, s_K)
  expected_LN = rounded_inputs(x_LK / s_K) @ numbers(w)
  y_LN = int8.product(x_LK, w)
  np.testing.assert_allclose(y_LN, expected_LN, rtol=2e-5, atol=1e-5)


def test_codes_of_inputs():
  x_LK = np.array([[0.5, -2.54, 0.01], [0, 0, 0]], 'f4')
  codes_LK, scale_L1 = int8.rounded(x_LK)
  np.testing.assert_allclose(scale_L1, [[0.02], [1]], rtol=1e-6)
  assert codes_LK.tolist() == [[25, -127, 0], [0, 0, 0]]
  # What is beyond a static scale is clipped to it.
  codes_LK, _ = int8.rounded(x_LK, np.float32(0.01))
  assert codes_LK.tolist() == [[50, -127, 1], [0, 0, 0]]


@pytest.mark.parametrize(
  ('symmetric', 'inputs_at_most', 'code'),
  [(True, int8.MOST_INPUTS, 127), (False, int8.MOST_WITH_ZERO, 255)],
)
def test_sums_that_are_as_large_as_can_be(symmetric, inputs_at_most, code):
  grid = Grid(8, symmetric=symmetric)
  dtype = tensors.code_type(grid)
  number = inputs_at_most
  one_11 = jnp.ones((1, 1))

  def matrix(number):
    codes_KN = jnp.full((number, 1), code, dtype)
    return tensors.QTensor(
      codes_KN, one_11, 0 * one_11, grid, (number, 1), False
    )

  assert 127 * code * number < 2**31
  y_LN = int8.product(jnp.full((1, number), -1.0), matrix(number))
  np.testing.assert_allclose(y_LN, [[-float(code * number)]], rtol=1e-6)
  with pytest.raises(ValueError, match=f'{number + 1} inputs share a scale'):
    int8.product(jnp.ones((1, number + 1)), matrix(number + 1))


def test_integers_are_multiplied():
  """No float product of the size of the matrix is in the program."""
  for grid in (Grid(8), Grid(4, symmetric=False), Grid(4, 'tile', 4)):
    text = str(jax.make_jaxpr(int8.product)(inputs(), weights(grid)))
    lines = [line for line in text.splitlines() if 'dot_general' in line]
    assert lines
    assert all('i32' in line for line in lines)


def test_static_scales_take_the_greatest_input_to_the_last_code():
  largest_K = np.array([1, 2, 12.7, 4], 'f4')
  seen = calibrate.Moments(np.eye(4), largest_K, largest_K, 3)
  nothing = calibrate.Moments(np.eye(4), 0 * largest_K, 0 * largest_K, 3)
  factors = {'a': np.array([1, 1, 100, 0.5], 'f4')}
  found = int8.static_scales({'a': seen, 'b': seen, 'c': nothing}, factors)
  np.testing.assert_allclose(found['a'], 8 / 127, rtol=1e-6)
  np.testing.assert_allclose(found['b'], 0.1, rtol=1e-6)
  assert found['c'] == 1
