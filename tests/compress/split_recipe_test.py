"""--mode=compress by ternary training, split and binary training."""

import json

import jax
import numpy as np
import pytest

from effformer import config as config_lib
from effformer import data, tasks
from effformer.compress import (
  artefact,
  command,
  halves,
  outputs,
  recipe,
  split,
  tensors,
)
from effformer.compress.tensors import QTensor
from effformer.train import preemption
from tests.train.tiny_run import (
  again_and_again,
  quiet_screen,
  tiny_config,
  write_examples,
)

# Many models are compiled.
pytestmark = pytest.mark.slow

TRAIN = {
  'do': 'train', 'steps': 3, 'learning_rate': 1e-2, 'rounded': True,
  'lesson': {'hard': 1.0, 'soft': 0.5, 'states': 0.5},
}  # fmt: skip
# Tables are rounded otherwise, and stay whole.
ROUND = {
  'do': 'round', 'bits': 1, 'rule': 'sign', 'group': 'tile', 'tile': 5,
  'activations': 'dynamic',
}  # fmt: skip
ROWS = TRAIN, {'do': 'split'}, TRAIN, ROUND
FOLDERS = 'step_0_train', 'step_1_split', 'step_2_train', 'step_3_round'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  plain = tiny_config(
    'full',
    **write_examples(
      tmp_path_factory.mktemp('data'), train=40, validation=9, test=7
    ),
    model__num_layers=2,
    model__dropout=0.0,
    train__batch_size=8,
    train__eval_batch_size=8,
    train__num_steps=4,
    train__eval_every_steps=1,
  )
  return config_lib.changed(
    plain,
    {
      'compress.steps': {str(n): row for n, row in enumerate(ROWS)},
      'compress.shapes': ('1x16',),
    },
  )


def compress(config, folder, stop=None):
  console = quiet_screen()
  found = command.compress(
    config, str(folder), stop or preemption.Stop(), console
  )
  return found, console.console.file.getvalue()


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp('small')
  return folder, *compress(config, folder)


@pytest.fixture(scope='module')
def models(finished):
  """After each step."""
  return [artefact.load(finished[0] / 'recipe' / name) for name in FOLDERS]


@pytest.fixture(scope='module')
def parent(config, finished):
  plain = command.without_steps(config)
  path = str(finished[0] / 'parent')
  return command.pipeline.parent_of(
    plain, path, preemption.Stop(), quiet_screen()
  )


def rounded(params, ternary):
  """The numbers that the parameters stand for."""
  last = recipe.read([ROUND])[0]
  grid = split.ternary(last.grid) if ternary else last.grid
  plan = tensors.uniform_plan(params, grid, tables=last.table_grid)
  return halves.joined(tensors.dequantise(tensors.quantise(params, plan)))


def rows_of(folder, step, split_name):
  path = folder / 'recipe' / FOLDERS[step] / 'run/metrics.jsonl'
  rows = map(json.loads, path.read_text().splitlines())
  return [row for row in rows if row['split'] == split_name]


def cross_entropy(task, params, batch):
  p_BC = np.asarray(task.predict(params, batch), 'f8')
  own_B = p_BC[np.arange(len(p_BC)), np.asarray(batch['label_B'])]
  return -np.log(own_B).mean()


def first_batch(task):
  return data.batch_at(
    task.dataset.splits['train'], task.encode, 0, seed=0, batch_size=8,
    max_length=16,
  )  # fmt: skip


def test_trainings_are_of_ternary_and_then_of_binary_weights(
  finished, models, parent
):
  """The first loss of each, of the parameters that it began with."""
  folder, task = finished[0], parent.task
  batch = first_batch(task)
  begun = parent.model.params, models[0].params, models[1].params
  losses = [
    cross_entropy(task, rounded(params, ternary), batch)
    for params, ternary in zip(begun, (True, True, False), strict=True)
  ]
  # Split, the binary model is the ternary one.
  assert losses[2] == pytest.approx(losses[1], abs=1e-5)
  for step, loss in ((0, losses[0]), (2, losses[2])):
    first = rows_of(folder, step, 'train')[0]
    assert first['loss_hard'] == pytest.approx(loss, abs=1e-4)
    assert {'loss_soft', 'loss_states'} <= set(first)
  # As numbers, and as signs of what was not split, it is another one.
  for other in (begun[0], rounded(begun[0], False)):
    assert abs(cross_entropy(task, other, batch) - losses[0]) > 1e-3
  assert abs(losses[1] - losses[0]) > 1e-3


def test_what_was_measured_in_training_is_the_model(finished, models, parent):
  """But for the inputs, which are rounded by the codes alone."""
  folder, task = finished[0], parent.task
  path = folder / 'recipe/step_2_train/run/result.json'
  result = json.loads(path.read_text())
  same = rounded(models[2].params, ternary=False)
  jax.tree.map(np.testing.assert_array_equal, same, models[3].numbers)
  with data.eval_batches(
    task.dataset.splits['validation'], task.encode, batch_size=9,
    max_length=16, num_threads=0,
  ) as batches:  # fmt: skip
    loss = cross_entropy(task, models[3].numbers, next(batches))
  assert result['validation']['loss'] == pytest.approx(loss, abs=1e-5)


def test_both_halves_are_trained_and_rounded(models):
  before, after, last = (
    tensors.flatten(own.params) for own in (models[1], models[2], models[3])
  )
  assert set(before) == set(after) == set(last)
  kernels = {path for path in before if path.endswith('kernel')}
  others = {path for path in kernels if halves.is_other(path)}
  assert 2 * len(others) == len(kernels) > 10
  for path in kernels:
    assert np.any(after[path] != before[path]), path
    codes = last[path]
    assert (codes.grid.bits, codes.grid.tile) == (1, 5)
  table = last['embedding/embedding']
  assert table.grid.bits == 8
  assert f'{halves.OTHER}/embedding/embedding' not in last
  # Their scales are their own by then.
  path = 'encoder/layer_0/mlp/in/kernel'
  scales = last[path].scale, last[f'{halves.OTHER}/{path}'].scale
  assert np.any(scales[0] != scales[1])


def test_what_is_said_of_it(finished, models):
  folder, found, printed = finished
  rows = {row['model']: row for row in found['models']}
  assert [*rows] == [
    'parent', '0: train', '1: split', '2: train', '3: round',
    'control: untrained', 'control: no_teacher',
  ]  # fmt: skip
  weights = sum(
    x.codes.size for path, x in tensors.flatten(models[3].params).items()
    if halves.is_other(path)
  )  # fmt: skip
  count = rows['parent']['parameters']
  assert rows['0: train']['parameters'] == count
  for name in ('1: split', '2: train', '3: round', 'control: untrained'):
    assert rows[name]['parameters'] == count + weights
  assert printed.count(f'  {count + weights:,} parameters, ') == 8
  # As numbers halves are the model before, but for the last bits.
  qualities = [rows[name]['quality'] for name in ('0: train', '1: split')]
  assert qualities[0]['score'] == qualities[1]['score']
  assert qualities[0]['kl'] == pytest.approx(qualities[1]['kl'], abs=1e-6)
  plan = {row['part']: row['bits'] for row in found['plan']}
  assert plan['layer 0 mlp'] == 'twice 1 a tile of 5, sign'
  assert plan['embedding/embedding'] == '8 a channel'
  model = artefact.load(folder / 'model')
  assert [row['do'] for row in model.steps] == [
    'train', 'split', 'train', 'round',
  ]  # fmt: skip
  assert model.activations == 'dynamic'
  assert {row['model'] for row in found['speed']} >= {
    'compressed', 'compressed, as numbers',
  }  # fmt: skip


def test_without_training_it_is_the_ternary_model_in_binary_codes(
  finished, parent
):
  model = artefact.load(finished[0] / 'controls/untrained/step_1_round')
  wanted = rounded(parent.model.params, ternary=True)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    model.numbers, wanted,
  )  # fmt: skip
  codes = [
    x for x in jax.tree.leaves(
      model.params, is_leaf=lambda x: isinstance(x, QTensor)
    )
    if isinstance(x, QTensor)
  ]  # fmt: skip
  assert {x.grid.bits for x in codes} == {1, 8}


def test_it_answers(config, finished):
  folder, console = finished[0], quiet_screen()
  text = 'good the film'
  [said] = command.predict(config, str(folder), [text], console)
  model = artefact.load(folder / 'model')
  assert sum(said['probabilities'].values()) == pytest.approx(1, abs=1e-5)
  task = tasks.make(command.without_steps(config))
  [row] = [task.encode(text.encode(), 16)]
  ids_BT = np.pad(row, (0, 16 - len(row)))[None]
  batch = {'ids_BT': ids_BT, 'lengths_B': np.array([len(row)])}
  [p_C] = np.asarray(outputs.function(model, task)(model.params, batch))
  np.testing.assert_allclose(
    sorted(said['probabilities'].values()), sorted(p_C), atol=1e-5
  )
  # Near those of the numbers, whose inputs are not rounded.
  numbers = model._replace(activations='')
  [q_C] = np.asarray(outputs.function(numbers, task)(model.numbers, batch))
  np.testing.assert_allclose(q_C, p_C, atol=0.05)


def test_stopped_again_and_again_it_ends_in_the_same_bytes(
  config, finished, tmp_path
):
  alone = config_lib.changed(config, {'compress.controls': False})
  _, printed = again_and_again(lambda stop: compress(alone, tmp_path, stop), 9)
  assert 'done before' in printed
  for name in FOLDERS:
    for file in (artefact.WEIGHTS, artefact.MANIFEST):
      path = f'recipe/{name}/{file}'
      own, wanted = tmp_path / path, finished[0] / path
      assert own.read_bytes() == wanted.read_bytes(), path
