"""SmoothQuant against its formula, and what it is for."""

import jax.numpy as jnp
import numpy as np
import pytest

from effformer import pretrained
from effformer.compress import calibrate, fold, int8, smooth, tensors
from effformer.compress.grid import Grid
from tests.compress.fold_test import model_of
from tests.pretrained.golden_test import folder_of, golden, outputs

K, N, L = 6, 4, 30


def problem():
  """Two matrices, and inputs of which one is far larger than the others."""
  rng = np.random.default_rng(0)
  x_LK = rng.normal(size=(L, K)).astype('f4')
  x_LK[:, 2] *= 60
  return rng.normal(size=(2, K, N)).astype('f4'), x_LK


@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.5, 1.0])
def test_the_formula(alpha):
  w_2KN, x_LK = problem()
  s_K = smooth.scales(list(w_2KN), np.abs(x_LK).max(0), alpha)
  for j in range(K):
    largest = max(abs(float(v)) for v in x_LK[:, j])
    weight = max(abs(float(v)) for w_KN in w_2KN for v in w_KN[j])
    expected = largest**alpha / weight ** (1 - alpha)
    np.testing.assert_allclose(s_K[j], expected, rtol=1e-5)


def test_with_a_half_inputs_and_weights_have_the_same_range():
  w_2KN, x_LK = problem()
  s_K = np.asarray(smooth.scales(list(w_2KN), np.abs(x_LK).max(0)))
  inputs_K = np.abs(x_LK / s_K).max(0)
  weights_K = np.abs(w_2KN * s_K[:, None]).max((0, 2))
  np.testing.assert_allclose(inputs_K, weights_K, rtol=1e-5)


def test_zeros_and_the_floor():
  largest_K = np.array([0, 1e-9, 1, 1], 'f4')
  w_KN = np.array([[1, 1], [1e4, 0], [0, 0], [1, 0]], 'f4')
  s_K = smooth.scales([w_KN], largest_K, 0.5)
  # Never seen; less than the floor; no weight; as usual.
  np.testing.assert_allclose(s_K, [1, 1e-5, 1e-5**-0.5, 1], rtol=1e-5)
  with pytest.raises(ValueError, match='from 0 to 1'):
    smooth.scales([w_KN], largest_K, 1.1)


def test_rounded_products_are_closer():
  (w_KN, _), x_LK = problem()
  errors = []
  for factors in ({}, {'kernel': smooth.scales([w_KN], np.abs(x_LK).max(0))}):
    params = {'kernel': jnp.asarray(w_KN)}
    w = tensors.quantise(params, {'kernel': Grid(8)}, factors=factors)['kernel']
    errors.append(np.square(int8.product(x_LK, w) - x_LK @ w_KN).mean())
  assert errors[1] < errors[0] / 2


@pytest.mark.parametrize(
  'name', ['bert-classifier', 'gpt2-predictor', 'vit-classifier']
)
def test_the_function_of_a_model_stays(name, tmp_path):
  model = pretrained.load(folder_of(name, tmp_path))
  arrays = golden(name)[2]
  more = [arrays['types']] if 'types' in arrays else []
  batch = (arrays['ids'], arrays['lengths'], *more)
  moments = calibrate.collect(model.module, model.params, [batch])
  factors = smooth.factors(model.config, model.params, moments)
  assert set(factors) == set(moments)
  folded, left = fold.fold(model.config, model.params, factors)
  assert len(left) < len(factors)
  # What is left is not in the function but in its codes: of 8 bits here, and
  # of as many as there are below.
  np.testing.assert_allclose(
    outputs(model._replace(params=folded), arrays),
    outputs(model, arrays),
    atol=1e-5,
  )
  # Inputs have become smaller or larger, by their factors.
  after = calibrate.collect(model.module, folded, [batch])
  for path, s_K in factors.items():
    divided_K = moments[path].largest_K / (1 if path in left else s_K)
    np.testing.assert_allclose(
      after[path].largest_K, divided_K, rtol=1e-3, atol=1e-5, err_msg=path
    )


def test_matrices_with_one_input_have_one_factor():
  config, _, params = model_of('full', {})
  flat = tensors.flatten(params)
  paths = [
    f'encoder/layer_0/mixer/{name}/kernel' for name in ('query', 'key', 'value')
  ]
  rng = np.random.default_rng(5)
  largest_K = np.abs(rng.normal(size=12)).astype('f4')
  seen = calibrate.Moments(np.eye(12), largest_K, largest_K, 1)
  factors = smooth.factors(config, params, dict.fromkeys(paths, seen), 0.3)
  assert set(factors) == set(paths)
  expected = smooth.scales(
    [tensors.matrix(path, flat[path]) for path in paths], largest_K, 0.3
  )
  for path in paths:
    np.testing.assert_allclose(factors[path], expected, rtol=1e-6)


def test_heads_with_the_same_values_are_taken_together():
  config, _, params = model_of(
    'full', {}, model__layers={'0': {'num_kv_heads': 1}}
  )
  path = 'encoder/layer_0/mixer/out/kernel'
  largest_K = np.linspace(0.5, 4, 12).astype('f4')
  seen = calibrate.Moments(np.eye(12), largest_K, largest_K, 1)
  s_HV = smooth.factors(config, params, {path: seen})[path].reshape(2, 6)
  w_HVD = np.abs(tensors.flatten(params)[path])
  largest_V = largest_K.reshape(2, 6).max(0)
  expected_V = np.sqrt(largest_V / w_HVD.max((0, 2)))
  np.testing.assert_allclose(s_HV, np.stack([expected_V] * 2), rtol=1e-5)
