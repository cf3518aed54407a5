"""Whole runs on own files: what is written, what is read, what is refused."""

import json

import jax
import pytest

from effformer import config as config_lib
from effformer import errors
from effformer.train import preemption, session
from tests.train.tiny_run import examples, quiet_screen, tiny_config

# As the documentation promises.
RESULT_KEYS = {
  *('task', 'dataset', 'stand_in', 'mechanism', 'preset', 'quick', 'seed'),
  *('steps', 'num_params', 'test', 'validation', 'floors'),
  *('steps_per_second', 'device', 'versions', 'commit'),
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
  tracked = config_lib.tracked(config)
  console = quiet_screen()
  result = session.train(tracked, str(folder), preemption.Stop(), console)
  return folder, result, console.console.file.getvalue(), tracked.unread()


def test_result_says_everything(finished):
  folder, result, _, _ = finished
  assert json.loads((folder / 'result.json').read_text()) == result
  assert set(result) >= RESULT_KEYS
  for split, count in (('validation', 9), ('test', 7)):
    assert set(result[split]) == {'accuracy', 'loss', 'count'}
    assert result[split]['count'] == count
  assert result['task'] == 'text'
  assert result['mechanism'] == 'linear'
  assert result['steps'] == 12
  assert result['stand_in'] is False
  assert set(result['floors']) == {'majority', 'bag_of_bytes'}
  assert result['versions']['jax'] == jax.__version__


def test_every_key_is_read_by_something(finished):
  assert finished[3] == []


def test_the_screen_names_what_counts(finished):
  folder, result, printed, _ = finished
  for words in (
    'devices: cpu x 8',
    'train ',
    'starting from step 0',
    'compiling the training step',
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
  console = quiet_screen()
  again = session.train(config, str(folder), preemption.Stop(), console)
  assert again == result
  assert 'finished run' in console.console.file.getvalue()
  assert 'compiling' not in console.console.file.getvalue()


def test_evaluating_gives_the_scores_of_the_run(config, finished):
  folder, result, _, _ = finished
  outcome = session.evaluate(
    config, str(folder), preemption.Stop(), quiet_screen()
  )
  assert json.loads((folder / 'eval.json').read_text()) == outcome
  for split in ('validation', 'test'):
    assert outcome[split] == pytest.approx(result[split])


def test_there_is_nothing_to_evaluate_in_an_empty_folder(config, tmp_path):
  with pytest.raises(errors.CheckpointError, match='no run to evaluate'):
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
    session.train(changed, str(folder), preemption.Stop(), quiet_screen())
  message = str(caught.value)
  assert 'train.learning_rate' in message
  assert 'model.width' in message
  assert len(message.splitlines()) <= 5


def test_r23_what_changes_no_result_may_change(config, finished):
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.data.prefetch = 7
  console = quiet_screen()
  session.train(changed, str(finished[0]), preemption.Stop(), console)
  assert 'data.prefetch is now 7' in console.console.file.getvalue()


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
