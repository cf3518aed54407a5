"""Single steps on an untrained model: swap, rounded training."""

import json

import jax
import numpy as np
import pytest

from effformer import config as config_lib
from effformer import data, errors, pretrained, tasks
from effformer.compress import (
  outputs,
  places,
  recipe,
  steps,
  tensors,
)
from effformer.compress.artefact import Compressed
from tests.compress.single_steps import carry, untrained
from tests.train.tiny_pretrained import LENGTH
from tests.train.tiny_similarity import similarity_config


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
  return untrained(tmp_path_factory.mktemp('data'))


def flat(params):
  return tensors.flatten(params)


# Another attention.


def test_another_attention_in_one_layer(parent, tmp_path):
  model, printed = carry(
    parent, tmp_path,
    {'do': 'swap', 'mechanism': 'local', 'layers': [1],
     'settings': {'window': 3}},
  )  # fmt: skip
  before, after = (
    tasks.make(own.config, parent.task.dataset).model.layers
    for own in (parent.model, model)
  )
  assert after[0] == before[0]
  assert (after[1].mixer, dict(after[1].settings)['window']) == ('local', 3)
  assert (after[1].mlp_width, dict(after[1].settings)['num_heads']) == (7, 2)
  old, new = flat(parent.model.params), flat(model.params)
  for path, x in old.items():
    np.testing.assert_array_equal(new[path], x)
  kept = [path for path in old if path.startswith('encoder/layer_1/mixer/')]
  made = {*new} - {*old}
  assert f'{len(kept)} parameters of attention stay, {len(made)} are' in printed
  found = [
    outputs.of_split(own, places.task_of(own, parent), 'test')[0]
    for own in (parent.model, model)
  ]
  assert np.abs(found[0] - found[1]).max() > 1e-3


def test_what_the_new_attention_lacks_is_made_by_the_seed(parent, tmp_path):
  row = {'do': 'swap', 'mechanism': 'gla'}
  config = config_lib.changed(parent.model.config, {'seed': 5})
  first, again, other = (
    carry(parent, tmp_path, row, model=parent.model._replace(config=own))[0]
    for own in (parent.model.config, parent.model.config, config)
  )
  old, new = flat(parent.model.params), flat(first.params)
  made = [
    path
    for path, x in new.items()
    if path not in old or old[path].shape != x.shape
  ]
  assert made
  assert all('/mixer/' in path for path in made)
  for path, x in new.items():
    np.testing.assert_array_equal(flat(again.params)[path], x)
    if path not in made:
      np.testing.assert_array_equal(old[path], x)
  assert any(np.any(flat(other.params)[path] != new[path]) for path in made)


# Training.


def test_a_training_step_has_a_schedule_of_its_own(
  parent, monkeypatch, tmp_path
):
  seen, params = [], parent.model.params
  monkeypatch.setattr(
    steps.session, 'train', lambda config, *_, **__: seen.append(config)
  )
  monkeypatch.setattr(
    steps.prediction, 'trained', lambda *_, **__: (None, params, None)
  )
  config = config_lib.changed(
    parent.model.config,
    {
      'train.schedule': 'rsqrt',
      'train.warmup_steps': 900,
      'train.eval_every_steps': 50,
      'pretrain.num_steps': 3,
    },
  )
  row = {'do': 'train', 'steps': 40, 'learning_rate': 0.02}
  carry(parent, tmp_path, row, model=parent.model._replace(config=config))
  [own] = seen
  assert own.train.schedule == 'cosine'
  assert (own.train.num_steps, own.train.warmup_steps) == (40, 4)
  assert (own.train.learning_rate, own.train.eval_every_steps) == (0.02, 40)
  assert own.pretrain.num_steps == 0


# Training of what will be rounded.

ROUND = {'do': 'round', 'bits': 2, 'tables': 0}


def cross_entropy(task, params, batch):
  """Mean of -log p(y) of the examples, as float64."""
  p_BC = np.asarray(task.predict(params, batch), 'f8')
  own_B = p_BC[np.arange(len(p_BC)), np.asarray(batch['label_B'])]
  weight_B = np.asarray(batch['weight_B'], 'f8')
  return -(weight_B * np.log(own_B)).sum() / weight_B.sum()


def as_rounded(params):
  (step,) = recipe.read([ROUND])
  plan = tensors.uniform_plan(params, step.grid, tables=step.table_grid)
  return tensors.dequantise(tensors.quantise(params, plan))


@pytest.mark.slow
@pytest.mark.parametrize('rounded', [True, False])
def test_the_loss_is_of_what_will_be_rounded(parent, tmp_path, rounded):
  row = {'do': 'train', 'steps': 4, 'learning_rate': 0.02, 'rounded': rounded}
  model, _ = carry(parent, tmp_path, row, ROUND)
  task, splits = parent.task, parent.task.dataset.splits
  assert {np.asarray(x).dtype for x in jax.tree.leaves(model.params)} == {
    np.dtype('float32')
  }
  lines = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  first = data.batch_at(
    splits['train'], task.encode, 0, seed=0, batch_size=8, max_length=16
  )
  as_they_are, as_codes = (
    cross_entropy(task, params, first)
    for params in (parent.model.params, as_rounded(parent.model.params))
  )
  assert abs(as_they_are - as_codes) > 3e-3
  wanted = as_codes if rounded else as_they_are
  assert rows[0]['loss'] == pytest.approx(wanted, abs=1e-4)
  # What was selected, and is handed on, was measured in the same way.
  result = json.loads((tmp_path / 'run/result.json').read_text())
  with data.eval_batches(
    splits['validation'], task.encode, batch_size=21, max_length=16,
    num_threads=0,
  ) as batches:  # fmt: skip
    whole = next(batches)
  as_they_are, as_codes = (
    cross_entropy(task, params, whole)
    for params in (model.params, as_rounded(model.params))
  )
  assert abs(as_they_are - as_codes) > 3e-3
  wanted = as_codes if rounded else as_they_are
  assert result['validation']['loss'] == pytest.approx(wanted, abs=1e-4)
  found = [own for own in rows if own['split'] == 'validation']
  best = max(found, key=lambda own: own['accuracy'])
  assert result['selected_step'] == best['step']


@pytest.mark.slow
def test_what_was_pretrained_is_not_pretrained_again(parent, tmp_path):
  """The stage before the parent's run is none before that of a step."""
  config = config_lib.changed(
    parent.model.config,
    {'pretrain.num_steps': 2, 'pretrain.learning_rate': 0.1},
  )
  row = {'do': 'train', 'steps': 1, 'learning_rate': 1e-7}
  before = parent.model._replace(config=config)
  model, _ = carry(parent, tmp_path, row, model=before)
  assert not (tmp_path / 'run/pretrain').exists()
  for path, x in flat(before.params).items():
    np.testing.assert_allclose(flat(model.params)[path], x, atol=1e-5)


# Products of two matrices.


@pytest.fixture(scope='module')
def with_types(tmp_path_factory):
  """A pretrained model of texts, whose tokens have types."""
  folder = tmp_path_factory.mktemp('types')
  config = similarity_config(folder)
  task = tasks.make(config)
  params = pretrained.load(folder).params
  # Of shorter rows.
  params = {**params, 'positions': params['positions'][:LENGTH]}
  assert params['types']['embedding'].shape == (2, 12)
  model = Compressed(config, 'embedder', 31, 0, False, params, '0' * 64)
  return places.Parent(model, task)


@pytest.mark.parametrize('parts', [['embedding'], ['mlp', 'embedding']])
def test_the_table_of_tokens_is_factorised_and_no_other(
  with_types, tmp_path, parts
):
  row = {'do': 'factorise', 'share': 0.5, 'parts': parts}
  row |= {'batches': 1} if 'mlp' in parts else {}
  model, _ = carry(with_types, tmp_path, row)
  before, after = flat(with_types.model.params), flat(model.params)
  np.testing.assert_array_equal(
    after['types/embedding'], before['types/embedding']
  )
  # int(31 * 12 * 0.5 / 43) of the table.
  assert model.config.model.embedding_width == 4
  assert after['embedding/embedding'].shape == (31, 4)
  assert after['embedding_out/kernel'].shape == (4, 12)
  is_low = any('/mlp/in_low/' in path for path in after)
  assert is_low == ('mlp' in parts)
  found = outputs.of_split(model, places.task_of(model, with_types), 'test')[0]
  assert np.isfinite(found).all()


def test_without_a_table_there_is_none_to_factorise(parent, tmp_path):
  params = {
    name: x for name, x in parent.model.params.items() if name != 'embedding'
  }
  row = {'do': 'factorise', 'share': 0.5, 'parts': ['embedding']}
  with pytest.raises(errors.ConfigError, match='there is no embedding that'):
    carry(parent, tmp_path, row, model=parent.model._replace(params=params))
