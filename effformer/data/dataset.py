"""What a data set is here: named splits of examples with random access.

An example is `{'text': bytes, 'label': int, 'id': str}`; the text of an image
is its grey values (`images`). Of a pair of texts the second one is `other`. A
source is anything
with `len(source)` and `source[i]`; `read` takes the faster bulk path of
sources that have one.

Orders are drawn from raw Philox words (Salmon et al., 2011), because NumPy
keeps these, but not its shuffles, the same between versions.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict

import numpy as np

SPLITS = ('train', 'validation', 'test')
# The texts of an example; the second one only of a pair.
TEXTS = ('text', 'other')

_WORD = (1 << 64) - 1
# Keys of the orders that belong to no seed; any two different numbers do.
_FIXED_ORDER_KEY = (0x5EED0F0EDE5, 0x0FF1CE)


class Example(TypedDict):
  """One labelled text, image or pair; `id` names it for humans (file, row)."""

  text: bytes
  other: NotRequired[bytes]
  label: int
  id: str


class Source(Protocol):
  """Random access to the examples of one split."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Splits and where they come from.

  Attributes:
    name: what was asked for, e.g. 'text'.
    stand_in: true if this is generated text in place of the real data.
    origin: one sentence for the screen: which data, from where.
    notes: one line each for everything else the user should see, such as the
      number of bad rows that were skipped.
    num_classes: labels are 0 .. num_classes - 1.
    label_names: name of each label, empty if labels were given as numbers.
    splits: 'train', 'validation', 'test' to its source.
    fingerprints: split to the SHA-256 of its content (see `Fingerprint`).
  """

  name: str
  stand_in: bool
  origin: str
  notes: tuple[str, ...]
  num_classes: int
  label_names: tuple[str, ...]
  splits: Mapping[str, Source]
  fingerprints: Mapping[str, str]

  @property
  def classes(self) -> tuple[str, ...]:
    """A name for each label, its number where it has no other."""
    return self.label_names or tuple(map(str, range(self.num_classes)))


def unloaded(
  name: str,
  label_names: Sequence[str],
  *,
  stand_in: bool = False,
  fingerprints: Mapping[str, str] | None = None,
) -> Dataset:
  """What is known of a data set whose splits are not there."""
  return Dataset(
    name=name,
    stand_in=stand_in,
    origin='not loaded',
    notes=(),
    num_classes=len(label_names),
    label_names=tuple(label_names),
    splits={},
    fingerprints=fingerprints or {},
  )


class MemorySource:
  """Examples held in memory."""

  def __init__(self, examples: Sequence[Example]):
    self._examples = examples

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]


class Subset:
  """The examples of `source` at `indices_N`, in that order."""

  def __init__(self, source: Source, indices_N: np.ndarray):
    self._source = source
    self._indices_N = indices_N

  def __len__(self) -> int:
    return len(self._indices_N)

  def __getitem__(self, index: int) -> Example:
    return self._source[int(self._indices_N[index])]

  def __getitems__(self, indices: Iterable[int]) -> list[Example]:
    return read(self._source, [int(self._indices_N[i]) for i in indices])


class Windows:
  """The texts of `source`, cut into pieces of at most `size` bytes, in order.

  Piece i is found by the lengths of the texts, which are read once.
  """

  def __init__(self, source: Source, size: int):
    self._source, self._size = source, size
    lengths = [len(example['text']) for example in read_all(source)]
    pieces_N = -(-np.asarray(lengths, np.int64) // size)
    self._ends_N = np.cumsum(pieces_N)

  def __len__(self) -> int:
    return int(self._ends_N[-1]) if len(self._ends_N) else 0

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = int(np.searchsorted(self._ends_N, index, side='right'))
    first = int(self._ends_N[number - 1]) if number else 0
    start = (index - first) * self._size
    example = self._source[number]
    return {
      **example,
      'text': example['text'][start : start + self._size],
      'id': f'{example["id"]}+{start}',
    }


def read(source: Source, indices: Sequence[int]) -> list[Example]:
  """The examples at `indices`, in bulk where the source can."""
  if hasattr(source, '__getitems__'):
    return source.__getitems__(indices)
  return [source[i] for i in indices]


def read_all(source: Source, chunk: int = 500) -> Iterable[Example]:
  """All examples in order, `chunk` at a time."""
  for start in range(0, len(source), chunk):
    yield from read(source, range(start, min(start + chunk, len(source))))


def numbered(
  make: Callable[[int], Example], sizes: Mapping[str, int]
) -> dict[str, Iterator[Example]]:
  """make(0), make(1), ... shared out to splits of these sizes, in order."""
  splits, start = {}, 0
  for split, size in sizes.items():
    splits[split] = map(make, range(start, start + size))
    start += size
  return splits


def permutation(size: int, key: tuple[int, int]) -> np.ndarray:
  """A permutation of 0 .. size - 1 as int64, a pure function of its arguments.

  The order that sorts `size` raw words of the Philox stream of `key` (two
  integers, taken modulo 2^64).
  """
  words = np.array([k & _WORD for k in key], np.uint64)
  return np.argsort(np.random.Philox(key=words).random_raw(size), kind='stable')


def first_examples(source: Source, count: int) -> Source:
  """The first `count` of `source` in a fixed shuffled order; 0 means all.

  The order depends on the length of the source only. Asking for no fewer than
  there are gives the source as it is.
  """
  if count < 0:
    raise ValueError(f'number of examples must not be negative: {count}')
  if count == 0 or count >= len(source):
    return source
  return Subset(source, fixed_order(len(source))[:count])


def fixed_order(size: int) -> np.ndarray:
  """A permutation that belongs to no seed, the same for the same size."""
  return permutation(size, _FIXED_ORDER_KEY)


def bucket(text: bytes, buckets: int = 10) -> int:
  """A bucket 0 .. buckets - 1 from the text alone.

  The first eight bytes of its SHA-256, big-endian, modulo `buckets`. Splits
  carved by it never part two copies of a text.
  """
  digest = hashlib.sha256(text).digest()
  return int.from_bytes(digest[:8], 'big') % buckets


class Fingerprint:
  """SHA-256 over lengths, texts and label of every example in order."""

  def __init__(self):
    self._digest = hashlib.sha256()
    self.count = 0

  def update(self, example: Example) -> None:
    for name in TEXTS:
      if name in example:
        self._digest.update(len(example[name]).to_bytes(8, 'big'))
        self._digest.update(example[name])
    self._digest.update(example['label'].to_bytes(8, 'big', signed=True))
    self.count += 1

  def hexdigest(self) -> str:
    return self._digest.hexdigest()


def fingerprint(examples: Iterable[Example]) -> str:
  """The `Fingerprint` of `examples` as hex digits."""
  digest = Fingerprint()
  for example in examples:
    digest.update(example)
  return digest.hexdigest()
