"""Runs of the task `similarity`: to the end, again, scored, and as they are."""

import json

import numpy as np
import pytest
import scipy.stats

from effformer import config as config_lib
from effformer import config_tracked, data, errors, pretrained, tasks
from effformer.train import (
  generation,
  prediction,
  preemption,
  session,
  state,
)
from tests.train.tiny_pretrained import LENGTH
from tests.train.tiny_run import StopAfter, quiet_screen, train
from tests.train.tiny_similarity import (
  COUNTS,
  pairs,
  similarity_config,
)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return similarity_config(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  tracked = config_tracked.tracked(config)
  result = folder, *train(tracked, folder)
  assert {'data.tokenizer', 'model.pretrained'}.isdisjoint(tracked.unread())
  return result


@pytest.fixture(scope='module')
def scored(config, tmp_path_factory):
  """A run of no step: config, folder, result, and what was printed."""
  as_it_is = config_lib.changed(config, {'train.num_steps': 0})
  folder = tmp_path_factory.mktemp('scored')
  return as_it_is, folder, *train(as_it_is, folder)


def test_the_result_has_its_score(finished):
  folder, result, printed = finished
  assert result['score'] == 'pearson'
  for split in ('validation', 'test'):
    assert set(result[split]) == {'loss', 'pearson', 'count'}
    assert result[split]['count'] == COUNTS[split]
    assert -1 <= result[split]['pearson'] <= 1
  assert set(result['floors']) == {'shared_subwords', 'lengths'}
  assert result['start']['new'] == []
  rows = [
    json.loads(line)
    for line in (folder / 'metrics.jsonl').read_text().splitlines()
  ]
  best = max(
    (row for row in rows if row['split'] == 'validation'),
    key=lambda row: row['pearson'],
  )
  assert result['selected_step'] == best['step']
  first = rows[0]
  assert (first['split'], 'accuracy' in first) == ('train', False)
  for words in ('  pearson ', 'test pearson  ', 'validation pearson  '):
    assert words in printed, words
  assert 'accuracy' not in printed
  assert f'{100 * result["floors"]["lengths"]:.2f}  lengths' in printed


def test_what_is_trained_comes_nearer(config, finished, tmp_path):
  longer = config_lib.changed(
    config,
    {
      'train.num_steps': 40, 'train.eval_every_steps': 20,
      'train.checkpoint_every_steps': 40, 'model.dropout': 0.0,
      'data.validation': config.data.train,
    },
  )  # fmt: skip
  train(longer, tmp_path)
  rows = [
    json.loads(line)
    for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  first = next(row for row in rows if row['split'] == 'train')
  last = [row for row in rows if row['split'] == 'validation'][-1]
  assert last['loss'] < first['loss'] / 2
  assert last['pearson'] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize('every', [6])
def test_stopped_again_and_again_it_ends_in_the_same_bytes(
  config, finished, tmp_path, every
):
  for _ in range(40):
    try:
      again, _ = train(config, tmp_path, StopAfter(every))
      break
    except errors.Preempted:
      pass
  else:
    raise AssertionError('the run never came to its end')
  for key in ('state_sha256', 'test', 'validation', 'selected_step'):
    assert again[key] == finished[1][key]


def test_evaluating_says_the_score(config, finished):
  folder, result, _ = finished
  console = quiet_screen()
  outcome = session.evaluate(config, str(folder), preemption.Stop(), console)
  assert outcome['test'] == pytest.approx(result['test'])
  assert outcome['floors'] == result['floors']
  printed = console.console.file.getvalue()
  assert (
    f'test       pearson {100 * result["test"]["pearson"]:.2f} of' in printed
  )
  assert 'floor      pearson ' in printed


def predict(config, folder, given):
  console = quiet_screen()
  found = prediction.predict(
    config, str(folder), given, preemption.Stop(), console
  )
  return found, console.console.file.getvalue()


def test_predicting_gives_what_the_test_was_scored_by(config, finished):
  folder, result, _ = finished
  rows = list(pairs(COUNTS['test'], 2))
  found, printed = predict(config, folder, [t for row in rows for t in row[:2]])
  cosine_N = [outcome['cosine'] for outcome in found]
  wanted_N = [score for _, _, score in rows]
  expected = scipy.stats.pearsonr(cosine_N, wanted_N)[0]
  assert result['test']['pearson'] == pytest.approx(expected, abs=1e-4)
  loss = np.mean((np.array(cosine_N) - np.array(wanted_N) / 5) ** 2)
  assert result['test']['loss'] == pytest.approx(loss, abs=1e-5)
  for outcome in found:
    assert set(outcome) == {'input', 'tokens', 'cosine', 'score'}
    cosine = outcome['cosine']
    assert outcome['score'] == pytest.approx(5 * max(min(cosine, 1), 0))
    assert f'cosine {cosine:.2f}, score {outcome["score"]:.1f} of 5' in printed


def test_modes_that_it_does_not_have_say_so(config, finished, tmp_path):
  with pytest.raises(errors.ConfigError, match='takes 2 --input'):
    predict(config, finished[0], ['one text'])
  with pytest.raises(errors.ConfigError, match='continues no texts'):
    generation.generate(
      config, str(finished[0]), ['w1'], generation.Sampling(),
      preemption.Stop(), quiet_screen(),
    )  # fmt: skip
  without = config_lib.changed(
    config,
    {**{f'data.{split}': '' for split in COUNTS}, 'data.stand_in': False},
  )
  for act in (
    lambda: train(without, tmp_path / 'run'),
    lambda: session.dry_run(without, quiet_screen()),
  ):
    with pytest.raises(errors.DataError, match='own pairs of sentences'):
      act()


def test_a_run_of_no_step_scores_what_it_starts_from(config, scored):
  as_it_is, folder, result, printed = scored
  assert (result['steps'], result['selected_step']) == (0, 0)
  assert result['steps_per_second'] is None
  assert result['cost'] is None
  assert 'compiling the evaluation step' in printed
  model = pretrained.load(config.model.pretrained)
  expected = dict(model.params)
  expected['positions'] = expected['positions'][:LENGTH]
  _, params, _ = prediction.trained(
    as_it_is, str(folder), preemption.Stop(), quiet_screen()
  )
  assert state.digest(params) == state.digest(expected)
  task = tasks.make(as_it_is)
  with data.eval_batches(
    task.dataset.splits['test'], task.encode, batch_size=13, max_length=LENGTH,
    num_threads=0,
  ) as batches:  # fmt: skip
    batch = next(batches)
  e_B2D = np.asarray(task.embed(expected, batch), np.float64)
  cosine_B = (e_B2D[:, 0] * e_B2D[:, 1]).sum(axis=-1)
  score = scipy.stats.pearsonr(cosine_B, batch['label_B'])[0]
  assert result['test']['pearson'] == pytest.approx(score, abs=1e-4)


@pytest.mark.slow
def test_a_run_of_no_step_is_resumed_like_any_other(scored, tmp_path):
  as_it_is, _, result, _ = scored
  # Before, in the middle of, and after the validation; in the test again.
  for questions in (1, 3, 4, 2):
    with pytest.raises(errors.Preempted):
      train(as_it_is, tmp_path, StopAfter(questions))
  again, _ = train(as_it_is, tmp_path)
  for key in ('state_sha256', 'test', 'validation', 'floors', 'start'):
    assert again[key] == result[key]
  outcome = session.evaluate(
    as_it_is, str(tmp_path), preemption.Stop(), quiet_screen()
  )
  assert outcome['test'] == pytest.approx(result['test'])


def test_no_step_and_the_last_one_selected(scored, tmp_path):
  as_it_is, _, result, _ = scored
  last = config_lib.changed(as_it_is, {'train.select': 'last'})
  assert train(last, tmp_path)[0]['test'] == result['test']


@pytest.mark.slow
def test_it_is_pretrained_on_both_texts(config, tmp_path):
  """On the tokens of its own inputs, before."""
  own = config_lib.changed(
    config,
    {'model.pretrained': '', 'pretrain.num_steps': 2, 'train.num_steps': 0},
  )
  result, _ = train(own, tmp_path)
  assert result['pretrain']['num_steps'] == 2
  assert result['test']['count'] == COUNTS['test']
