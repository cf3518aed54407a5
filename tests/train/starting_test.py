"""Runs that start from parameters trained before."""

import dataclasses
import json
import re
import shutil

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from effformer import config as config_lib
from effformer import config_tracked, errors, pretrained
from effformer.train import runs, session, starting
from tests.pretrained.golden_test import folder_of
from tests.subwords import save_tokenizer
from tests.train.tiny_pretrained import LENGTH, WORDS, pretrained_config
from tests.train.tiny_run import (
  StopAfter,
  again_and_again,
  quiet_screen,
  train,
  write_rows,
)


def write_texts(path, count, seed):
  rng = np.random.default_rng(seed)
  return write_rows(
    path,
    (
      {'text': ' '.join(rng.choice(WORDS, 4)), 'label': n % 2}
      for n in range(count)
    ),
  )


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  counts = {'train': 24, 'validation': 6, 'test': 5}
  files = {
    split: write_texts(folder / f'{split}.jsonl', count, seed)
    for seed, (split, count) in enumerate(counts.items())
  }
  return pretrained_config(folder, 'sentence', files)


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  tracked = config_tracked.tracked(config)
  result = folder, *train(tracked, folder)
  assert {'data.tokenizer', 'model.pretrained'}.isdisjoint(tracked.unread())
  return result


def first_params(config, folder, start=None):
  """What a run begins with, flat, and what was made for it."""
  console = quiet_screen()
  folder.mkdir(exist_ok=True)
  _, program = runs.build(config, console)
  start = start or starting.from_config(config)
  begun = starting.begun(start, program, folder, console)
  return tuple(
    flax.traverse_util.flatten_dict(p.first_state().params, sep='/')
    for p in (begun, program)
  )


def test_the_first_state_is_the_pretrained_model(config, tmp_path):
  first, made = first_params(config, tmp_path)
  model = pretrained.load(config.model.pretrained)
  given = flax.traverse_util.flatten_dict(model.params, sep='/')
  assert set(given) | {'head_out/kernel', 'head_out/bias'} == set(first)
  for path, x in first.items():
    if path.startswith('head'):
      expected = made[path]
    elif path == 'positions':
      # Rows of the run are shorter.
      assert given[path].shape == (9, 12)
      expected = given[path][:LENGTH]
    else:
      expected = given[path]
    np.testing.assert_array_equal(x, expected, err_msg=path)


def test_the_result_says_what_it_began_with(config, finished):
  folder, result, printed = finished
  facts = json.loads((folder / 'start.json').read_text())
  assert result['start'] == facts
  assert facts['origin'] == config.model.pretrained
  assert facts['new'] == ['head_out/bias', 'head_out/kernel']
  assert f'started from {config.model.pretrained}' in printed
  assert 'new, as first made: head_out/bias, head_out/kernel' in printed
  assert set(result['test']) == {'loss', 'accuracy', 'matthews', 'f1', 'count'}


@pytest.mark.slow
@pytest.mark.parametrize('every', [4])
def test_stopped_again_and_again_it_ends_in_the_same_bytes(
  config, finished, tmp_path, every
):
  again, _ = again_and_again(lambda stop: train(config, tmp_path, stop), every)
  assert again['state_sha256'] == finished[1]['state_sha256']
  assert again['start'] == finished[1]['start']


def test_another_attention_keeps_the_projections(config, tmp_path):
  other = config_lib.changed(
    config, {'model.layers': {'1': {'mixer': 'linformer', 'rank': 3}}}
  )
  first, made = first_params(other, tmp_path)
  plain, _ = first_params(config, tmp_path / 'plain')
  new = {path for path in first if path not in plain}
  assert new
  assert all(path.startswith('encoder/layer_1/mixer/') for path in new)
  for path, x in first.items():
    source = made if path in new or path.startswith('head') else plain
    np.testing.assert_array_equal(x, source[path], err_msg=path)


def test_the_head_of_a_classifier_is_kept(config, tmp_path):
  """Where it has the same classes."""
  folder = folder_of('bert-classifier', tmp_path / 'model')
  model = pretrained.load(folder, 'classifier')
  keys = {'model.pooling': 'first', 'model.head_width': 12}
  other = config_lib.changed(config, {**keys, 'model.pretrained': str(folder)})
  first, made = first_params(other, tmp_path / 'run')
  np.testing.assert_array_equal(
    first['head_in/kernel'], model.params['head_in']['kernel']
  )
  # Five classes there, two here.
  np.testing.assert_array_equal(
    first['head_out/kernel'], made['head_out/kernel']
  )


@pytest.mark.parametrize('key', ['num_layers', 'mlp_width', 'activation'])
def test_a_config_of_another_model_is_told_the_key(config, tmp_path, key):
  wrong = {'num_layers': 1, 'mlp_width': 11, 'activation': 'relu'}[key]
  right = {'num_layers': 2, 'mlp_width': 10, 'activation': 'gelu_exact'}[key]
  other = config_lib.changed(config, {f'model.{key}': wrong})
  for act in (
    lambda: train(other, tmp_path / 'run'),
    lambda: session.dry_run(other, quiet_screen()),
  ):
    with pytest.raises(
      errors.ConfigError, match=re.escape(f'Use --config.model.{key}={right}.')
    ):
      act()
  assert not (tmp_path / 'run' / 'start.json').exists()


def test_parameters_of_another_shape_are_named(config, tmp_path):
  model = pretrained.load(config.model.pretrained)
  flat = flax.traverse_util.flatten_dict(model.params, sep='/')
  path = 'encoder/layer_1/mlp/in/kernel'
  for change, words in (
    ({path: flat[path][:, :-1]}, r'kernel is \(12, 9\) there, and \(12, 10\)'),
    ({path: None}, 'kernel is missing there'),
  ):
    params = {k: v for k, v in {**flat, **change}.items() if v is not None}
    start = starting.Start(
      flax.traverse_util.unflatten_dict(params, sep='/'), 'a test'
    )
    with pytest.raises(errors.ConfigError, match=words):
      train(config, tmp_path / 'run', start=start)


def test_a_tokenizer_of_another_model_is_named(config, tmp_path):
  """It has 4 special tokens; the model has 31 in all."""
  name = config.model.pretrained
  for words in (WORDS[:-2], (*WORDS, 'more')):
    other = tmp_path / str(len(words))
    other.mkdir()
    tokenizer = str(save_tokenizer(other, words))
    wrong = config_lib.changed(config, {'data.tokenizer': tokenizer})
    for act in (
      lambda wrong=wrong: train(wrong, tmp_path / 'run'),
      lambda wrong=wrong: session.dry_run(wrong, quiet_screen()),
    ):
      with pytest.raises(errors.ConfigError) as caught:
        act()
      text = str(caught.value)
      assert f'data.tokenizer={tokenizer!r} has {len(words) + 4} tok' in text
      assert f'the model {name!r} has 31:' in text
      assert f'Use --config.data.tokenizer={name},' in text
      assert len(text.splitlines()) <= 5
  assert not (tmp_path / 'run' / 'start.json').exists()


def test_other_tokens_than_those_of_given_parameters(config, tmp_path):
  """Of a start whose tokenizer has no name."""
  model = pretrained.load(config.model.pretrained)
  flat = flax.traverse_util.flatten_dict(model.params, sep='/')
  flat['embedding/embedding'] = flat['embedding/embedding'][:-1]
  start = starting.Start(
    flax.traverse_util.unflatten_dict(flat, sep='/'), 'a test'
  )
  with pytest.raises(errors.ConfigError, match='tokenizer of this task has 31'):
    train(config, tmp_path / 'run', start=start)


def test_other_parameters_than_at_the_beginning_are_refused(
  config, finished, tmp_path
):
  folder = tmp_path / 'run'
  with pytest.raises(errors.Preempted):
    train(config, folder, StopAfter(5))
  model = tmp_path / 'model'
  shutil.copytree(config.model.pretrained, model)
  tensors = safetensors.numpy.load_file(model / 'model.safetensors')
  tensors['embeddings.word_embeddings.weight'][3, 4] += 1e-3
  safetensors.numpy.save_file(tensors, model / 'model.safetensors')
  changed = starting.Start(pretrained.load(model).params, 'changed')
  with pytest.raises(errors.CheckpointError, match='began with other param'):
    train(config, folder, start=changed)
  (folder / 'start.json').unlink()
  with pytest.raises(errors.CheckpointError, match='began with other param'):
    train(config, folder)


def test_the_task_may_be_adapted(config, finished, tmp_path):
  """Another objective on the same model: the values differ, all else is so."""

  def adapt(task):
    def objective(params, batch, key, step):
      loss, values = task.objective(params, batch, key, step)
      return 3 * loss, {**values, 'thrice': jnp.ones(())}

    return dataclasses.replace(task, objective=objective)

  result, _ = train(config, tmp_path, adapt=adapt)
  first = finished[0] / 'metrics.jsonl', tmp_path / 'metrics.jsonl'
  plain, tripled = (json.loads(p.read_text().splitlines()[0]) for p in first)
  assert tripled['thrice'] == 1
  assert tripled['loss'] == pytest.approx(3 * plain['loss'], rel=1e-5)
  assert result['state_sha256'] != finished[1]['state_sha256']


@pytest.mark.parametrize('parts', [1, 2])
def test_an_objective_may_have_frozen_arrays(config, tmp_path, parts):
  """As a teacher has: given to each step, of no gradient, on all devices."""

  def adapt(task):
    def objective(params, batch, key, step, teacher):
      loss, values = task.objective(params, batch, key, step)
      return loss * teacher['scale'], {**values, 'plain': loss}

    return dataclasses.replace(
      task, objective=objective, frozen=({'scale': np.float32(2.5)},)
    )

  own = config_lib.changed(
    config,
    {
      'train.batch_size': 8 * parts,
      'train.accumulate_steps': parts,
      'train.num_steps': 2,
    },
  )
  train(own, tmp_path, adapt=adapt)
  first = json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[0])
  assert first['loss'] == pytest.approx(2.5 * first['plain'], rel=1e-6)
