"""What models say of examples: which, in which order, and from codes."""

import jax
import numpy as np
import pytest

from effformer import config as config_lib
from effformer import data, tasks
from effformer.compress import outputs, tensors
from effformer.compress.artefact import Compressed
from effformer.compress.grid import Grid
from tests.tasks.sentences_test import dataset
from tests.train.tiny_run import tiny_config, tiny_task
from tests.train.tiny_similarity import COUNTS, similarity_config

GRIDS = {4: Grid(4), 8: Grid(8, 'tile', 5)}


def compressed(config, task, kind='classifier'):
  return Compressed(
    config, kind, task.model.vocabulary_size, task.dataset.num_classes, False,
    jax.device_get(jax.jit(task.init)(jax.random.key(1))), '0' * 64,
  )  # fmt: skip


@pytest.fixture(scope='module')
def texts():
  """A model of classes, and its task: 9 rows to test, 4 in a batch."""
  config = tiny_config('full', model__num_layers=2)
  task = tiny_task(config)
  return compressed(config, task), task


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """A model of vectors, and its task: 13 pairs to test, 8 in a batch."""
  config = similarity_config(tmp_path_factory.mktemp('model'))
  task = tasks.make(config)
  return compressed(config, task, 'embedder'), task


def one_by_one(model, task, compute):
  """Outputs and labels, an example a batch, which nothing fills."""
  source, run, found = task.dataset.splits['test'], jax.jit(compute), []
  with data.eval_batches(
    source, task.encode, batch_size=1, max_length=task.model.max_length,
    num_threads=0, encode_pair=task.encode_pair,
  ) as batches:  # fmt: skip
    for batch in batches:
      inputs = {name: batch[name] for name in task.inputs}
      y_1 = np.asarray(run(model.params, inputs))
      found.append((y_1[0], batch['label_B'][0]))
  assert len(found) == len(source)
  return map(np.array, zip(*found, strict=True))


def test_probabilities_of_a_split_in_its_order(texts):
  model, task = texts
  calls = []
  found_NC, label_N = outputs.of_split(
    model, task, 'test', lambda: calls.append(1)
  )
  wanted_NC, wanted_N = one_by_one(model, task, task.predict)
  # The last of 3 batches holds one example and 3 rows that fill it.
  assert (found_NC.shape, len(calls)) == ((9, 2), 3)
  np.testing.assert_allclose(found_NC, wanted_NC, atol=1e-6)
  np.testing.assert_array_equal(label_N, wanted_N)
  assert len({*found_NC[:, 0].tolist()}) > 5


def test_vectors_of_a_split_are_those_of_both_texts(pairs):
  model, task = pairs
  found_N2D, label_N = outputs.of_split(model, task, 'test')
  wanted_N2D, wanted_N = one_by_one(model, task, task.embed)
  assert found_N2D.shape == (COUNTS['test'], 2, 12)
  np.testing.assert_allclose(found_N2D, wanted_N2D, atol=1e-6)
  np.testing.assert_array_equal(label_N, wanted_N)
  np.testing.assert_allclose(np.linalg.norm(found_N2D, axis=-1), 1, atol=1e-5)
  assert np.abs(found_N2D[:, 0] - found_N2D[:, 1]).max() > 1e-2


@pytest.mark.parametrize('bits', GRIDS)
@pytest.mark.parametrize('kind', ['texts', 'pairs'])
def test_codes_say_what_their_numbers_say(request, kind, bits):
  model, task = request.getfixturevalue(kind)
  plan = tensors.uniform_plan(model.params, GRIDS[bits])
  small = model._replace(params=tensors.quantise(model.params, plan))
  as_numbers = small._replace(params=small.numbers)
  assert jax.tree.leaves(small.params)[0].dtype == np.int8
  found, plain, before = (
    outputs.of_split(own, task, 'validation')[0]
    for own in (small, as_numbers, model)
  )
  np.testing.assert_allclose(found, plain, atol=1e-5)
  assert np.abs(plain - before).max() > 1e-4


def test_rounded_inputs_are_those_of_the_model(texts):
  model, task = texts
  plan = tensors.uniform_plan(model.params, Grid(8))
  small = model._replace(params=tensors.quantise(model.params, plan))
  plain, dynamic = (
    outputs.of_split(own, task, 'test')[0]
    for own in (small, small._replace(activations='dynamic'))
  )
  assert 1e-6 < np.abs(plain - dynamic).max() < 0.1


# Rows of batches.


def batch_of(task):
  return data.batch_at(
    task.dataset.splits['train'], task.encode, 0, seed=0, batch_size=5,
    max_length=task.model.max_length, encode_pair=task.encode_pair,
  )  # fmt: skip


def test_rows_of_single_texts(texts):
  _, task = texts
  batch = batch_of(task)
  ids_BT, lengths_B = outputs.rows(task, batch)
  np.testing.assert_array_equal(ids_BT, batch['ids_BT'])
  np.testing.assert_array_equal(lengths_B, batch['lengths_B'])


@pytest.mark.parametrize('head', ['nli', 'none'])
def test_rows_of_pairs(pairs, head):
  config = config_lib.changed(pairs[0].config, {'model.pair_head': head})
  with config.unlocked():
    config.task = 'pair'
  task = tasks.make(config, dataset(is_pair=True))
  batch = batch_of(task)
  found = outputs.rows(task, batch)
  if head == 'none':
    ids_BT, lengths_B, types_BT = found
    np.testing.assert_array_equal(types_BT, batch['types_BT'])
    np.testing.assert_array_equal(ids_BT, batch['ids_BT'])
    assert (lengths_B.shape, types_BT.max()) == ((5,), 1)
    return
  # All first texts, then all second ones.
  ids_LT, lengths_L = found
  for part, prefix in ((slice(5), ''), (slice(5, 10), 'other_')):
    np.testing.assert_array_equal(ids_LT[part], batch[f'{prefix}ids_BT'])
    np.testing.assert_array_equal(lengths_L[part], batch[f'{prefix}lengths_B'])
  assert len(ids_LT) == len(lengths_L) == 10


def test_first_batches_are_in_the_order_of_the_seed(texts):
  model, task = texts
  config = config_lib.changed(model.config, {'train.eval_batch_size': 3})

  def indices(number, skip=0, seed=0):
    own = config_lib.changed(config, {'seed': seed})
    found = [*outputs.first_batches(task, own, number, skip)]
    assert len(found) == number
    return np.concatenate([batch['index_B'] for batch in found]).tolist()

  # 20 examples, 3 in a batch: none twice.
  order = data.example_indices(20, np.arange(18), seed=0).tolist()
  assert indices(6) == order
  assert indices(2, skip=2) == order[6:12]
  assert not {*indices(2)} & {*indices(2, skip=2)}
  assert indices(6, seed=1) != order
