"""Classes of sentences and pairs: rows, types, and measures of two classes."""

import math

import jax
import numpy as np
import pytest

from effformer import data, tasks
from effformer.data.dataset import Dataset, MemorySource
from effformer.models import classifier
from effformer.tasks import binary
from effformer.train import evaluation
from tests.subwords import CLS, SEP, SPECIAL
from tests.tasks.tiny_tasks import LENGTH, WORDS, subword_config


@pytest.fixture
def config(tmp_path):
  return subword_config(tmp_path, 'sentence')


def dataset(num_classes=2, is_pair=False, count=24):
  rng = np.random.default_rng(0)

  def example(number):
    words = [
      b' '.join(rng.choice(list(WORDS), rng.integers(1, 6)).astype('S1'))
      for _ in range(2)
    ]
    found = {'text': words[0], 'label': number % num_classes, 'id': str(number)}
    return {**found, 'other': words[1]} if is_pair else found

  splits = {
    split: MemorySource([example(n) for n in range(count)])
    for split in data.SPLITS
  }
  return Dataset(
    'tiny', False, 'a test', (), num_classes, (), splits,
    dict.fromkeys(splits, 'none'),
  )  # fmt: skip


def batch_of(task, encode_pair=None):
  return data.batch_at(
    task.dataset.splits['train'], task.encode, 0, seed=0, batch_size=4,
    max_length=LENGTH, encode_pair=encode_pair,
  )  # fmt: skip


def ids_of(text):
  return [(*SPECIAL, *WORDS).index(word) for word in text.decode().split()]


def test_a_sentence_is_a_row_of_subwords(config):
  task = tasks.make(config, dataset())
  batch = batch_of(task)
  source = task.dataset.splits['train']
  for row, index in enumerate(batch['index_B']):
    ids_T = [CLS, *ids_of(source[int(index)]['text']), SEP]
    assert batch['lengths_B'][row] == len(ids_T)
    assert batch['ids_BT'][row].tolist() == ids_T + [0] * (LENGTH - len(ids_T))
  assert task.model.vocabulary_size == len(SPECIAL) + len(WORDS)
  assert task.num_texts == 1


@pytest.mark.parametrize('token_types', [0, 2])
def test_a_pair_is_one_row_with_types(config, token_types):
  config.task, config.model.token_types = 'pair', token_types
  task = tasks.make(config, dataset(is_pair=True))
  batch = batch_of(task, task.encode_pair)
  assert task.num_texts == 2
  assert ('types_BT' in task.inputs) == (token_types > 0)
  source = task.dataset.splits['train']
  for row, index in enumerate(batch['index_B']):
    length = batch['lengths_B'][row]
    ids_T = batch['ids_BT'][row, :length].tolist()
    first, second = (ids_of(source[int(index)][n]) for n in ('text', 'other'))
    if len(first) + len(second) + 3 <= LENGTH:
      assert ids_T == [CLS, *first, SEP, *second, SEP]
    assert ids_T.count(SEP) == 2
    types_T = batch['types_BT'][row, :length]
    assert types_T.tolist() == sorted(types_T.tolist())
    assert types_T.sum() == length - ids_T.index(SEP) - 1
    assert not batch['types_BT'][row, length:].any()
  params = task.init(jax.random.key(0))
  before = task.measure(params, batch)['loss']
  other = {**batch, 'types_BT': 1 - batch['types_BT']}
  changed = np.abs(task.measure(params, other)['loss'] - before).max()
  assert (changed > 1e-6) == (token_types > 0)


def test_a_pair_may_be_two_rows(config):
  config.task, config.model.pair_head = 'pair', 'nli'
  task = tasks.make(config, dataset(is_pair=True))
  assert task.encode_pair is None
  assert task.num_texts == 2
  assert isinstance(task.model, classifier.PairClassifier)
  assert set(task.inputs) <= set(batch_of(task))


@pytest.mark.parametrize('is_pair', [False, True])
def test_floors_are_of_bags_of_subwords(config, is_pair):
  config.task = 'pair' if is_pair else 'sentence'
  floors = tasks.make(config, dataset(is_pair=is_pair)).floors()
  name = 'bags_of_subwords' if is_pair else 'bag_of_subwords'
  assert set(floors) == {'majority', name}
  assert floors['majority'] == 0.5


def counts(guessed, actual):
  pairs = list(zip(guessed, actual, strict=True))
  return {
    (g, a): sum(pair == (g, a) for pair in pairs)
    for g in (0, 1)
    for a in (0, 1)
  }


def by_definition(guessed, actual):
  n = counts(guessed, actual)
  tp, fp, fn, tn = n[1, 1], n[1, 0], n[0, 1], n[0, 0]
  under = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  return {
    'matthews': (tp * tn - fp * fn) / under if under else 0.0,
    'f1': 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0,
  }


@pytest.mark.parametrize(
  ('guessed', 'actual'),
  [
    ([1, 1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0, 0]),
    ([1, 1, 1, 1, 1], [1, 0, 0, 1, 1]),
    ([0, 0, 0, 0], [0, 0, 0, 0]),
    ([0, 1, 1], [0, 1, 1]),
    ([1, 0, 0], [0, 1, 1]),
  ],
)
def test_measures_of_two_classes_are_those_of_the_counts(guessed, actual):
  """Over batches of two, the last of which is filled up."""
  size = len(guessed)

  def measure(params, batch):
    logits_BC = jax.nn.one_hot(batch['ids_BT'][:, 0], 2)
    values = binary.shares(logits_BC, batch['label_B'])
    return {**values, 'loss': batch['ids_BT'][:, 0] * 0.5}

  rows = [(n, 1.0) for n in range(size)] + [(0, 0.0)] * (size % 2)
  batches = [
    {
      'ids_BT': np.array([[guessed[n]] for n, _ in rows[start : start + 2]]),
      'label_B': np.array([actual[n] for n, _ in rows[start : start + 2]]),
      'weight_B': np.array([w for _, w in rows[start : start + 2]], 'f4'),
    }
    for start in range(0, len(rows), 2)
  ]
  step = evaluation.make_eval_step(measure)
  found = binary.summarise(evaluation.evaluate(step, None, batches))
  assert found == pytest.approx(
    {
      **by_definition(guessed, actual),
      'loss': 0.5 * np.mean(guessed),
      'count': size,
    },
    abs=1e-6,
  )


def test_only_two_classes_have_them(config):
  made = tasks.make(config, dataset(num_classes=3))
  assert made.summarise is dict
