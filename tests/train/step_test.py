"""The training step: parts of a batch, keys, the guard, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.train import optimiser, state, step
from tests.train.tiny_run import tiny_config

TRAIN = tiny_config(train__weight_decay=0.1, train__clip_norm=1.0).train
TRANSFORM = optimiser.build(TRAIN)
RATE = optimiser.learning_rate(TRAIN)
B = 8


def init(key):
  return {'kernel': jax.random.normal(key, (3, 2)), 'bias': jnp.zeros(2)}


def objective(params, batch, key, step):
  """Least squares; `noise` and its square show which keys were drawn."""
  y_BC = batch['x_BD'] @ params['kernel'] + params['bias'][None]
  error_B = jnp.sum((y_BC - batch['y_BC']) ** 2, axis=-1)
  noise = jax.random.uniform(key)
  return jnp.mean(error_B), {'noise': noise, 'square': noise**2}


def make(accumulate_steps=1, seed=0, objective=objective):
  return jax.jit(
    step.make_train_step(
      objective,
      TRANSFORM,
      RATE,
      seed=seed,
      accumulate_steps=accumulate_steps,
    )
  )


def batch(seed=0):
  generator = np.random.default_rng(seed)
  return {
    'x_BD': generator.normal(size=(B, 3)).astype(np.float32),
    'y_BC': generator.normal(size=(B, 2)).astype(np.float32),
  }


def at_step(number):
  first = state.initial(init, TRANSFORM, 7)
  return first.replace(step=jnp.asarray(number, jnp.int32))


@pytest.fixture(scope='module')
def plain():
  return make()


def test_a_step_moves_against_the_gradient_at_the_rate_of_its_step(plain):
  before = at_step(5)
  after, metrics = plain(before, batch())
  (loss, _), gradient = jax.value_and_grad(objective, has_aux=True)(
    before.params, batch(), jax.random.key(0), 0
  )
  assert metrics['loss'] == pytest.approx(float(loss), rel=1e-6)
  norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
  assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-6)
  rate = float(RATE(5))
  assert metrics['learning_rate'] == pytest.approx(rate)
  assert rate > 0
  assert bool(metrics['finite'])
  assert int(after.step) == 6
  # The first direction of Adam has entries of size 1, plus the decay.
  for name, decay in (('kernel', 0.1), ('bias', 0.0)):
    p = np.asarray(before.params[name])
    expected = p - rate * (np.sign(gradient[name]) + decay * p)
    np.testing.assert_allclose(after.params[name], expected, atol=1e-6)


@pytest.mark.parametrize('parts', [2, 4])
def test_parts_of_a_batch_make_the_same_update(plain, parts):
  whole, parted = plain, make(parts)
  expected, metrics = whole(at_step(5), batch())
  actual, parted_metrics = parted(at_step(5), batch())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    (expected.params, expected.opt_state),
    (actual.params, actual.opt_state),
  )
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], parted_metrics[name], rtol=1e-6)
  # Different draws have a variance; one draw for all parts has none.
  variance = parted_metrics['square'] - parted_metrics['noise'] ** 2
  assert variance > 1e-4
  assert abs(metrics['square'] - metrics['noise'] ** 2) < 1e-6


def test_the_key_depends_on_seed_and_step_alone(plain):
  other_seed = make(seed=1)
  draws = [
    float(function(at_step(number), batch(rows))[1]['noise'])
    for function, number, rows in (
      (plain, 5, 0),
      (plain, 5, 1),
      (plain, 6, 0),
      (other_seed, 5, 0),
    )
  ]
  assert draws[0] == draws[1]
  assert len(set(draws)) == 3


def test_the_same_state_and_batch_give_the_same_bytes(plain):
  digests = {state.digest(plain(at_step(5), batch())[0]) for _ in range(3)}
  assert len(digests) == 1
  assert state.digest(plain(at_step(5), batch(1))[0]) not in digests
  assert state.digest(plain(at_step(6), batch())[0]) not in digests


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_loss_that_is_not_finite_moves_only_the_step(plain, value):
  before, _ = plain(at_step(5), batch())
  bad = batch()
  bad['y_BC'][3, 1] = value
  after, metrics = plain(before, bad)
  assert not bool(metrics['finite'])
  assert not np.isfinite(metrics['loss'])
  assert state.digest((after.params, after.opt_state)) == state.digest(
    (before.params, before.opt_state)
  )
  assert int(after.step) == int(before.step) + 1
  recovered, metrics = plain(after, batch())
  assert bool(metrics['finite'])
  assert np.abs(recovered.params['kernel'] - after.params['kernel']).max() > 0


@pytest.mark.parametrize('parts', [1, 2])
def test_a_gradient_that_is_not_finite_moves_only_the_step(parts):
  def rooted(params, batch, key, step):
    # At 0 the loss is 0, and its gradient 0 * infinity.
    total = jnp.sum((batch['x_BD'] @ params['kernel']) ** 2)
    return jnp.sqrt(total), {}

  train_step = make(parts, objective=rooted)
  zeros = {**batch(), 'x_BD': np.zeros((B, 3), np.float32)}
  before = at_step(5)
  after, metrics = train_step(before, zeros)
  assert np.isfinite(metrics['loss'])
  assert not bool(metrics['finite'])
  assert state.digest(after.replace(step=before.step)) == state.digest(before)
  assert int(after.step) == 6
