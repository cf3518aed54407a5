"""Floors against cases whose answer is known."""

import os
import pathlib

import numpy as np
import pytest

from effformer.data import ByteTokenizer, ListOpsTokenizer, files, listops
from effformer.data.dataset import MemorySource
from effformer.tasks import floors


def source(pairs):
  return MemorySource(
    [
      {'text': text, 'label': label, 'id': str(i)}
      for i, (text, label) in enumerate(pairs)
    ]
  )


@pytest.fixture(scope='module')
def expressions():
  examples = list(listops.generate(0, 0, 3000))
  return source(examples[:2000]), source(examples[2000:])


def test_majority_is_learned_on_train():
  train = source([(b'a', 2), (b'b', 2), (b'c', 0), (b'd', 1)])
  test = source([(b'a', 2), (b'b', 0), (b'c', 0), (b'd', 0)])
  assert floors.majority(train, test) == 0.25


def test_root_operator():
  train = source(
    [(b'[MIN 1 ]', 0), (b'[MIN 2 ]', 0), (b'[MIN 3 ]', 3), (b'[MAX 1 ]', 9)]
  )
  test = source(
    [(b'[MIN 9 ]', 3), (b'[MAX 9 ]', 9), (b'[MAX 0 ]', 9), (b'[SM 1 ]', 0)]
  )
  assert floors.root_operator(train, test) == 0.75


def test_listops_floors_are_those_of_lra(expressions):
  """17.0 % and 36.3 %, within about three standard errors."""
  assert floors.majority(*expressions) == pytest.approx(0.170, abs=0.036)
  assert floors.root_operator(*expressions) == pytest.approx(0.363, abs=0.046)


def noisy_texts(num, seed):
  """The byte 'x' is twice as frequent in texts of label 1, 'b' rarer."""
  draw = np.random.default_rng(seed)
  pairs = []
  for i in range(num):
    share = (0.1, 0.2)[i % 2]
    letters = draw.choice([120, 97, 98], 60, p=[share, 0.5, 0.5 - share])
    pairs.append((bytes(letters.tolist()), i % 2))
  return pairs


def test_bag_of_tokens_reaches_the_bayes_rate():
  train, test = source(noisy_texts(2000, 0)), source(noisy_texts(2000, 1))
  accuracy = floors.bag_of_tokens(train, test, ByteTokenizer(), 60)
  # The likelihood ratio of the two kinds of text; no rule is better.
  ratios = [
    t.count(b'x') * np.log(0.2 / 0.1) + t.count(b'b') * np.log(0.3 / 0.4)
    for t, _ in noisy_texts(2000, 1)
  ]
  labels = [y for _, y in noisy_texts(2000, 1)]
  best = np.mean((np.array(ratios) > 0) == labels)
  assert accuracy == pytest.approx(best, abs=0.015)
  assert floors.bag_of_tokens(train, test, ByteTokenizer(), 60) == accuracy


def test_bag_of_tokens_reads_no_further_than_max_length():
  pairs = [(b'ab' * 5 + b'xy'[i % 2 : i % 2 + 1], i % 2) for i in range(100)]
  train = source(pairs)
  assert floors.bag_of_tokens(train, train, ByteTokenizer(), 11) == 1.0
  assert floors.bag_of_tokens(train, train, ByteTokenizer(), 10) == 0.5


def test_bag_of_tokens_knows_no_order():
  pairs = [((b'ab', b'ba')[i % 2] * 5, i % 2) for i in range(100)]
  assert (
    floors.bag_of_tokens(source(pairs), source(pairs), ByteTokenizer(), 10)
    == 0.5
  )


def test_bag_of_tokens_with_ten_classes(expressions):
  accuracy = floors.bag_of_tokens(*expressions, ListOpsTokenizer(), 2000)
  assert 0.1 < accuracy < 0.3


def test_frequencies():
  counted, labels = floors.frequencies(
    source([(b'aab', 1), (b'b', 0)]), ByteTokenizer(), 9
  )
  assert counted.shape == (2, 257)
  expected = [[2 / 3, 1 / 3], [0, 1]]
  np.testing.assert_allclose(counted.toarray()[:, [98, 99]], expected)
  np.testing.assert_array_equal(labels, [1, 0])


@pytest.mark.slow
def test_bag_of_bytes_on_the_real_reviews():
  folder = pathlib.Path(os.environ.get('EFFFORMER_TEST_DATA', ''))
  if not (folder / 'imdb_train.jsonl.gz').is_file():
    pytest.skip('EFFFORMER_TEST_DATA names no folder with the real reviews')
  paths = {
    'train': str(folder / 'imdb_train.jsonl.gz'),
    'validation': '',
    'test': str(folder / 'imdb_test.jsonl.gz'),
  }
  splits = files.load_files('text', paths).splits
  accuracy = floors.bag_of_tokens(
    splits['train'], splits['test'], ByteTokenizer(), 512
  )
  assert accuracy == pytest.approx(0.619, abs=0.005)


def stripes(num, seed):
  """2 x 4 images; of class 1 one column is brighter by twice the noise."""
  draw = np.random.default_rng(seed)
  x_NHW = draw.integers(0, 100, (num, 2, 4))
  y_N = np.arange(num) % 2
  x_NHW[y_N == 1, :, 2] += 60
  return source(
    [
      (x_HW.astype(np.uint8).tobytes(), int(y))
      for x_HW, y in zip(x_NHW, y_N, strict=True)
    ]
  )


def test_linear_sees_where_a_pixel_is(monkeypatch):
  train, test = stripes(400, 0), stripes(400, 1)
  # Two sums of two uniform numbers, 120 apart: 4 % of them overlap.
  assert floors.linear(train, test) == pytest.approx(0.93, abs=0.04)
  moved = source(
    [
      (np.roll(np.frombuffer(e['text'], 'u1'), 1).tobytes(), e['label'])
      for e in (test[i] for i in range(400))
    ]
  )
  assert floors.linear(train, moved) < 0.65
  # No more than so many are fitted on.
  monkeypatch.setattr(floors, 'MAX_LINEAR', 2 * 8)
  assert floors.linear(train, test) < 0.9


def test_bags_of_pairs_see_what_is_alike():
  """Of each pair alone the bags tell nothing; together they tell all."""
  draw = np.random.default_rng(0)
  kinds = [b'aab', b'bba', b'ccd', b'ddc']
  examples = []
  for number in range(400):
    first, second = draw.permutation(4)[:2]
    label = number % 2
    examples.append(
      {
        'text': kinds[first] * 5,
        'other': kinds[first if label else second] * 5,
        'label': label,
        'id': '',
      }
    )
  train, test = MemorySource(examples[:200]), MemorySource(examples[200:])
  tokenizer = ByteTokenizer()
  assert floors.bags_of_tokens(train, test, tokenizer, 15) > 0.99
  assert floors.bag_of_tokens(train, test, tokenizer, 15) < 0.6
