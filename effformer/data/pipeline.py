"""Batches as a pure function of (seed, global step).

Row r of step s is number p = s * batch_size + r in an endless row of examples:
epoch p // N in the order of that epoch, place p % N. So every example is seen
once per epoch, a batch may span two epochs, and any step is found without
going through those before it. Grain reads ahead in threads; it asks for whole
steps by number, so neither threads nor prefetch can change a batch.

A batch is a dict of NumPy arrays: `ids_BT` int32 (0 is padding), `lengths_B`
int32 (at least 1 token, at most T), for pairs `other_ids_BT` and
`other_lengths_B` of the second texts (or, where both stand in one row,
`types_BT`, which text a token is of), `label_B` int32, `weight_B` float32,
`index_B` int64 (row in the source).
"""

import functools
from collections.abc import Callable, Iterator

import grain
import numpy as np

from effformer.data.dataset import Source, permutation, read
from effformer.errors import DataError

Batch = dict[str, np.ndarray]
Encode = Callable[[bytes, int], np.ndarray]
EncodePair = Callable[[bytes, bytes, int], tuple[np.ndarray, np.ndarray]]
Rows = slice | np.ndarray | None


class Batches(Iterator[Batch]):
  """Batches in order, read ahead; `close` lets go of the threads."""

  def __init__(
    self, dataset: grain.MapDataset, num_threads: int, prefetch: int
  ):
    # Grain takes no threads and no buffer only together.
    if num_threads == 0 or prefetch == 0:
      num_threads = prefetch = 0
    self._iterator = iter(
      dataset.to_iter_dataset(
        grain.ReadOptions(
          num_threads=num_threads, prefetch_buffer_size=prefetch
        )
      )
    )

  def __next__(self) -> Batch:
    return next(self._iterator)

  def close(self) -> None:
    self._iterator.close()

  def __enter__(self) -> 'Batches':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def batch_at(
  source: Source,
  encode: Encode,
  step: int,
  *,
  seed: int,
  batch_size: int,
  max_length: int,
  rows: Rows = None,
  encode_pair: EncodePair | None = None,
) -> Batch:
  """The training batch of one global step.

  Args:
    source: the training split.
    encode: (text, max_length) -> int32 [<= max_length] ids, none of them 0;
      a tokenizer's `encode`.
    step: global step, from 0.
    seed: of the order; each epoch is shuffled anew.
    batch_size: rows of the global batch.
    max_length: T in tokens; longer texts are cut.
    rows: which rows of the global batch to make, as a slice or an array of row
      numbers (None: all). A host asks for its own rows; each is the same row
      whoever asks.
    encode_pair: (text, other, max_length) -> ids and types, both int32
      [<= max_length]; None where the texts of a pair are rows of their own.
  """
  rows_B = _row_numbers(batch_size, rows)
  indices_B = example_indices(
    len(source), step * batch_size + rows_B, seed=seed
  )
  return _batch(source, encode, indices_B, max_length, encode_pair)


def example_indices(
  size: int, positions: np.ndarray, *, seed: int
) -> np.ndarray:
  """Which example stands at each position of the endless shuffled row."""
  if size == 0:
    raise DataError('the split holds no examples, so there are no batches.')
  epochs, places = np.divmod(np.asarray(positions, np.int64), size)
  indices = np.empty_like(places)
  for epoch in np.unique(epochs):
    is_here = epochs == epoch
    indices[is_here] = _epoch_order(size, seed, int(epoch))[places[is_here]]
  return indices


def train_batches(
  source: Source,
  encode: Encode,
  *,
  seed: int,
  batch_size: int,
  max_length: int,
  start_step: int,
  num_steps: int,
  num_threads: int,
  prefetch: int,
  rows: Rows = None,
  encode_pair: EncodePair | None = None,
) -> Batches:
  """`batch_at` of the steps start_step .. num_steps - 1, read ahead.

  Args:
    source, encode, seed, batch_size, max_length, rows, encode_pair: see
      `batch_at`.
    start_step: the first global step wanted.
    num_steps: number of steps of the whole run, not of this part of it.
    num_threads: threads that make batches; 0 makes them when asked for.
    prefetch: batches made ahead; 0 makes them when asked for.
  """
  _row_numbers(batch_size, rows)
  steps = grain.MapDataset.range(start_step, max(start_step, num_steps))
  make = functools.partial(
    batch_at,
    source,
    encode,
    seed=seed,
    batch_size=batch_size,
    max_length=max_length,
    rows=rows,
    encode_pair=encode_pair,
  )
  return Batches(steps.map(make), num_threads, prefetch)


def eval_batches(
  source: Source,
  encode: Encode,
  *,
  batch_size: int,
  max_length: int,
  num_threads: int = 1,
  prefetch: int = 2,
  rows: Rows = None,
  drop_remainder: bool = False,
  encode_pair: EncodePair | None = None,
) -> Batches:
  """Every example once, in the order of the source; see `batch_at`.

  The last batch is filled up with copies of the last example of weight 0 and
  index -1 (real text, so that no model meets rows of nothing but padding); with
  `drop_remainder` there is none that is not full.

  Raises:
    DataError: with `drop_remainder`, there are fewer examples than a batch has.
  """
  rows_B = _row_numbers(batch_size, rows)
  num_examples = len(source)

  def make(step: int) -> Batch:
    indices_B = step * batch_size + rows_B
    is_real_B = indices_B < num_examples
    indices_B = np.minimum(indices_B, num_examples - 1)
    batch = _batch(source, encode, indices_B, max_length, encode_pair)
    batch['weight_B'] = is_real_B.astype(np.float32)
    batch['index_B'] = np.where(is_real_B, indices_B, -1)
    return batch

  num_batches = -(-num_examples // batch_size)
  if drop_remainder:
    num_batches = num_examples // batch_size
    if not num_batches:
      raise DataError(
        f'{num_examples} examples fill no batch of {batch_size}, and '
        'data.drop_remainder leaves out what is not full.\n'
        'Use a smaller train.eval_batch_size, or data.drop_remainder=False.'
      )
  return Batches(
    grain.MapDataset.range(num_batches).map(make), num_threads, prefetch
  )


def _row_numbers(batch_size: int, rows: Rows) -> np.ndarray:
  """`rows` as int64 row numbers, checked."""
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, not {batch_size}')
  if rows is None:
    rows = slice(None)
  if isinstance(rows, slice):
    return np.arange(batch_size, dtype=np.int64)[rows]
  rows = np.asarray(rows, np.int64)
  if ((rows < 0) | (rows >= batch_size)).any():
    raise ValueError(
      f'rows {rows.min()}..{rows.max()} are not within a batch of {batch_size}'
    )
  return rows


@functools.lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
  """Order of one epoch; kept because every step of the epoch asks for it."""
  order_N = permutation(size, (seed, epoch))
  order_N.flags.writeable = False
  return order_N


def _batch(
  source: Source,
  encode: Encode,
  indices_B: np.ndarray,
  max_length: int,
  encode_pair: EncodePair | None,
) -> Batch:
  examples = read(source, indices_B.tolist())
  if encode_pair:
    pairs = [encode_pair(e['text'], e['other'], max_length) for e in examples]
    batch = _padded([ids_T for ids_T, _ in pairs], max_length)
    types = _padded([types_T for _, types_T in pairs], max_length)
    batch['types_BT'] = types['ids_BT']
  else:
    batch = _rows(examples, 'text', encode, max_length)
    if 'other' in examples[0]:
      other = _rows(examples, 'other', encode, max_length)
      batch |= {f'other_{name}': array for name, array in other.items()}
  return batch | {
    'label_B': np.array([e['label'] for e in examples], np.int32),
    'weight_B': np.ones(len(examples), np.float32),
    'index_B': indices_B,
  }


def _rows(examples, name, encode, max_length) -> Batch:
  return _padded([encode(e[name], max_length) for e in examples], max_length)


def _padded(rows: list[np.ndarray], max_length: int) -> Batch:
  """Rows of ids, padded with 0, and their lengths."""
  ids_BT = np.zeros((len(rows), max_length), np.int32)
  for row, ids_T in enumerate(rows):
    ids_BT[row, : len(ids_T)] = ids_T
  lengths_B = np.array([len(ids_T) for ids_T in rows], np.int32)
  return {'ids_BT': ids_BT, 'lengths_B': lengths_B}
