"""AWQ against a search by hand, on the inputs themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

from effformer import pretrained
from effformer.compress import awq, calibrate, fold, tensors
from effformer.compress import grid as grids
from effformer.compress.grid import Grid
from tests.compress.fold_test import model_of
from tests.pretrained.golden_test import folder_of, golden, outputs

# Many models are compiled.
pytestmark = pytest.mark.slow

K, L = 10, 50
WIDTHS = (3, 4)
GRIDS = (
  (Grid(3), Grid(3)),
  (Grid(3, 'tile', 4), Grid(2, 'tile', 5, symmetric=False)),
  (Grid(4, 'tensor'), Grid(3, symmetric=False)),
)


def problem(seed=0):
  """Matrices, and inputs of different sizes that go together."""
  rng = np.random.default_rng(seed)
  matrices = [rng.normal(size=(K, n)).astype('f4') for n in WIDTHS]
  x_LK = rng.normal(size=(L, K)) @ (np.eye(K) + 0.4 * np.tri(K, k=-1)).T
  return matrices, (x_LK * np.geomspace(0.1, 6, K)).astype('f4')


def error_of(s_K, matrices, plan, x_LK):
  """Of the outputs, float64."""
  total = 0.0
  for w_KN, grid in zip(matrices, plan, strict=True):
    scaled_KN = (s_K[:, None] * w_KN).astype('f4')
    rounded_KN = np.asarray(grids.fake_quantise(scaled_KN, grid), np.float64)
    lost_LN = x_LK.astype(np.float64) @ (w_KN - rounded_KN / s_K[:, None])
    total += np.square(lost_LN).sum()
  return total


def by_hand(matrices, plan, x_LK):
  mean_K = np.abs(x_LK.astype(np.float64)).mean(0)
  found = []
  for step in range(20):
    s_K = mean_K ** (step / 20)
    s_K /= np.sqrt(s_K.max() * s_K.min())
    found.append((error_of(s_K, matrices, plan, x_LK), step / 20, s_K))
  return min(found, key=lambda row: row[0]), found[0][0]


@pytest.mark.parametrize('plan', GRIDS, ids=str)
@pytest.mark.parametrize('seed', [0, 1])
def test_the_best_power_is_found(plan, seed):
  matrices, x_LK = problem(seed)
  found = awq.scales(matrices, plan, np.abs(x_LK).mean(0), x_LK.T @ x_LK)
  (error, power, s_K), plain = by_hand(matrices, plan, x_LK)
  np.testing.assert_allclose(found.power, power, atol=1e-6)
  np.testing.assert_allclose(found.s_K, s_K, rtol=1e-4)
  np.testing.assert_allclose(found.error, error, rtol=1e-3)
  np.testing.assert_allclose(found.plain, plain, rtol=1e-3)
  assert found.error <= found.plain
  np.testing.assert_allclose(found.s_K.max() * found.s_K.min(), 1, rtol=1e-4)


def test_it_helps_where_inputs_differ():
  better = 0
  for seed in range(5):
    matrices, x_LK = problem(seed)
    found = awq.scales(matrices, GRIDS[1], np.abs(x_LK).mean(0), x_LK.T @ x_LK)
    better += found.power > 0
  assert better >= 4


def test_inputs_that_are_alike_have_no_factors():
  (w_KN, _), _ = problem()
  found = awq.scales([w_KN], [Grid(3)], np.full(K, 2.0), np.eye(K))
  np.testing.assert_allclose(found.s_K, np.ones(K), rtol=1e-6)


def test_inputs_that_are_never_seen():
  matrices, x_LK = problem()
  x_LK[:, [1, 7]] = 0
  mean_K = np.abs(x_LK).mean(0)
  found = awq.scales(matrices, GRIDS[0], mean_K, x_LK.T @ x_LK)
  assert found.power > 0
  np.testing.assert_allclose(found.s_K[1], found.s_K.min(), rtol=1e-5)
  nothing = awq.scales(matrices, GRIDS[0], np.zeros(K), np.zeros((K, K)))
  np.testing.assert_array_equal(nothing.s_K, np.ones(K))
  with pytest.raises(ValueError, match='2 matrices, but 1 grids'):
    awq.scales(matrices, GRIDS[0][:1], mean_K, x_LK.T @ x_LK)


def test_a_model(tmp_path):
  """Factors of the plan's kernels only, closer outputs of the layers."""
  model = pretrained.load(folder_of('gpt2-predictor', tmp_path))
  arrays = golden('gpt2-predictor')[2]
  batch = arrays['ids'], arrays['lengths']
  moments = calibrate.collect(model.module, model.params, [batch])
  plan = tensors.uniform_plan(model.params, Grid(3, 'tile', 4))
  plan = {path: grid for path, grid in plan.items() if 'layer_1/' in path}
  factors = awq.factors(model.config, model.params, moments, plan)
  assert set(factors) == set(plan) & set(moments)
  path = 'encoder/layer_1/mixer/{}/kernel'
  np.testing.assert_array_equal(
    factors[path.format('query')], factors[path.format('value')]
  )
  flat = tensors.flatten(model.params)
  powers = []
  for place in fold.places(model.config, model.params):
    if place.kernels[0] not in factors:
      continue
    seen = moments[place.kernels[0]]
    expected = awq.scales(
      [tensors.matrix(path, flat[path]) for path in place.kernels],
      [plan[path] for path in place.kernels],
      seen.absolute_K / arrays['lengths'].sum(),
      seen.gram_KK,
    )
    powers.append(expected.power)
    errors = np.zeros(2)
    for kernel in place.kernels:
      np.testing.assert_allclose(factors[kernel], expected.s_K, rtol=1e-5)
      w_KN = np.asarray(tensors.matrix(kernel, flat[kernel]), np.float64)
      gram_KK = np.asarray(moments[kernel].gram_KK, np.float64)
      for case, s_K in enumerate((np.ones(len(w_KN)), factors[kernel])):
        scaled_KN = (w_KN * s_K[:, None]).astype('f4')
        rounded_KN = np.asarray(grids.fake_quantise(scaled_KN, plan[kernel]))
        lost_KN = w_KN - rounded_KN / s_K[:, None]
        errors[case] += np.trace(lost_KN.T @ gram_KK @ lost_KN)
    # Of all that read the same input together.
    assert errors[1] <= errors[0] * (1 + 1e-5)
  assert len(powers) == 4
  assert max(powers) > 0
  folded, left = fold.fold(model.config, model.params, factors)
  np.testing.assert_allclose(
    outputs(model._replace(params=folded), arrays),
    outputs(model, arrays),
    atol=2e-5,
  )
  small = tensors.quantise(folded, plan, factors=left)
  assert jnp.isfinite(
    outputs(model._replace(params=tensors.dequantise(small)), arrays)
  ).all()


def test_heads_with_the_same_values_are_taken_together():
  config, _, params = model_of(
    'full', {}, model__layers={'0': {'num_kv_heads': 1}}
  )
  path = 'encoder/layer_0/mixer/out/kernel'
  mean_K = np.geomspace(0.1, 9, 12).astype('f4')
  gram_KK = np.diag(mean_K**2)
  seen = calibrate.Moments(gram_KK, mean_K, 4 * mean_K, 4)
  plan = {path: Grid(3, 'tile', 4)}
  s_K = awq.factors(config, params, {path: seen}, plan)[path]
  same_K = np.tile(mean_K.reshape(2, 6).mean(0), 2)
  w_KN = tensors.flatten(params)[path].reshape(12, 12)
  expected = awq.scales([w_KN], [plan[path]], same_K, gram_KK)
  assert expected.power > 0
  np.testing.assert_allclose(s_K, expected.s_K, rtol=1e-5)
  assert not fold.fold(config, params, {path: s_K})[1]
