"""Whole runs on own files: what is written, what is read, what is refused."""

import json
import shutil

import jax
import pytest

from effformer import config_tracked, errors
from effformer.train import identity, preemption, session
from tests.train.tiny_run import examples, quiet_screen, tiny_config, train

# As the documentation promises.
RESULT_KEYS = {
  *('task', 'dataset', 'stand_in', 'mechanism', 'preset', 'quick', 'seed'),
  *('steps', 'num_params', 'test', 'validation', 'floors', 'score'),
  *('cost', 'steps_per_second', 'device', 'versions', 'commit'),
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  for split, count, seed in (
    ('train', 40, 0),
    ('validation', 9, 1),
    ('test', 7, 2),
  ):
    rows = (
      json.dumps({'text': e['text'].decode(), 'label': e['label']})
      for e in (examples(count, seed)[i] for i in range(count))
    )
    (folder / f'{split}.jsonl').write_text('\n'.join(rows) + '\n')
  return folder


@pytest.fixture(scope='module')
def config(files):
  return tiny_config(
    data__train=str(files / 'train.jsonl'),
    data__validation=str(files / 'validation.jsonl'),
    data__test=str(files / 'test.jsonl'),
    # The mesh is of all eight devices.
    train__batch_size=8,
    train__eval_batch_size=8,
  )


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  """A finished run: folder, result, what was printed, the keys not read."""
  folder = tmp_path_factory.mktemp('run') / 'run'
  tracked = config_tracked.tracked(config)
  return folder, *train(tracked, folder), tracked.unread()


def test_result_says_everything(finished):
  folder, result, _, _ = finished
  assert json.loads((folder / 'result.json').read_text()) == result
  assert set(result) >= RESULT_KEYS
  for split, count in (('validation', 9), ('test', 7)):
    assert set(result[split]) == {'accuracy', 'loss', 'count'}
    assert result[split]['count'] == count
  assert result['task'] == 'text'
  assert result['score'] == 'accuracy'
  assert result['mechanism'] == 'linear'
  assert result['steps'] == 12
  assert result['stand_in'] is False
  assert set(result['floors']) == {'majority', 'bag_of_bytes'}
  assert result['versions']['jax'] == jax.__version__
  costs = result['cost']
  # Twice for each parameter of a matrix that a token meets, and backwards
  # twice as much; of 4 x 16 tokens. Tables and norms are no matrices.
  upper = 6 * result['num_params'] * 4 * 16
  assert 0.3 * upper < costs['products_per_step'] < upper
  assert costs['operations_per_step'] > costs['products_per_step']
  # Parameters and two moments, float32, on each of the devices.
  assert costs['state_and_batch_bytes'] > 12 * result['num_params']
  assert costs['temporary_bytes'] > 0


def test_every_key_is_read_by_something(finished):
  # Heads of two texts and of tokens and subwords are refused here
  # (config_task), there is no stage before this run, and it is not compressed.
  stage = ('learning_rate', 'mask_fraction', 'objective', 'warmup_steps')
  small = ('controls', 'parent', 'recipe', 'seed', 'shapes')
  assert finished[3] == [
    *(f'compress.{key}' for key in small),
    'data.tokenizer',
    'model.pair_head',
    'model.token_head',
    *(f'pretrain.{key}' for key in stage),
  ]


def test_the_screen_names_what_counts(finished):
  folder, result, printed, _ = finished
  for words in (
    'devices: cpu x 8',
    'train ',
    'starting from step 0',
    'compiling the training and the evaluation step',
    'steps/s',
    'waiting',
    'ETA',
    'validation loss',
    'floor',
    'majority',
    f'{result["num_params"]:,} parameters',
    str(folder),
  ):
    assert words in printed, words


def test_a_finished_run_is_told_not_repeated(config, finished):
  folder, result, _, _ = finished
  again, printed = train(config, folder)
  assert again == result
  assert 'finished run' in printed
  assert 'compiling' not in printed


def test_evaluating_gives_the_scores_of_the_run(config, finished):
  folder, result, _, _ = finished
  outcome = session.evaluate(
    config, str(folder), preemption.Stop(), quiet_screen()
  )
  assert json.loads((folder / 'eval.json').read_text()) == outcome
  for split in ('validation', 'test'):
    assert outcome[split] == pytest.approx(result[split])


def test_there_is_nothing_to_evaluate_in_an_empty_folder(config, tmp_path):
  with pytest.raises(errors.CheckpointError, match='holds no run'):
    session.evaluate(config, str(tmp_path), preemption.Stop(), quiet_screen())


def test_r23_a_changed_config_is_refused_with_the_difference(
  config, finished, tmp_path
):
  folder = finished[0]
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.train.learning_rate = 0.5
    changed.model.width = 24
  with pytest.raises(errors.ConfigError) as caught:
    train(changed, folder)
  message = str(caught.value)
  assert 'train.learning_rate' in message
  assert 'model.width' in message
  assert len(message.splitlines()) <= 5


def test_r23_what_changes_no_result_may_change(config, finished):
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.data.prefetch = 7
  _, printed = train(changed, finished[0])
  assert 'data.prefetch is now 7' in printed


def test_dry_run_writes_nothing(config, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  console = quiet_screen()
  session.dry_run(config, console)
  assert list(tmp_path.iterdir()) == []
  printed = console.console.file.getvalue()
  assert 'total' in printed
  assert 'MiB temporary' in printed


def test_a_batch_that_does_not_divide_is_refused_before_compiling(config):
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.train.batch_size = 12
  console = quiet_screen()
  with pytest.raises(errors.ConfigError, match=r'train\.batch_size=12'):
    session.dry_run(changed, console)
  assert 'compiling' not in console.console.file.getvalue()


def unfinished(folder, target):
  """The finished run as it was when it had saved step 9."""
  shutil.copytree(folder, target)
  (target / 'result.json').unlink()
  shutil.rmtree(target / 'checkpoints' / 'last' / '00000012')
  return target


def test_other_data_are_refused(config, finished, files, tmp_path):
  folder = unfinished(finished[0], tmp_path / 'run')
  changed = config.copy_and_resolve_references()
  test = files / 'test.jsonl'
  before = test.read_text()
  try:
    test.write_text(before + before.splitlines()[0] + '\n')
    with pytest.raises(errors.DataError) as caught:
      train(changed, folder)
  finally:
    test.write_text(before)
  assert 'different content in: test' in str(caught.value)
  assert len(str(caught.value).splitlines()) <= 5
  result, _ = train(config, folder)
  assert result['state_sha256'] == finished[1]['state_sha256']


def test_evaluating_an_unfinished_run_leaves_test_and_records_alone(
  config, finished, tmp_path
):
  folder = unfinished(finished[0], tmp_path / 'run')
  rows = (folder / 'metrics.jsonl').read_bytes()
  outcome = session.evaluate(
    config, str(folder), preemption.Stop(), quiet_screen()
  )
  assert set(outcome) == {'step', 'validation'}
  assert (folder / 'metrics.jsonl').read_bytes() == rows


def test_a_start_that_failed_binds_nobody(config, tmp_path):
  folder = tmp_path / 'run'
  wrong = config.copy_and_resolve_references()
  with wrong.unlocked():
    wrong.data.train = str(tmp_path / 'typo.jsonl')
  with pytest.raises(errors.DataError, match=r'typo\.jsonl'):
    train(wrong, folder)
  result, _ = train(config, folder)
  assert result['steps'] == 12


def test_a_damaged_best_checkpoint_is_told_with_a_true_remedy(
  config, finished, tmp_path
):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  (folder / 'result.json').unlink()
  best = next((folder / 'checkpoints' / 'best').iterdir())
  (best / 'manifest.json').write_text('{}')
  in_last = (folder / 'checkpoints' / 'last' / best.name).exists()
  if in_last:
    result, _ = train(config, folder)
    assert result['test'] == finished[1]['test']
    shutil.rmtree(folder / 'checkpoints' / 'last' / best.name)
    (folder / 'result.json').unlink()
  if list((folder / 'checkpoints' / 'last').iterdir()):
    with pytest.raises(errors.CheckpointError, match='another --workdir'):
      session.evaluate(config, str(folder), preemption.Stop(), quiet_screen())


def test_a_result_that_is_none_is_damaged(config, finished, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  (folder / 'result.json').write_text('{}')
  with pytest.raises(errors.CheckpointError, match='not the result of a run'):
    train(config, folder)


def test_other_software_is_announced():
  assert identity.other_software({'versions': identity.versions()}) == []
  older = {**identity.versions(), 'jax': '0.0.1'}
  (sentence,) = identity.other_software({'versions': older})
  assert 'jax 0.0.1 ->' in sentence
