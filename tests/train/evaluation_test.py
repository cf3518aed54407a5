"""Means over a split: exact, whatever the batch size and the devices."""

import jax
import numpy as np
import pytest

from effformer import data
from effformer.train import evaluation, sharding
from tests.train.tiny_run import LENGTH, examples

# Sizes of the split, none of which 4 or 8 divides.
SIZES = (1, 7, 33)
PLACES = [
  (batch_size, num_devices)
  for batch_size in (1, 4, 8)
  for num_devices in (1, 2, 4)
  if batch_size % num_devices == 0
]


def batches(count, batch_size, encode):
  return data.eval_batches(
    examples(count, 5),
    encode,
    batch_size=batch_size,
    max_length=LENGTH,
    num_threads=0,
    prefetch=0,
  )


@pytest.fixture(scope='module')
def params(tiny):
  """Far from the first ones, so that both classes are guessed."""
  generator = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: generator.normal(size=leaf.shape).astype(np.float32),
    tiny.program.abstract.params,
  )


@pytest.fixture(scope='module')
def eval_step(tiny):
  return jax.jit(evaluation.make_eval_step(tiny.task.measure))


@pytest.fixture(scope='module')
def one_by_one(tiny, params, eval_step):
  """Values of each example of the largest split, alone in its batch."""
  measured = [
    jax.device_get(eval_step(params, batch))
    for batch in batches(max(SIZES), 1, tiny.task.encode)
  ]
  return {
    name: np.array([row[name] for row in measured], np.float64)
    for name in ('loss', 'accuracy')
  }


@pytest.mark.parametrize(('batch_size', 'num_devices'), PLACES)
def test_r22_means_do_not_depend_on_batches_and_devices(
  tiny, params, eval_step, one_by_one, batch_size, num_devices
):
  mesh = sharding.make_mesh(
    tiny.config.mesh, jax.devices()[num_devices : 2 * num_devices]
  )
  placed = jax.device_put(params, sharding.replicated(mesh))
  for count in SIZES:
    calls = []
    result = evaluation.evaluate(
      eval_step,
      placed,
      (
        sharding.to_devices(mesh, rows, batch_size)
        for rows in batches(count, batch_size, tiny.task.encode)
      ),
      lambda calls=calls: calls.append(None),
    )
    assert set(result) == {'loss', 'accuracy', 'count'}
    assert result['count'] == count
    assert isinstance(result['count'], int)
    assert result['accuracy'] == one_by_one['accuracy'][:count].sum() / count
    loss = one_by_one['loss'][:count].mean()
    assert result['loss'] == pytest.approx(loss, rel=1e-6)
    assert len(calls) == -(-count // batch_size)


def test_the_examples_tell_wrong_answers_from_right_ones(one_by_one):
  assert 0 < one_by_one['accuracy'].mean() < 1
  assert one_by_one['loss'].std() > 0.1


@pytest.mark.parametrize('count', SIZES)
def test_filler_rows_weigh_nothing(tiny, count):
  weights = np.concatenate(
    [b['weight_B'] for b in batches(count, 8, tiny.task.encode)]
  )
  assert len(weights) % 8 == 0
  np.testing.assert_array_equal(weights, np.arange(len(weights)) < count)


def test_values_of_filler_rows_are_never_read():
  def measure(params, batch):
    return {'loss': batch['value_B'], 'accuracy': 2 * batch['value_B']}

  eval_step = jax.jit(evaluation.make_eval_step(measure))
  weight_B = np.array([1, 1, 0, 0], np.float32)
  value_B = np.array([3, 5, np.nan, np.inf], np.float32)
  batch = {'weight_B': weight_B, 'value_B': value_B}
  result = evaluation.evaluate(eval_step, {}, [batch, batch])
  assert result == {'loss': 4.0, 'accuracy': 8.0, 'count': 4}


def test_sums_over_many_batches_lose_no_example():
  # In float32, 2^24 + 1 is 2^24.
  sums = [{'loss': np.float32(2**24), 'count': np.float32(2**24)}]
  sums += [{'loss': np.float32(1), 'count': np.float32(1)}] * 3
  result = evaluation.evaluate(lambda params, batch: batch, {}, sums)
  assert result == {'loss': 1.0, 'count': 2**24 + 3}


def test_an_empty_split_counts_nothing():
  assert evaluation.evaluate(None, {}, []) == {'count': 0}


def test_what_follows_a_batch_may_stop_the_evaluation(tiny):
  class StopError(Exception):
    pass

  def stop():
    raise StopError

  seen = []

  def eval_step(params, batch):
    seen.append(batch)
    return {'loss': np.float32(1), 'count': np.float32(1)}

  with pytest.raises(StopError):
    evaluation.evaluate(eval_step, {}, [1, 2, 3], stop)
  assert seen == [1]


def test_rows_weigh_as_many_tokens_as_they_say():
  values = {
    'loss': np.array([1.0, 4.0, 9.0], np.float32),
    'tokens': np.array([2.0, 1.0, 5.0], np.float32),
  }
  step = evaluation.make_eval_step(lambda params, batch: values)
  batches = [
    {'weight_B': np.array(weight_B, np.float32)}
    for weight_B in ([1, 1, 1], [1, 0, 0])
  ]
  result = evaluation.evaluate(step, None, batches)
  assert result == {
    'loss': (2 + 4 + 45 + 2) / 10,
    'tokens': 10,
    'count': 4,
  }
