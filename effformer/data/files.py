"""The user's own data: jsonl and tsv files, plain or gzipped (.gz).

jsonl: one JSON object a line with `text` (string, not empty) and `label`
(integer or string); `id` is optional. tsv: a header line that names at least
the columns `text` and `label`; no quoting.

Labels are 0 .. C-1, or strings, which are numbered in sorted order of the
train split. In a tsv file a label that looks like an integer is one. The
greater part of the train labels decides which kind is meant.

Without a test file the rows of train with `bucket(text)` 1 (one in ten) are
the test split; without a validation file those with bucket 0 are the
validation split. Copies of a text never part.

A bad row is skipped and counted as long as no more than `max_bad_fraction` of
the rows of its file are bad; the order of the others stays. Bad are: not
UTF-8, not JSON, not an object, text missing or empty, label missing or not of
the kind of the others or unknown to train, wrong number of columns, more than
16 MiB.
"""

import dataclasses
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping

from effformer.data.dataset import (
  SPLITS,
  Dataset,
  Example,
  MemorySource,
  bucket,
  fingerprint,
)
from effformer.errors import ConfigError, DataError

_MAX_ROW_BYTES = 16 << 20
_SUFFIXES = ('.jsonl', '.tsv')
_CARVED = {'validation': 0, 'test': 1}
_INTEGER = re.compile(r'-?\d{1,9}')

CheckText = Callable[[bytes], object]


@dataclasses.dataclass
class _Row:
  """One good row, or one bad row (`reason` says why)."""

  number: int
  text: bytes = b''
  label: int | str = 0
  id: str = ''
  reason: str = ''


@dataclasses.dataclass
class _File:
  """The rows of one file, good and bad ones, in order."""

  path: pathlib.Path
  rows: list[_Row]

  def good(self) -> list[_Row]:
    return [row for row in self.rows if not row.reason]

  def bad(self) -> list[_Row]:
    return [row for row in self.rows if row.reason]

  def place(self, row: _Row) -> str:
    return f'{self.path}:{row.number}'


def load_files(
  name: str,
  paths: Mapping[str, str],
  *,
  max_bad_fraction: float = 0.0,
  check_text: CheckText | None = None,
) -> Dataset:
  """The data set of the user's own files.

  Args:
    name: of the task, kept in the result.
    paths: split to path; '' where there is no such file. Train must be given.
    max_bad_fraction: the share of bad rows of a file, 0 to 1, up to which they
      are skipped; above it the first bad row ends the run.
    check_text: raises DataError for a text that the task cannot read; such a
      row is bad.

  Raises:
    ConfigError: train is missing, or a file is of an unknown kind.
    DataError: a file is missing, damaged, empty, or has too many bad rows.
  """
  if not paths['train']:
    given = next(split for split in SPLITS if paths[split])
    raise ConfigError(
      f'data.{given} is given without data.train.\n'
      'Give data.train, too, or neither for the data of the task.'
    )
  files = {
    split: read_file(pathlib.Path(paths[split]).expanduser(), check_text)
    for split in SPLITS
    if paths[split]
  }
  # Rows that cannot be read are told first; strange labels may follow from
  # them.
  _judge(files['train'], max_bad_fraction)
  kind, names = _label_names(files['train'])
  numbers = {label: number for number, label in enumerate(names)}
  notes, splits = [], {}
  for split, file in files.items():
    _mark_unknown_labels(file, kind, numbers, is_train=split == 'train')
    notes += _judge(file, max_bad_fraction)
    splits[split] = [
      {'text': row.text, 'label': numbers[row.label], 'id': row.id}
      for row in file.good()
    ]
    if not splits[split]:
      raise DataError(f'{file.path} holds no usable row.')
  origin = ', '.join(f'{split} {file.path}' for split, file in files.items())
  carved = [split for split in _CARVED if split not in files]
  _carve(splits, carved, files['train'].path)
  if carved:
    origin += (
      f'; {" and ".join(carved)} carved from train by a hash of the text'
      ' (one row in ten each)'
    )
  notes += _shared_texts(splits)
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


def read_file(path: pathlib.Path, check_text: CheckText | None = None) -> _File:
  """All rows of a file; nothing is judged yet.

  Raises:
    ConfigError: neither jsonl nor tsv by its name.
    DataError: missing, a folder, empty, a damaged gzip, or a tsv header that
      does not name the columns.
  """
  suffixes = [suffix.lower() for suffix in path.suffixes]
  is_gzip = suffixes[-1:] == ['.gz']
  kind = (suffixes[:-1] if is_gzip else suffixes)[-1:]
  if not kind or kind[0] not in _SUFFIXES:
    raise ConfigError(
      f'unknown kind of file: {path}\n'
      'Own data end in .jsonl, .tsv, .jsonl.gz or .tsv.gz.'
    )
  read_rows = _jsonl_rows if kind[0] == '.jsonl' else _tsv_rows
  rows = []
  try:
    with gzip.open(path) if is_gzip else open(path, 'rb') as stream:
      for row in read_rows(path, _lines(stream)):
        if check_text and not row.reason:
          try:
            check_text(row.text)
          except DataError as error:
            row.reason = str(error)
        row.id = row.id or f'{path.name}:{row.number}'
        rows.append(row)
  except FileNotFoundError:
    raise DataError(
      f'no such file: {path}\nCorrect data.train, data.validation or data.test.'
    ) from None
  except IsADirectoryError:
    raise DataError(f'{path} is a folder; a file is needed.') from None
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise DataError(
      f'damaged gzip file: {path}\nafter row {len(rows)}: {error}\n'
      'Copy or make the file again.'
    ) from None
  except OSError as error:
    raise DataError(f'cannot read {path}: {error}') from error
  if not rows:
    raise DataError(f'{path} is empty: it holds no rows.')
  return _File(path, rows)


def _lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
  """Number from 1 and bytes of each line; None for one that is too long."""
  number = 0
  while line := stream.readline(_MAX_ROW_BYTES):
    number += 1
    if len(line) == _MAX_ROW_BYTES and not line.endswith(b'\n'):
      while line and not line.endswith(b'\n'):
        line = stream.readline(_MAX_ROW_BYTES)
      yield number, None
      continue
    if number == 1:
      line = line.removeprefix(b'\xef\xbb\xbf')
    yield number, line.removesuffix(b'\n').removesuffix(b'\r')


def _decode(line: bytes | None) -> str:
  """The line as text; ValueError says why it is a bad row."""
  if line is None:
    raise ValueError(f'longer than {_MAX_ROW_BYTES >> 20} MiB')
  if not line.strip():
    raise ValueError('blank line')
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 (byte {error.start + 1})') from None


def _jsonl_rows(path, lines) -> Iterator[_Row]:
  for number, line in lines:
    try:
      yield _json_row(number, _decode(line))
    except ValueError as error:
      yield _Row(number, reason=str(error))


def _json_row(number: int, line: str) -> _Row:
  try:
    fields = json.loads(line)
  except (ValueError, RecursionError):
    raise ValueError('not JSON') from None
  if not isinstance(fields, dict):
    raise ValueError('not a JSON object')
  label = fields.get('label')
  if label is None or label == '':
    raise ValueError('no label')
  if isinstance(label, bool) or not isinstance(label, int | str):
    raise ValueError('label is neither an integer nor a string')
  name = fields.get('id')
  name = name if isinstance(name, str) else ''
  return _Row(number, _text(fields.get('text')), label, name)


def _tsv_rows(path, lines) -> Iterator[_Row]:
  _, header = next(lines, (1, b''))
  try:
    columns = _decode(header).split('\t')
    places = [columns.index(name) for name in ('text', 'label')]
  except ValueError:
    raise DataError(
      f'{path}:1 is no header line with the columns text and label.\n'
      'Put their names into the first line, with a tab between them.'
    ) from None
  for number, line in lines:
    try:
      fields = _decode(line).split('\t')
      if len(fields) != len(columns):
        raise ValueError(f'{len(fields)} columns, not {len(columns)}')
      text, label = (fields[place] for place in places)
      if not label:
        raise ValueError('no label')
      is_integer = _INTEGER.fullmatch(label)
      yield _Row(number, _text(text), int(label) if is_integer else label)
    except ValueError as error:
      yield _Row(number, reason=str(error))


def _text(text: object) -> bytes:
  if text is None:
    raise ValueError('no text')
  if not isinstance(text, str):
    raise ValueError('text is not a string')
  if not text.strip():
    raise ValueError('empty text')
  try:
    return text.encode()
  except UnicodeEncodeError:
    raise ValueError('not UTF-8 (half of a surrogate pair)') from None


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
  """A note for each split that repeats texts of train."""
  train = {example['text'] for example in splits['train']}
  notes = []
  for split in ('validation', 'test'):
    count = sum(example['text'] in train for example in splits[split])
    if count:
      notes.append(f'{count} texts of {split} are in train, too')
  return notes
