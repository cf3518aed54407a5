"""The stage before a run: what it hands on, and that kills change nothing."""

import json
import shutil

import jax
import numpy as np
import pytest

from effformer import errors, tasks
from effformer.train import (
  checkpoint,
  preemption,
  pretraining,
  runs,
  session,
  setup,
  workdir,
)
from tests.train.tiny_run import (
  StopAfter,
  again_and_again,
  quiet_screen,
  tiny_config,
  train,
  write_examples,
)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return tiny_config(
    **write_examples(folder, train=40, validation=9, test=7),
    train__batch_size=8,
    train__eval_batch_size=8,
    train__num_steps=4,
    pretrain__num_steps=6,
    pretrain__warmup_steps=1,
    pretrain__mask_fraction=0.4,
  )


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  return folder, *train(config, folder)


def rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_stage_is_a_run_of_its_own(config, finished):
  folder, result, printed = finished
  stage = rows(folder / 'pretrain')
  assert max(row['step'] for row in stage) == 6
  validations = [row for row in stage if row['split'] == 'validation']
  best = min(validations, key=lambda row: row['bits'])
  facts = json.loads((folder / 'pretrain.json').read_text())
  assert result['pretrain'] == facts
  assert facts['objective'] == 'masked'
  assert facts['num_steps'] == 6
  assert facts['validation'] == best
  assert 0 < best['tokens'] < 9 * config.data.max_length
  assert max(row['step'] for row in rows(folder)) == 4
  for words in (
    'pretraining (masked): 6 steps',
    'pretrained parameters of',
    'pretrained on its own inputs before: masked, 6 steps',
    'bits a token',
  ):
    assert words in printed
  assert not (folder / 'pretrain' / 'result.json').exists()


def test_the_run_starts_from_the_trunk_of_the_best_step(config, finished):
  folder, result, _ = finished
  step = result['pretrain']['validation']['step']
  task, program = runs.build(config, quiet_screen())
  own = pretraining.stage_config(config)
  stage = setup.build(own, tasks.pretraining(own, task))
  best = checkpoint.Checkpoints(folder / 'pretrain/checkpoints/best', keep=1)
  learnt = best.restore(step, stage.abstract.params).state
  made = program.first_state()
  merged = pretraining.merged(made, learnt)
  fresh = {'head_in', 'head_out'} & set(made.params)
  assert fresh
  for name, params in merged.params.items():
    source = made.params if name in fresh else learnt
    jax.tree.map(np.testing.assert_array_equal, params, source[name])
  other = jax.tree.leaves(made.params['encoder'])
  moved = zip(jax.tree.leaves(merged.params['encoder']), other, strict=True)
  assert any((np.asarray(a) != np.asarray(b)).any() for a, b in moved)


@pytest.mark.parametrize('every', [4, 7])
@pytest.mark.slow
def test_stopped_again_and_again_it_ends_in_the_same_bytes(
  config, finished, tmp_path, every
):
  folder, result, _ = finished
  again, _ = again_and_again(lambda stop: train(config, tmp_path, stop), every)
  assert again['state_sha256'] == result['state_sha256']
  assert again['pretrain'] == result['pretrain']
  for name in ('metrics.jsonl', 'pretrain/metrics.jsonl'):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_that_has_begun_does_not_repeat_the_stage(config, tmp_path):
  # Six steps and evaluations of the stage, then into the run.
  with pytest.raises(errors.Preempted):
    train(config, tmp_path, StopAfter(12))
  assert workdir.has_begun(tmp_path)
  _, printed = train(config, tmp_path)
  assert 'pretraining' not in printed


def test_a_stage_that_is_gone_is_missed_only_where_it_is_needed(
  config, tmp_path
):
  with pytest.raises(errors.Preempted):
    train(config, tmp_path, StopAfter(12))
  shutil.rmtree(tmp_path / 'pretrain')
  result, _ = train(config, tmp_path)
  assert result['pretrain']['num_steps'] == 6


@pytest.mark.parametrize('damage', ['other', 'gone'])
def test_other_pretrained_parameters_are_refused(
  config, finished, tmp_path, damage
):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  for name in ('result.json', 'metrics.jsonl'):
    (folder / name).unlink()
  shutil.rmtree(folder / 'checkpoints')
  if damage == 'other':
    facts = json.loads((folder / 'pretrain.json').read_text())
    facts['params_sha256'] = 'x'
    (folder / 'pretrain.json').write_text(json.dumps(facts))
  else:
    shutil.rmtree(folder / 'pretrain/checkpoints/best')
  with pytest.raises(errors.CheckpointError):
    train(config, folder)


def test_a_run_begins_with_the_parameters_of_the_stage(config, finished):
  """From the state alone, without the functions that hand it on."""
  folder, result, _ = finished
  copy = folder.parent / 'again'
  shutil.copytree(folder, copy)
  for name in ('result.json', 'metrics.jsonl'):
    (copy / name).unlink()
  shutil.rmtree(copy / 'checkpoints')
  again, _ = train(config, copy)
  assert again['state_sha256'] == result['state_sha256']
  plain = config.copy_and_resolve_references()
  with plain.unlocked():
    plain.pretrain.num_steps = 0
  other, _ = train(plain, folder.parent / 'plain')
  assert other['state_sha256'] != result['state_sha256']


def test_a_dry_run_looks_at_the_stage(config):
  console = quiet_screen()
  session.dry_run(config, console)
  printed = console.console.file.getvalue()
  assert 'the stage before it' in printed
  assert printed.count('compiled in') == 2


def test_other_keys_of_the_stage_are_another_run(config, finished):
  other = config.copy_and_resolve_references()
  with other.unlocked():
    other.pretrain.mask_fraction = 0.3
  with pytest.raises(errors.ConfigError, match=r'pretrain\.mask_fraction'):
    session.evaluate(other, str(finished[0]), preemption.Stop(), quiet_screen())


def test_a_causal_stage_needs_the_same_parameters(config, tmp_path):
  other = tiny_config(
    's5',
    mixer__state_width=8,
    mixer__hippo_blocks=2,
    **{
      f'data__{split}': config.data[split]
      for split in ('train', 'validation', 'test')
    },
    train__batch_size=8,
    train__eval_batch_size=8,
    pretrain__num_steps=2,
    pretrain__objective='causal',
  )
  with pytest.raises(errors.ConfigError, match='other parameters') as caught:
    train(other, tmp_path / 'run')
  assert 'pretrain.objective=masked' in str(caught.value)
  assert not (tmp_path / 'run' / 'pretrain').exists()
