"""Batches: pure in (seed, step), exact, and the same however they are read."""

import threading
import time

import numpy as np
import pytest

from effformer.data import pipeline
from effformer.data.dataset import MemorySource
from effformer.data.tokenizers import ByteTokenizer
from effformer.errors import DataError

SIZE, BATCH, T = 23, 5, 7
SETTINGS = {'seed': 3, 'batch_size': BATCH, 'max_length': T}
encode = ByteTokenizer().encode


class CountingSource(MemorySource):
  """Counts the examples that were read."""

  def __init__(self, examples):
    super().__init__(examples)
    self.reads = 0

  def __getitem__(self, index):
    self.reads += 1
    return super().__getitem__(index)


@pytest.fixture
def source():
  return CountingSource(
    [
      {'text': b'%d' % i * (1 + i % 6), 'label': i % 4, 'id': str(i)}
      for i in range(SIZE)
    ]
  )


def batch_at(source, step, **changes):
  return pipeline.batch_at(source, encode, step, **SETTINGS | changes)


def train(source, start, stop, num_threads=1, prefetch=2, **changes):
  with pipeline.train_batches(
    source,
    encode,
    start_step=start,
    num_steps=stop,
    num_threads=num_threads,
    prefetch=prefetch,
    **SETTINGS | changes,
  ) as batches:
    return list(batches)


def evaluate(source, **changes):
  settings = {'batch_size': BATCH, 'max_length': T} | changes
  with pipeline.eval_batches(source, encode, **settings) as batches:
    return list(batches)


def assert_same(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)
      assert a[key].dtype == b[key].dtype


def test_row_is_the_example_cut_and_padded(source):
  batch = batch_at(source, 2)
  assert {key: value.dtype.name for key, value in batch.items()} == {
    'ids_BT': 'int32',
    'lengths_B': 'int32',
    'label_B': 'int32',
    'weight_B': 'float32',
    'index_B': 'int64',
  }
  assert batch['ids_BT'].shape == (BATCH, T)
  for row, index in enumerate(batch['index_B']):
    ids_T = encode(source[index]['text'])[:T]
    assert batch['lengths_B'][row] == len(ids_T)
    np.testing.assert_array_equal(
      batch['ids_BT'][row], np.pad(ids_T, (0, T - len(ids_T)))
    )
    assert batch['label_B'][row] == source[index]['label']
  np.testing.assert_array_equal(batch['weight_B'], 1)


def test_batch_is_pure(source):
  for step in (7, 0, 3):
    assert_same([batch_at(source, step)], [batch_at(source, step)])


def test_first_batches_never_change(source):
  """A change here breaks the resuming of every run there is."""
  rows = [batch_at(source, step)['index_B'].tolist() for step in (0, 4)]
  assert rows == [[6, 13, 1, 18, 11], [12, 0, 14, 9, 7]]


def test_seed_and_epoch_change_the_order(source):
  first = pipeline.example_indices(SIZE, np.arange(SIZE), seed=0)
  second = pipeline.example_indices(SIZE, SIZE + np.arange(SIZE), seed=0)
  other = pipeline.example_indices(SIZE, np.arange(SIZE), seed=1)
  assert (first != second).any()
  assert (first != other).any()


def test_every_epoch_has_every_example_once(source):
  indices = np.concatenate([b['index_B'] for b in train(source, 0, SIZE)])
  for epoch in indices.reshape(BATCH, SIZE):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(SIZE))


def test_batch_may_be_larger_than_the_split(source):
  indices = batch_at(source, 1, batch_size=2 * SIZE)['index_B']
  np.testing.assert_array_equal(np.bincount(indices), 2)


@pytest.mark.parametrize(
  ('num_threads', 'prefetch'), [(0, 0), (0, 3), (1, 1), (3, 8)]
)
def test_threads_and_prefetch_change_nothing(source, num_threads, prefetch):
  expected = [batch_at(source, step) for step in range(4, 13)]
  assert_same(train(source, 4, 13, num_threads, prefetch), expected)


@pytest.mark.parametrize('num_hosts', [1, 2, 5])
def test_hosts_change_nothing(source, num_hosts):
  parts = np.array_split(np.arange(BATCH), num_hosts)
  whole = batch_at(source, 11)
  for key in whole:
    together = [batch_at(source, 11, rows=part)[key] for part in parts]
    np.testing.assert_array_equal(np.concatenate(together), whole[key])


def test_rows_may_be_a_slice(source):
  batch = batch_at(source, 11, rows=slice(1, 3))
  np.testing.assert_array_equal(
    batch['index_B'], batch_at(source, 11)['index_B'][1:3]
  )


@pytest.mark.parametrize('rows', [[-1], [0, BATCH]])
def test_rows_outside_the_batch_are_refused(source, rows):
  with pytest.raises(ValueError, match='not within a batch'):
    train(source, 0, 1, rows=np.array(rows))


def test_seek_is_constant_time(source):
  start = time.monotonic()
  [batch] = train(source, 1_000_000, 1_000_001)
  assert time.monotonic() - start < 1
  assert source.reads == BATCH
  assert_same([batch], [batch_at(source, 1_000_000)])


def test_no_steps_left(source):
  assert train(source, 5, 5) == []


@pytest.mark.parametrize('batch_size', [1, 4, 8, SIZE, 50])
def test_evaluation_sees_every_example_once(source, batch_size):
  batches = evaluate(source, batch_size=batch_size)
  assert all(b['ids_BT'].shape == (batch_size, T) for b in batches)
  weights = np.concatenate([b['weight_B'] for b in batches])
  indices = np.concatenate([b['index_B'] for b in batches])
  np.testing.assert_array_equal(indices[weights == 1], np.arange(SIZE))
  np.testing.assert_array_equal(indices[weights == 0], -1)
  ids = np.concatenate([b['ids_BT'] for b in batches])
  for row in ids[SIZE:]:
    np.testing.assert_array_equal(row, ids[SIZE - 1])


def test_evaluation_of_a_host(source):
  rows = np.array([1, 4])
  for ours, whole in zip(
    evaluate(source, rows=rows), evaluate(source), strict=True
  ):
    for key in whole:
      np.testing.assert_array_equal(ours[key], whole[key][rows])


def test_early_close_leaves_no_threads(source):
  before = threading.active_count()
  batches = pipeline.train_batches(
    source,
    encode,
    start_step=0,
    num_steps=10**6,
    num_threads=3,
    prefetch=8,
    **SETTINGS,
  )
  next(batches)
  assert threading.active_count() > before
  batches.close()
  deadline = time.monotonic() + 5
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() <= before


def test_error_of_a_row_reaches_the_caller():
  def refuse(text, max_length):
    raise DataError(f'cannot read {text!r}')

  source = MemorySource([{'text': b'x', 'label': 0, 'id': '0'}])
  with (
    pytest.raises(DataError, match='cannot read'),
    pipeline.eval_batches(source, refuse, batch_size=2, max_length=3) as it,
  ):
    next(it)


def test_empty_split_is_refused():
  with pytest.raises(DataError, match='no examples'):
    batch_at(MemorySource([]), 0)


def test_batch_size_zero_is_refused(source):
  with pytest.raises(ValueError, match='batch_size'):
    evaluate(source, batch_size=0)


def test_a_remainder_is_dropped_where_it_is_asked_for(source):
  whole, full = evaluate(source), evaluate(source, drop_remainder=True)
  assert len(full) == SIZE // BATCH == len(whole) - 1
  assert_same(full, whole[:-1])
  assert all((batch['weight_B'] == 1).all() for batch in full)
  with pytest.raises(DataError, match=f'{SIZE} examples fill no batch of 24'):
    evaluate(source, drop_remainder=True, batch_size=24)
