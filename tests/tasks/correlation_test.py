"""Pearson's correlation over a split, against scipy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from effformer.tasks import correlation
from effformer.train import evaluation

SIZE = 64
STEP = jax.jit(
  evaluation.make_eval_step(
    lambda _, batch: {
      **correlation.moments(batch['x_B'], batch['y_B']),
      'loss': jnp.square(batch['x_B'] - batch['y_B']),
    }
  )
)


def over_batches(x_N, y_N):
  """As an evaluation has it; the last batch is filled up with its last row."""
  batches = []
  for start in range(0, len(x_N), SIZE):
    rows = np.minimum(np.arange(start, start + SIZE), len(x_N) - 1)
    weight_B = (np.arange(start, start + SIZE) < len(x_N)).astype('f4')
    batches.append({'x_B': x_N[rows], 'y_B': y_N[rows], 'weight_B': weight_B})
  return correlation.summarise(evaluation.evaluate(STEP, None, batches))


def quantities(count, mean, spread, seed=0):
  """Values of this mean and spread, and scores / 5 that go with them."""
  rng = np.random.default_rng(seed)
  noise_N, y_N = rng.standard_normal(count), rng.integers(0, 5001, count)
  y_N = y_N / 5000
  x_N = mean + spread * (0.6 * noise_N + 1.5 * (y_N - 0.5))
  return x_N.astype('f4'), y_N.astype('f4')


@pytest.mark.parametrize('count', [2, 63, 64, 65, 700])
@pytest.mark.parametrize('mean', [-0.3, 0.0, 0.4])
def test_it_is_that_of_scipy(count, mean):
  x_N, y_N = quantities(count, mean, 0.2)
  found = over_batches(x_N, y_N)
  x_N, y_N = x_N.astype('f8'), y_N.astype('f8')
  expected = scipy.stats.pearsonr(x_N, y_N)[0]
  assert found == pytest.approx(
    {'pearson': expected, 'loss': np.mean((x_N - y_N) ** 2), 'count': count},
    abs=1e-5,
  )
  assert correlation.pearson(x_N, y_N) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('mean', [-0.7, 0.317, 0.9, 0.994])
@pytest.mark.parametrize('is_small', ['x', 'y', 'both'])
def test_a_small_spread_is_not_lost_beside_the_mean(mean, is_small):
  """As of an encoder that gives nearly the same vector to all texts."""
  spread = 2e-3
  x_N, y_N = quantities(1379, mean, spread if is_small != 'y' else 0.1)
  if is_small != 'x':
    y_N = (0.6 + spread * (y_N - 0.5)).astype('f4')
  expected = scipy.stats.pearsonr(x_N.astype('f8'), y_N.astype('f8'))[0]
  assert 0.3 < expected < 0.8
  assert over_batches(x_N, y_N)['pearson'] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('value', [0.0, 1.0, 0.123457, 0.9999999, -0.61803])
def test_what_does_not_vary_correlates_with_nothing(value):
  x_N, y_N = quantities(200, 0.2, 0.2)
  same_N = np.full_like(x_N, value)
  for pair in ((x_N, same_N), (same_N, y_N), (same_N, same_N)):
    assert over_batches(*pair)['pearson'] == 0
    assert correlation.pearson(*pair) == 0


def test_it_ends_at_one():
  x_N, _ = quantities(300, 0.1, 0.1)
  assert over_batches(x_N, x_N)['pearson'] == pytest.approx(1, abs=1e-6)
  assert over_batches(x_N, -x_N)['pearson'] == pytest.approx(-1, abs=1e-6)
  assert all(abs(over_batches(x, x)['pearson']) <= 1 for x in (x_N, 3 * x_N))


def test_nan_is_no_score():
  x_N, y_N = quantities(70, 0.1, 0.1)
  x_N[66] = np.nan
  assert np.isnan(over_batches(x_N, y_N)['pearson'])
