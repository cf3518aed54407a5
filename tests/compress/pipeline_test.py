"""Recipes carried out on a tiny run, interrupted, and refused."""

import json

import flax.traverse_util
import jax
import numpy as np
import pytest

from effformer import errors
from effformer.compress import artefact, outputs, pipeline, recipe
from effformer.compress.places import task_of
from effformer.compress.tensors import QTensor
from effformer.train import preemption, state
from tests import slow
from tests.train.tiny_run import (
  again_and_again,
  quiet_screen,
  tiny_config,
  train,
  write_examples,
)

# Many models are compiled.
pytestmark = pytest.mark.slow

RECIPE = recipe.read([
  {'do': 'drop_layers', 'keep': [0, 2]},
  {'do': 'train', 'steps': 3, 'learning_rate': 1e-2,
   'lesson': {'hard': 0.5, 'soft': 1, 'states': 1}},
  {'do': 'prune', 'units': ['mlp', 'head'], 'ratio': 0.4, 'batches': 2},
  {'do': 'train', 'steps': 2, 'learning_rate': 1e-2},
  {'do': 'round', 'bits': 4, 'group': 'tile', 'tile': 5, 'method': 'gptq',
   'batches': 2},
])  # fmt: skip


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return tiny_config(
    'full',
    **write_examples(folder, train=40, validation=9, test=7),
    model__num_layers=3,
    train__batch_size=8,
    train__eval_batch_size=8,
    train__num_steps=4,
  )


@pytest.fixture(scope='module')
def parent(config, tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('run'))
  train(config, folder)
  return pipeline.parent_of(config, folder, preemption.Stop(), quiet_screen())


def run(parent, folder, steps=RECIPE, stop=None):
  console = quiet_screen()
  model = pipeline.run(
    parent, steps, folder, stop or preemption.Stop(), console
  )
  return model, console.console.file.getvalue()


@pytest.fixture(scope='module')
def finished(parent, tmp_path_factory):
  folder = tmp_path_factory.mktemp('small')
  return folder, *run(parent, folder)


def test_the_model_is_what_the_steps_say(parent, finished):
  folder, model, printed = finished
  layers = model.config.model.layers
  assert model.config.model.num_layers == 2
  for index in '01':
    assert layers[index].mlp_width == 6
    assert layers[index].num_heads == 2
  block = model.params['encoder']['layer_1']
  assert block['mixer']['query']['kernel'].shape == (12, 2, 4)
  assert block['mlp']['in']['kernel'].shape == (12, 6)
  kernel = block['mlp']['in']['kernel']
  assert isinstance(kernel, QTensor)
  assert kernel.grid == RECIPE[-1].grid
  assert model.params['embedding']['embedding'].grid.bits == 8
  assert model.parent_sha256 == state.digest(parent.model.params)
  assert [row['do'] for row in model.steps] == [
    'drop_layers', 'train', 'prune', 'train', 'round',
  ]  # fmt: skip
  places = sorted(path.name for path in folder.iterdir())
  assert places == [
    'recipe.json', 'step_0_drop_layers', 'step_1_train', 'step_2_prune',
    'step_3_train', 'step_4_round',
  ]  # fmt: skip
  for path in places[1:]:
    size = sum(
      (folder / path / name).stat().st_size
      for name in (artefact.WEIGHTS, artefact.MANIFEST)
    )
    assert f'{size:,} bytes on disk' in printed


def test_each_step_begins_with_the_model_before(finished):
  folder, model, _ = finished
  before, after = (
    artefact.load(folder / name)
    for name in ('step_0_drop_layers', 'step_1_train')
  )
  facts = json.loads((folder / 'step_1_train/run/start.json').read_text())
  assert facts['params_sha256'] == _digest_of_flat(before.params)
  assert facts['new'] == []
  moved = [
    np.any(np.asarray(a) != np.asarray(b))
    for a, b in zip(
      jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True
    )
  ]
  assert any(moved)
  rows = (folder / 'step_1_train/run/metrics.jsonl').read_text().splitlines()
  assert {'loss_hard', 'loss_soft', 'loss_states'} <= set(json.loads(rows[0]))
  rows = (folder / 'step_3_train/run/metrics.jsonl').read_text().splitlines()
  assert 'loss_soft' not in json.loads(rows[0])
  last = artefact.load(folder / 'step_4_round')
  ids_BT = np.arange(1, 17, dtype='i4')[None]
  outputs = [
    own.module.apply({'params': own.numbers}, ids_BT, np.array([16]))
    for own in (last, model)
  ]
  np.testing.assert_array_equal(*outputs)


def _digest_of_flat(params):
  return state.digest(flax.traverse_util.flatten_dict(params, sep='/'))


@pytest.mark.slow
def test_stopped_again_and_again_it_ends_in_the_same_bytes(
  parent, finished, tmp_path
):
  model, printed = again_and_again(
    lambda stop: run(parent, tmp_path, stop=stop), 4
  )
  assert 'done before' in printed
  jax.tree.map(np.testing.assert_array_equal, model.params, finished[1].params)
  for name in (artefact.WEIGHTS, artefact.MANIFEST):
    path = f'step_4_round/{name}'
    assert (tmp_path / path).read_bytes() == (finished[0] / path).read_bytes()


def test_another_recipe_or_parent_is_refused(parent, finished):
  folder, _, _ = finished
  with pytest.raises(errors.CheckpointError, match='steps of another recipe'):
    run(parent, folder, steps=RECIPE[:-1])
  other = parent._replace(model=parent.model._replace(parent_sha256='0' * 64))
  with pytest.raises(errors.CheckpointError, match='steps of another parent'):
    run(other, folder)


def test_a_step_that_does_not_fit_leaves_nothing(parent, tmp_path):
  steps = recipe.read([{'do': 'drop_layers', 'keep': [0, 3]}])
  with pytest.raises(errors.ConfigError, match='layers 0 to 2'):
    run(parent, tmp_path, steps)
  assert [path.name for path in tmp_path.iterdir()] == ['recipe.json']


def assert_pattern(model, n, m):
  """No group has more than n, and few have fewer: some are rounded to 0."""
  flat = flax.traverse_util.flatten_dict(model.params, sep='/')
  kernels = [x for path, x in flat.items() if path.endswith('kernel')]
  assert len(kernels) == 3 * 6 + 1
  assert flat['embedding/embedding'].grid.keep == 0
  for x in kernels:
    assert (x.grid.keep, x.grid.of) == (n, m)
    for start in range(0, len(x.codes), m):
      group_MN = np.asarray(x.codes[start : start + m])
      count_N = np.count_nonzero(group_MN, axis=0)
      assert count_N.max() <= min(n, len(group_MN))
      if x.grid.bits == 8:
        assert count_N.mean() > 0.8 * min(n, len(group_MN))


def test_training_under_the_pattern_is_training_of_what_is_stored(
  parent, tmp_path
):
  steps = recipe.read([
    {'do': 'train', 'steps': 3, 'learning_rate': 1e-2, 'rounded': True},
    {'do': 'round', 'pattern': [2, 5]},
  ])  # fmt: skip
  model, _ = run(parent, tmp_path, steps)
  assert_pattern(model, 2, 5)
  result = json.loads((tmp_path / 'step_0_train/run/result.json').read_text())
  task = task_of(model, parent)
  found_NY, label_N = outputs.of_split(model, task, 'test')
  loss = -np.log(found_NY[np.arange(len(label_N)), label_N]).mean()
  np.testing.assert_allclose(result['test']['loss'], loss, rtol=1e-5)


@pytest.mark.parametrize(
  'step',
  slow.after(2, [
    {'do': 'prune', 'units': ['mlp'], 'ratio': 0.5, 'score': 'magnitude',
     'within': 'model'},
    {'do': 'prune', 'units': ['head'], 'ratio': 0.5, 'score': 'random'},
    {'do': 'prune', 'units': ['mlp'], 'ratio': 0.5, 'score': 'saliency',
     'batches': 1},
    {'do': 'round', 'bits': 3, 'method': 'awq', 'batches': 1},
    {'do': 'round', 'bits': 8, 'method': 'smooth', 'batches': 1},
    {'do': 'round', 'bits': 2, 'rule': 'ternary', 'tables': 0},
    {'do': 'round', 'pattern': [2, 5], 'method': 'gptq', 'batches': 1},
    {'do': 'round', 'pattern': [2, 5], 'method': 'awq', 'batches': 1},
    {'do': 'round', 'pattern': [2, 5], 'method': 'smooth', 'batches': 1,
     'activations': 'dynamic'},
    {'do': 'round', 'pattern': [2, 5], 'bits': 2, 'rule': 'ternary',
     'tables': 0},
  ]),
)  # fmt: skip
def test_every_choice_is_carried_out(parent, tmp_path, step):
  model, _ = run(parent, tmp_path, recipe.read([step]))
  if step['do'] == 'prune':
    count = state.num_params(model.params)
    assert count < state.num_params(parent.model.params)
  else:
    table = model.params['embedding']['embedding']
    assert table.grid.bits == (step['bits'] if 'tables' in step else 8)
    if 'pattern' in step:
      assert_pattern(artefact.load(tmp_path / 'step_0_round'), 2, 5)
  ids_BT = np.arange(1, 17, dtype='i4')[None]
  outputs = [
    own.module.apply({'params': own.numbers}, ids_BT, np.array([16]))
    for own in (parent.model, model)
  ]
  assert np.isfinite(outputs[1]).all()
  assert np.any(outputs[0] != outputs[1])


def test_tasks_without_classes_are_refused(config, monkeypatch):
  class Tokens:
    model = object()

  monkeypatch.setattr(pipeline.prediction, 'trained', lambda *_: (0, {}, 0))
  monkeypatch.setattr(pipeline.tasks, 'make', lambda _: Tokens())
  with pytest.raises(errors.ConfigError, match='that give classes'):
    pipeline.parent_of(config, 'x', preemption.Stop(), quiet_screen())


@pytest.mark.parametrize(
  ('row', 'facts', 'is_smaller'),
  [
    ({'do': 'share', 'number': 2}, {}, True),
    ({'do': 'simplify', 'activation': 'relu'}, {}, False),
    ({'do': 'simplify', 'norm': 'affine', 'batches': 2},
     {'norm': 'affine'}, False),
    ({'do': 'factorise', 'share': 0.5, 'batches': 2,
      'parts': ['mlp', 'embedding']}, {'embedding_width': 5}, True),
  ],
)  # fmt: skip
def test_structure_is_changed_and_trained(
  parent, tmp_path, row, facts, is_smaller
):
  train = {'do': 'train', 'steps': 2, 'learning_rate': 1e-2}
  model, _ = run(parent, tmp_path, recipe.read([row, train]))
  for name, value in facts.items():
    assert model.config.model[name] == value
  counts = [state.num_params(own.params) for own in (model, parent.model)]
  assert (counts[0] < counts[1]) == is_smaller
  layers = model.config.model.layers
  if row['do'] == 'share':
    assert len({layers.get(i, {}).get('share', i) for i in '012'}) == 2
  if row['do'] == 'factorise':
    assert {layers[i].mlp_rank for i in '012'} == {2}
  ids_BT = np.arange(1, 17, dtype='i4')[None]
  again = artefact.load(tmp_path / 'step_1_train')
  outputs = [
    own.module.apply({'params': own.numbers}, ids_BT, np.array([16]))
    for own in (parent.model, model, again)
  ]
  assert np.any(outputs[0] != outputs[1])
  np.testing.assert_array_equal(outputs[1], outputs[2])
