"""Movement pruning: gradients by hand, and what it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress.prune import movement
from effformer.errors import ConfigError

A, B = 'mlp/in/kernel', 'mlp/out/kernel'


def normal(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape).astype('f4')


PARAMS = {
  'mlp': {
    'in': {'kernel': normal(3, 5, seed=0), 'bias': normal(5, seed=1)},
    'out': {'kernel': normal(5, 2, seed=2)},
  }
}
SCORES = {A: normal(3, 5, seed=3), B: normal(5, 2, seed=4)}
G = {A: normal(3, 5, seed=5), B: normal(5, 2, seed=6)}


def linear(params):
  """A loss whose gradient by W' is G."""
  mlp = params['mlp']
  total = (mlp['in']['kernel'] * G[A]).sum() + mlp['in']['bias'].sum()
  return total + (mlp['out']['kernel'] * G[B]).sum()


def masks_by_hand(keep):
  found = {}
  for path, x in SCORES.items():
    order = np.argsort(-x.ravel(), kind='stable')
    number = round(keep * x.size)
    mask = np.zeros(x.size, bool)
    mask[order[:number]] = True
    found[path] = mask.reshape(x.shape)
  return found


@pytest.mark.parametrize('keep', [0.0, 0.4, 1.0])
def test_hard_masks_and_their_gradients(keep):
  expected = masks_by_hand(keep)
  found = movement.hard_masks(SCORES, keep)
  jax.tree.map(np.testing.assert_array_equal, found, expected)

  @jax.jit
  def run(params, scores, keep):
    masked = movement.hard(params, scores, keep)
    return linear(masked), masked

  (_, masked), (dparams, dscores) = jax.value_and_grad(
    run, argnums=(0, 1), has_aux=True
  )(PARAMS, SCORES, keep)
  check(masked, dparams, dscores, expected)


def check(masked, dparams, dscores, expected):
  for path, mask in expected.items():
    _, name, _ = path.split('/')
    w = PARAMS['mlp'][name]['kernel']
    np.testing.assert_array_equal(masked['mlp'][name]['kernel'], w * mask)
    np.testing.assert_allclose(
      dparams['mlp'][name]['kernel'], G[path] * mask, rtol=1e-6
    )
    # Of those that left as well.
    np.testing.assert_allclose(dscores[path], G[path] * w, rtol=1e-6)
  np.testing.assert_array_equal(
    masked['mlp']['in']['bias'], PARAMS['mlp']['in']['bias']
  )
  np.testing.assert_array_equal(dparams['mlp']['in']['bias'], 1)


def test_soft_masks_and_their_gradients():
  expected = {path: 1 / (1 + np.exp(-x)) > 0.4 for path, x in SCORES.items()}
  sizes = [mask.mean() for mask in expected.values()]
  assert all(0 < size < 1 for size in sizes)
  found = movement.soft_masks(SCORES, 0.4)
  jax.tree.map(np.testing.assert_array_equal, found, expected)

  def run(params, scores):
    masked = movement.soft(params, scores, 0.4)
    return linear(masked), masked

  (_, masked), (dparams, dscores) = jax.value_and_grad(
    run, argnums=(0, 1), has_aux=True
  )(PARAMS, SCORES)
  check(masked, dparams, dscores, expected)


def test_the_penalty_is_the_mean_over_all_weights():
  sigmoids = [1 / (1 + np.exp(-x)).ravel() for x in SCORES.values()]
  expected = np.concatenate(sigmoids).mean()
  np.testing.assert_allclose(movement.penalty(SCORES), expected, rtol=1e-6)
  gradient = jax.grad(movement.penalty)(SCORES)
  assert all((g > 0).all() for g in gradient.values())


def test_scores_start_at_zero():
  found = movement.initial(PARAMS, [A])
  assert set(found) == {A}
  np.testing.assert_array_equal(found[A], np.zeros((3, 5)))
  masked = movement.hard(PARAMS, found, 1.0)
  jax.tree.map(np.testing.assert_array_equal, masked, PARAMS)
  with pytest.raises(ConfigError, match='mlp/on/kernel'):
    movement.initial(PARAMS, ['mlp/on/kernel'])


def test_training_keeps_what_moves_away_from_zero():
  """Small weights that grow stay, large ones that shrink leave."""
  start = jnp.array([[0.1], [0.1], [2.0], [2.0]])
  target = jnp.array([[2.0], [2.0], [0.1], [0.1]])
  params, path = {'w': {'kernel': start}}, 'w/kernel'
  scores = movement.initial(params, [path])

  @jax.jit
  def step(params, scores, keep):
    def loss(params, scores):
      masked = movement.hard(params, scores, keep)
      return jnp.square(masked['w']['kernel'] - target).sum()

    gradients = jax.grad(loss, argnums=(0, 1))(params, scores)
    return jax.tree.map(lambda x, g: x - 0.01 * g, (params, scores), gradients)

  for number in range(60):
    params, scores = step(params, scores, 1.0 if number < 40 else 0.5)
  found = movement.hard_masks(scores, 0.5)[path]
  assert found[:, 0].tolist() == [True, True, False, False]
