"""--mode=predict, on runs whose data are gone."""

import json
import math
import random
import shutil

import pytest

from effformer import errors
from effformer.train import prediction, preemption
from tests.train.tiny_run import WORDS, quiet_screen, tiny_config, train

LABELS = ('dull', 'fine')


def rows(count, seed, names):
  generator = random.Random(seed)
  for _ in range(count):
    texts = [
      ' '.join(w.decode() for w in generator.choices(WORDS, k=3)) for _ in names
    ]
    label = LABELS['good' in texts[-1]]
    yield {**dict(zip(names, texts, strict=True)), 'label': label}


@pytest.fixture(scope='module', params=['text', 'retrieval'])
def run(request, tmp_path_factory):
  """(config, folder, result, rows of test) of a run on data that are gone."""
  place = tmp_path_factory.mktemp(request.param)
  names = ('text', 'other')[: 1 + (request.param == 'retrieval')]
  keys, test = {}, []
  for seed, (split, count) in enumerate({'train': 40, 'test': 9}.items()):
    test = list(rows(count, seed, names))
    path = place / f'{split}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in test))
    keys[f'data__{split}'] = str(path)
  config = tiny_config(
    **keys,
    train__batch_size=8,
    train__eval_batch_size=8,
    # Longer than any text.
    data__max_length=20,
  )
  with config.unlocked():
    config.task = request.param
    config.model.pair_head = 'none' if len(names) == 1 else 'concat'
  folder = place / 'run'
  result, _ = train(config, folder)
  for path in place.glob('*.jsonl'):
    path.unlink()
  return config, folder, result, test


def predict(config, folder, given):
  console = quiet_screen()
  found = prediction.predict(
    config, str(folder), given, preemption.Stop(), console
  )
  return found, console.console.file.getvalue()


def test_gives_the_probabilities_that_the_test_was_scored_by(run):
  config, folder, result, test = run
  names = [name for name in ('text', 'other') if name in test[0]]
  before = sorted(path.name for path in folder.iterdir())
  found, printed = predict(
    config, folder, [row[name] for row in test for name in names]
  )
  assert len(found) == len(test)
  hits, losses = 0, []
  for outcome, row in zip(found, test, strict=True):
    p = outcome['probabilities']
    assert set(p) == set(LABELS)
    assert sum(p.values()) == pytest.approx(1, abs=1e-5)
    assert list(p.values()) == sorted(p.values(), reverse=True)
    assert outcome['input'] == ' and '.join(row[name] for name in names)
    assert outcome['tokens'] == [len(row[name]) for name in names]
    hits += next(iter(p)) == row['label']
    losses.append(-math.log(p[row['label']]))
    assert outcome['input'] in printed
  assert hits / len(test) == pytest.approx(result['test']['accuracy'])
  mean = sum(losses) / len(losses)
  assert mean == pytest.approx(result['test']['loss'], rel=1e-5)
  assert before == sorted(path.name for path in folder.iterdir())


def test_a_wrong_number_of_inputs_is_refused(run):
  config, folder, _, _ = run
  wrong = [] if config.task == 'text' else ['only one of two']
  with pytest.raises(errors.ConfigError, match='--input for each example'):
    predict(config, folder, wrong)


def test_what_is_cut_is_said(run):
  config, folder, _, test = run
  number = 1 + ('other' in test[0])
  _, printed = predict(config, folder, ['film ' * 9] * number)
  assert 'of which the first 20 are read' in printed


@pytest.mark.parametrize(
  ('broken', 'words'),
  [('data.json', 'classes'), ('metrics.jsonl', 'no evaluated step')],
)
def test_a_folder_without_what_is_needed_is_exit_4(
  run, tmp_path, broken, words
):
  config, folder, _, _ = run
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  (copy / broken).write_text('{}' if broken == 'data.json' else '')
  with pytest.raises(errors.CheckpointError, match=words):
    predict(config, copy, ['a', 'b'])


def test_a_folder_without_a_run_is_exit_4(run, tmp_path):
  with pytest.raises(errors.CheckpointError, match='holds no run'):
    predict(run[0], tmp_path / 'nothing', ['a', 'b'])
  assert not (tmp_path / 'nothing').exists()
