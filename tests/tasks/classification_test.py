"""Loss and accuracy of labels, against values computed by hand."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.tasks import classification

Y, C, MAX_LENGTH = 3, 2, 5
# Softmax: 1/4 and 3/4; a half each; 9/10 and 1/10.
TABLE_YC = np.array([[0, math.log(3)], [1, 1], [math.log(9), 0]], np.float32)
BATCH = {
  'ids_BT': np.array([[0], [0], [1], [2]], np.int32),
  'lengths_B': np.array([1, 1, 1, 1], np.int32),
  'label_B': np.array([0, 1, 1, 0], np.int32),
}
# The equal logits of the third row count as a guess of class 0.
LOSS_B = [math.log(4), math.log(4 / 3), math.log(2), math.log(10 / 9)]
ACCURACY_B = [0, 1, 0, 1]


class Table(nn.Module):
  """Logits by the first id, times the length, behind dropout."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, ids_BT, lengths_B, *, deterministic=True, step=None):
    table_YC = self.param('table', nn.initializers.normal(), (Y, C))
    self.param('seen', lambda _: jnp.array(ids_BT.shape))
    logits_BC = table_YC[ids_BT[:, 0]] * lengths_B[:, None]
    return nn.Dropout(self.dropout)(logits_BC, deterministic=deterministic)


def make(dropout=0.0):
  return classification.make(
    'name', 'dataset', bytes.split, Table(dropout), MAX_LENGTH, dict
  )


PARAMS = {'table': TABLE_YC, 'seen': np.zeros(2, np.int32)}


def test_objective_is_the_mean_cross_entropy():
  loss, values = make().objective(PARAMS, BATCH, jax.random.key(0), 0)
  assert loss == pytest.approx(np.mean(LOSS_B), rel=1e-6)
  assert loss.shape == ()
  assert set(values) == {'accuracy'}
  assert values['accuracy'] == 0.5


def test_measure_has_a_value_for_each_example():
  values = make().measure(PARAMS, BATCH)
  assert set(values) == {'loss', 'accuracy'}
  np.testing.assert_allclose(values['loss'], LOSS_B, rtol=1e-6)
  np.testing.assert_array_equal(values['accuracy'], ACCURACY_B)
  assert values['accuracy'].dtype == jnp.float32


def test_lengths_reach_the_model():
  batch = {**BATCH, 'lengths_B': np.array([2, 1, 1, 1], np.int32)}
  values = make().measure(PARAMS, batch)
  # Twice the logits: odds of 9 to 1.
  expected = [math.log(10), *LOSS_B[1:]]
  np.testing.assert_allclose(values['loss'], expected, rtol=1e-6)
  loss, _ = make().objective(PARAMS, batch, jax.random.key(0), 0)
  assert loss == pytest.approx(np.mean(expected), rel=1e-6)


def test_dropout_acts_in_the_objective_alone():
  dropped = make(dropout=0.5)
  losses = [
    float(dropped.objective(PARAMS, BATCH, jax.random.key(seed), 0)[0])
    for seed in (0, 0, 1, 2)
  ]
  assert losses[0] == losses[1]
  assert len(set(losses)) > 1
  np.testing.assert_array_equal(
    dropped.measure(PARAMS, BATCH)['loss'],
    make().measure(PARAMS, BATCH)['loss'],
  )


def test_init_shows_the_model_a_full_row():
  params = make().init(jax.random.key(0))
  assert set(params) == {'table', 'seen'}
  np.testing.assert_array_equal(params['seen'], [1, MAX_LENGTH])
  other = make().init(jax.random.key(1))
  assert np.all(params['table'] != other['table'])


def test_a_task_holds_what_it_was_given():
  task = make()
  assert task.name == 'name'
  assert task.dataset == 'dataset'
  assert task.encode is bytes.split
  assert task.floors is dict
  assert isinstance(task.model, Table)
  assert task.select == 'accuracy'
