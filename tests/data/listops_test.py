"""The ListOps generator: its rule, its bytes, its evaluator."""

import hashlib
import itertools

import numpy as np
import pytest

from effformer.data import listops
from effformer.errors import DataError

NUM = 1500  # more than one chunk


@pytest.fixture(scope='module')
def examples():
  return list(listops.generate(0, 0, NUM, num_workers=1))


def test_first_bytes_never_change(examples):
  """To be changed with the version of the builder only."""
  data = b'\n'.join(b'%s\t%d' % pair for pair in examples[:200])
  assert hashlib.sha256(data).hexdigest() == (
    'c001fa6caecbc270a86e250e61d7bc86673aac9224aa138944aa2ec68ecdfb9e'
  )


@pytest.mark.parametrize('num_workers', [2, 3])
def test_workers_change_nothing(examples, num_workers):
  again = list(listops.generate(0, 0, NUM, num_workers=num_workers))
  assert again == examples


@pytest.mark.parametrize(('chunk', 'attempts'), [(7, 1), (100, 9)])
def test_chunks_change_nothing(monkeypatch, examples, chunk, attempts):
  monkeypatch.setattr(listops, '_CHUNK', chunk)
  monkeypatch.setattr(listops, '_ATTEMPTS', attempts)
  assert list(listops.generate(0, 0, 60)) == examples[:60]


def test_example_depends_on_its_number_only(examples):
  assert list(listops.generate(0, 1234, 1237)) == examples[1234:1237]


def test_seeds_differ(examples):
  assert next(listops.generate(1, 0, 1)) != examples[0]


def test_labels_are_values(examples):
  assert [listops.evaluate(text) for text, _ in examples] == [
    label for _, label in examples
  ]


def test_rule_of_the_trees(examples):
  args, depths, lengths, operators = [], [], [], []
  for text, _ in examples:
    symbols = text.split(b' ')
    lengths.append(len(symbols))
    open_args, deepest = [0], 0
    for symbol in symbols:
      if symbol == b']':
        args.append(open_args.pop())
        continue
      open_args[-1] += 1
      deepest = max(deepest, len(open_args))
      if symbol.startswith(b'['):
        operators.append(symbol)
        open_args.append(0)
    depths.append(deepest)
  assert (min(args), max(args)) == (2, 10)
  assert set(depths) == {listops.MAX_DEPTH}
  assert 500 < min(lengths) < 510
  assert 1950 < max(lengths) < 2000
  _, counts = np.unique(operators, return_counts=True)
  np.testing.assert_allclose(counts / sum(counts), 0.25, atol=0.005)


def test_distribution_is_that_of_lra(examples):
  """reference: a plain re-run of LRA's rule, 20,000 samples."""
  lengths = [len(text.split(b' ')) for text, _ in examples]
  quantiles = np.quantile(lengths, [0.05, 0.25, 0.5, 0.75, 0.95])
  # About three standard errors of 1,500 draws, here and below.
  np.testing.assert_array_less(
    np.abs(quantiles - [539, 701, 953, 1309, 1804]), [12, 30, 40, 50, 40]
  )
  shares = np.bincount([label for _, label in examples]) / len(examples)
  np.testing.assert_allclose(shares[[0, 9]], [0.168, 0.170], atol=0.03)
  assert shares[1:9].min() > 0.052
  assert shares[1:9].max() < 0.12


def test_acceptance_is_that_of_lra():
  _, _, draws = listops.generate_chunk(0, 0, 1024)
  assert 0.074 < 1024 / draws < 0.090


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    (b'7', 7),
    (b'[MIN 3 1 2 ]', 1),
    (b'[MAX 3 1 2 ]', 3),
    (b'[MED 9 1 2 ]', 2),
    (b'[MED 1 2 ]', 1),
    (b'[MED 1 8 4 5 ]', 4),
    (b'[SM 9 8 [MIN 4 6 ] ]', 1),
  ],
)
def test_evaluate(text, value):
  assert listops.evaluate(text) == value


MALFORMED = {
  b'': 'unknown ListOps symbol',
  b']': "symbol 1, ']', closes no operator",
  b'[MIN 1': '1 "]" missing at the end',
  b'[MIN [SM 1 [MAX 2': '3 "]" missing at the end',
  b'3 [MIN 1': r"symbol 2, '\[MIN', comes after the end",
  b'1 2': "symbol 2, '2', comes after the end",
  b'[MIN 1 ] ]': "symbol 4, ']', c",
  b'[MIN ]': r"symbol 1, '\[MIN', has no arguments",
  b'[AVG 1 2 ]': 'unknown ListOps symbol',
  b'[MIN 1  2 ]': 'unknown ListOps symbol',
  b'( [MIN 1 ) ]': 'leave out the parentheses',
}


@pytest.mark.parametrize('text', MALFORMED)
def test_malformed_expressions_are_refused(text):
  with pytest.raises(DataError):
    listops.evaluate(text)
  with pytest.raises(DataError, match=MALFORMED[text]):
    listops.check(text)


def test_check_refuses_what_has_no_value():
  symbols = (b'7', b'[MAX', b'[SM', b']')
  for count in range(1, 7):
    for chosen in itertools.product(symbols, repeat=count):
      refused = []
      for function in (listops.check, listops.evaluate):
        try:
          function(b' '.join(chosen))
          refused.append(False)
        except DataError:
          refused.append(True)
      assert refused[0] == refused[1], chosen


def test_check_takes_what_the_rule_makes(examples):
  for text, _ in examples[:100]:
    listops.check(text)
