"""The user's own data: files of rows with a text, or an image, and a label.

Labels are 0 .. C-1, or strings, which are numbered in sorted order of the
train split. The greater part of the train labels decides which kind is meant.

Without a test file the rows of train with `bucket(text)` 1 (one in ten) are
the test split; without a validation file those with bucket 0 are the
validation split. Copies of a text never part; of a pair the first text decides.

A bad row is skipped and counted as long as no more than `max_bad_fraction` of
the rows of its file are bad; the order of the others stays. Bad is a row that
cannot be read, one that the task has no use for, or one whose label is not of
the kind of the others or unknown to train.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from effformer.data.dataset import (
  SPLITS,
  TEXTS,
  Dataset,
  Example,
  MemorySource,
  bucket,
  fingerprint,
)
from effformer.data.rows import Row, of_texts, own_path
from effformer.errors import ConfigError, DataError

_CARVED = {'validation': 0, 'test': 1}

CheckText = Callable[[bytes], object]
ReadRows = Callable[[pathlib.Path, str], Iterable[Row]]


@dataclasses.dataclass
class _File:
  """The rows of one file, good and bad ones, in order."""

  path: pathlib.Path
  rows: list[Row]

  def good(self) -> list[Row]:
    return [row for row in self.rows if not row.reason]

  def bad(self) -> list[Row]:
    return [row for row in self.rows if row.reason]

  def place(self, row: Row) -> str:
    return f'{self.path}:{row.number}'


def load_files(
  name: str,
  paths: Mapping[str, str],
  *,
  max_bad_fraction: float = 0.0,
  check_text: CheckText | None = None,
  read_rows: ReadRows = of_texts,
  has_labels: bool = True,
  validate_on_test: bool = False,
) -> Dataset:
  """The data set of the user's own files.

  Args:
    name: of the task, kept in the result.
    paths: split to path; '' where there is no such file. Train must be given.
    max_bad_fraction: the share of bad rows of a file, 0 to 1, up to which they
      are skipped; above it the first bad row ends the run.
    check_text: raises DataError for a text that the task cannot read; such a
      row is bad.
    read_rows: (path, split) -> rows in order, see `rows` and `image_rows`.
    has_labels: False where labels are no classes: they stay as they are.
    validate_on_test: whether the validation split is the test split, and so
      takes no rows from train.

  Raises:
    ConfigError: train is missing, or a file is of an unknown kind.
    DataError: a file is missing, damaged, empty, or has too many bad rows.
  """
  files = _read_files(paths, read_rows, check_text)
  # Rows that cannot be read are told first; strange labels may follow from
  # them.
  _judge(files['train'], max_bad_fraction)
  kind, names = int, [0]
  if has_labels:
    kind, names = _label_names(files['train'])
  numbers = {label: number for number, label in enumerate(names)}
  notes, splits = [], {}
  for split, file in files.items():
    if has_labels:
      _mark_unknown_labels(file, kind, numbers, is_train=split == 'train')
    notes += _judge(file, max_bad_fraction)
    splits[split] = [
      _example(row, numbers[row.label] if has_labels else row.label)
      for row in file.good()
    ]
    if not splits[split]:
      raise DataError(f'{file.path} holds no usable row.')
  origin = ', '.join(f'{split} {file.path}' for split, file in files.items())
  carved = [split for split in _CARVED if split not in files]
  if validate_on_test and 'validation' in carved:
    carved.remove('validation')
  _carve(splits, carved, files['train'].path)
  if carved:
    origin += (
      f'; {" and ".join(carved)} carved from train by a hash of the text'
      ' (one row in ten each)'
    )
  notes += _shared_texts(splits)
  if validate_on_test:
    splits['validation'] = splits['test']
  return Dataset(
    name=name,
    stand_in=False,
    origin=f'own files: {origin}',
    notes=tuple(notes),
    num_classes=len(names),
    label_names=tuple(names) if kind is str else (),
    splits={split: MemorySource(splits[split]) for split in SPLITS},
    fingerprints={split: fingerprint(splits[split]) for split in SPLITS},
  )


def faults(
  paths: Mapping[str, str],
  *,
  check_text: CheckText | None = None,
  read_rows: ReadRows = of_texts,
  has_labels: bool = True,
) -> Iterator[str]:
  """Every bad row, named by file and row; see `load_files`."""
  files = _read_files(paths, read_rows, check_text)
  bad = any(file.bad() for file in files.values())
  if has_labels:
    try:
      kind, names = _label_names(files['train'])
    except DataError:
      # May follow from the bad rows.
      if not bad:
        raise
    else:
      numbers = {label: number for number, label in enumerate(names)}
      for split, file in files.items():
        _mark_unknown_labels(file, kind, numbers, is_train=split == 'train')
  for file in files.values():
    for row in file.bad():
      yield f'{file.place(row)}: {row.reason}'


def _read_files(paths, read_rows, check_text) -> dict[str, _File]:
  if not paths['train']:
    given = next(split for split in SPLITS if paths[split])
    raise ConfigError(
      f'data.{given} is given without data.train.\n'
      'Give data.train, too, or neither for the data of the task.'
    )
  return {
    split: read_file(own_path(paths[split]), split, read_rows, check_text)
    for split in SPLITS
    if paths[split]
  }


def read_file(
  path: pathlib.Path,
  split: str,
  read_rows: ReadRows,
  check_text: CheckText | None = None,
) -> _File:
  """All rows of a file; nothing is judged yet.

  Raises:
    ConfigError, DataError: from `read_rows`, or the file is empty.
  """
  found = []
  for row in read_rows(path, split):
    if check_text and not row.reason:
      try:
        check_text(row.text)
      except DataError as error:
        row.reason = str(error)
    row.id = row.id or f'{path.name}:{row.number}'
    found.append(row)
  if not found:
    raise DataError(f'{path} is empty: it holds no rows.')
  return _File(path, found)


def _label_names(train: _File) -> tuple[type, list[int | str]]:
  """Kind of the labels and the labels in the order of their numbers."""
  good = train.good()
  labels = {row.label for row in good}
  integers = {label for label in labels if isinstance(label, int)}
  # One stray string among numbers is a bad row, and the other way round.
  is_integer = sum(isinstance(row.label, int) for row in good) * 2 > len(good)
  if not is_integer:
    names = sorted(labels - integers)
  else:
    count = 0
    while count in integers:
      count += 1
    names = list(range(count))
  if len(names) < 2:
    raise DataError(
      f'{train.path} has labels {sorted(map(str, labels))[:5]}.\n'
      'Two or more classes are needed: integers 0, 1, ... without a gap, '
      'or strings.'
    )
  return (int if is_integer else str), names


def _mark_unknown_labels(
  file: _File, kind: type, numbers: Mapping, *, is_train: bool
) -> None:
  for row in file.good():
    if not isinstance(row.label, kind):
      row.reason = f'label {row.label!r} is not of the kind of the others'
    elif row.label not in numbers:
      known = f'0 .. {len(numbers) - 1}' if kind is int else 'those of train'
      row.reason = f'label {str(row.label)[:40]!r} is not among {known}'
      if is_train:
        row.reason += ', the labels without a gap'


def _judge(file: _File, max_bad_fraction: float) -> list[str]:
  """A note about the bad rows, or DataError if there are too many."""
  bad = file.bad()
  if not bad:
    return []
  first = f'{file.place(bad[0])}: {bad[0].reason}'
  if len(bad) > max_bad_fraction * len(file.rows):
    raise DataError(
      f'bad row {first}\n'
      f'{len(bad)} of {len(file.rows)} rows are bad; data.max_bad_fraction '
      f'allows {max_bad_fraction:g} of them.\n'
      'Mend the file, or set data.max_bad_fraction to skip bad rows.'
    )
  return [
    f'skipped {len(bad)} bad of {len(file.rows)} rows of {file.path}: '
    + '; '.join(
      f'{file.path.name}:{row.number} {row.reason}' for row in bad[:3]
    )
    + ('; ...' if len(bad) > 3 else '')
  ]


def _example(row: Row, label: int) -> Example:
  example = {'text': row.text, 'label': label, 'id': row.id}
  return example if row.other is None else {**example, 'other': row.other}


def _carve(splits: dict[str, list[Example]], carved: list[str], path) -> None:
  """Moves rows of train to the splits that have no file."""
  rows = splits['train']
  buckets = [bucket(row['text']) for row in rows]
  taken = {_CARVED[split] for split in carved}
  pairs = list(zip(rows, buckets, strict=True))
  for split in carved:
    splits[split] = [row for row, b in pairs if b == _CARVED[split]]
  splits['train'] = [row for row, b in pairs if b not in taken]
  for split in ('train', *carved):
    if not splits[split]:
      raise DataError(
        f'{path} has too few rows ({len(rows)}) to carve a {split} split.\n'
        'Give data.validation and data.test, or more rows.'
      )


def _shared_texts(splits: Mapping[str, list[Example]]) -> list[str]:
  """A note for each split that repeats texts, or pairs of them, of train."""

  def key(example):
    return tuple(example[name] for name in TEXTS if name in example)

  train = {key(example) for example in splits['train']}
  notes = []
  for split in [name for name in SPLITS[1:] if name in splits]:
    count = sum(key(example) in train for example in splits[split])
    if count:
      what = 'pairs' if 'other' in splits[split][0] else 'texts'
      notes.append(f'{count} {what} of {split} are in train, too')
  return notes
