"""Rows of text files: jsonl and tsv, plain or gzipped (.gz).

jsonl: one JSON object a line with `text` (string, not empty) and `label`
(integer or string); `id` is optional. tsv: a header line that names at least
the columns `text` (or `sentence`) and `label`; no quoting. In a tsv file a
label that looks like an integer is one.

A row that cannot be used is not left out, but says why: not UTF-8, not JSON,
not an object, text missing or empty, no label, wrong number of columns, more
than 16 MiB.
"""

import dataclasses
import gzip
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from effformer.errors import ConfigError, DataError

# What a plain text file is cut into: long beside what a model reads at once,
# short enough that a few files give splits.
PLAIN_BYTES = 1 << 14
# What a column may be called.
TEXT, LABEL = ('text', 'sentence'), ('label',)
_MAX_ROW_BYTES = 16 << 20
# Texts pack to a third or a tenth of their size; what unpacks to more than
# this many bytes and times its size is made to fill a memory.
_MAX_UNPACKED_BYTES = 1 << 30
_MAX_UNPACKED_TIMES = 100
_INTEGER = re.compile(r'-?\d{1,9}')


@dataclasses.dataclass
class Row:
  """One good row, or one bad row (`reason` says why)."""

  number: int
  text: bytes = b''
  label: int | str = 0
  id: str = ''
  reason: str = ''
  other: bytes | None = None


class Lines:
  """Number from 1 and bytes of each line of a file; None for a too long one.

  Attributes:
    path: of the file.
    kind: '.tsv', ..., without '.gz'.

  Raises:
    DataError: while reading: missing, a folder, a damaged gzip, or one that
      unpacks to more than texts do.
  """

  def __init__(self, path: pathlib.Path):
    suffixes = [suffix.lower() for suffix in path.suffixes]
    self._is_gzip = suffixes[-1:] == ['.gz']
    self.path = path
    self.kind = ''.join((suffixes[:-1] if self._is_gzip else suffixes)[-1:])

  def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
    return self._read(_lines)

  def require_kind(self, kinds: Collection[str], endings: str) -> None:
    """Refuses a file of none of these kinds; `endings` says what is read.

    Raises:
      DataError: it is not there, or a folder.
      ConfigError: its name has another ending.
    """
    if self.kind in kinds:
      return
    # A name that is mistyped is not a kind that is unknown.
    if not os.path.exists(self.path):
      raise missing(self.path)
    if os.path.isdir(self.path):
      raise _is_folder(self.path)
    raise ConfigError(f'unknown kind of file: {self.path}\n{endings}')

  def pieces(self, size: int) -> Iterator[bytes]:
    """The file in pieces of `size` bytes, the last one shorter."""

    def cut(stream):
      number = 0
      while piece := stream.read(size):
        number += 1
        yield number, piece

    return (piece for _, piece in self._read(cut))

  def _read(self, cut):
    number = 0
    try:
      with self._open() as stream:
        for number, part in cut(stream):
          yield number, part
    except FileNotFoundError:
      raise missing(self.path) from None
    except IsADirectoryError:
      raise _is_folder(self.path) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise DataError(
        f'damaged gzip file: {self.path}\nafter row {number}: {error}\n'
        'Copy or make the file again.'
      ) from None
    except OSError as error:
      raise DataError(f'cannot read {self.path}: {error}') from error

  def _open(self):
    return _Unpacked(self.path) if self._is_gzip else open(self.path, 'rb')


def unpacked_limit(path: pathlib.Path) -> int:
  """Bytes that a packed file may hold: more are there to fill a memory."""
  return max(_MAX_UNPACKED_BYTES, _MAX_UNPACKED_TIMES * path.stat().st_size)


class _Unpacked(gzip.GzipFile):
  """The content of a gzip file; DataError where there is far too much."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    self._limit = unpacked_limit(path)

  def read(self, size: int = -1) -> bytes:
    return self._checked(super().read(size))

  def readline(self, size: int = -1) -> bytes:
    return self._checked(super().readline(size))

  def _checked(self, content):
    if self.tell() > self._limit:
      raise DataError(
        f'{self.name} unpacks to more than {self._limit:,} bytes, '
        f'{_MAX_UNPACKED_TIMES} times its size or more: no texts do.\n'
        'If they are yours all the same, unpack the file and give it plain.'
      )
    return content


def of_texts(
  path: pathlib.Path, split: str, *, needs_label: bool = True
) -> Iterator[Row]:
  """All rows of a file, good and bad ones, in order; the split is not needed.

  Without `needs_label` all labels are 0, whatever the file says.

  Raises:
    ConfigError: neither jsonl nor tsv by its name.
    DataError: see `Lines`, or a tsv header that does not name the columns.
  """
  del split
  lines = Lines(path)
  more = '' if needs_label else ', .txt'
  lines.require_kind(
    _READERS, f'Own data end in .jsonl, .tsv{more}, or these with .gz.'
  )
  yield from _READERS[lines.kind](path, iter(lines), needs_label)


def of_plain_texts(path: pathlib.Path, split: str) -> Iterator[Row]:
  """As `of_texts`, but labels need not be there and count for nothing.

  A .txt file (also .gz), of any bytes, is rows of PLAIN_BYTES each.
  """
  lines = Lines(path)
  if lines.kind != '.txt':
    yield from of_texts(path, split, needs_label=False)
    return
  for number, piece in enumerate(lines.pieces(PLAIN_BYTES), 1):
    yield Row(number, piece)


def own_path(given: str) -> pathlib.Path:
  """The path of an own file, as it is given in a config."""
  try:
    return pathlib.Path(given).expanduser()
  except RuntimeError as error:
    raise DataError(
      f'no such file: {given} ({str(error).rstrip(".")})\n'
      'Give a path without ~.'
    ) from None


def missing(path: pathlib.Path) -> DataError:
  """The error that `path` is not there."""
  return DataError(
    f'no such file: {path}\n'
    'Correct data.train, data.validation, data.test or data.documents.'
  )


def _is_folder(path: pathlib.Path) -> DataError:
  return DataError(f'{path} is a folder; a file is needed.')


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


def decode(line: bytes | None) -> str:
  """The line as text; ValueError says why it is a bad row."""
  if line is None:
    raise ValueError(f'longer than {_MAX_ROW_BYTES >> 20} MiB')
  if not line.strip():
    raise ValueError('blank line')
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 (byte {error.start + 1})') from None


def _jsonl_rows(path, lines, needs_label=True) -> Iterator[Row]:
  for number, line in lines:
    try:
      yield json_row(number, decode(line), needs_label)
    except ValueError as error:
      yield Row(number, reason=str(error))


def json_object(line: str) -> dict[str, Any]:
  """The object that a line is; ValueError says why it is none."""
  try:
    fields = json.loads(line)
  except (ValueError, RecursionError):
    raise ValueError('not JSON') from None
  if not isinstance(fields, dict):
    raise ValueError('not a JSON object')
  return fields


def json_row(number: int, line: str, needs_label: bool = True) -> Row:
  """The row of a JSON object; ValueError says why it is a bad one."""
  fields = json_object(line)
  label = fields.get('label') if needs_label else 0
  if label is None or label == '':
    raise ValueError('no label')
  if isinstance(label, bool) or not isinstance(label, int | str):
    raise ValueError('label is neither an integer nor a string')
  if isinstance(label, str):
    _utf8(label)
  name = fields.get('id')
  name = name if isinstance(name, str) else ''
  return Row(number, text_bytes(fields.get('text')), label, name)


def _tsv_rows(path, lines, needs_label=True) -> Iterator[Row]:
  wanted = (TEXT, LABEL) if needs_label else (TEXT,)

  def row(number, text, label='0'):
    return Row(number, text_bytes(text), label_of(label))

  yield from table(path, lines, wanted, row)


def table(
  path: pathlib.Path,
  lines: Iterator[tuple[int, bytes | None]],
  wanted: Sequence[Sequence[str]],
  make: Callable[..., Row],
) -> Iterator[Row]:
  """The rows of a tsv file, by the columns that are wanted.

  Args:
    path: of the file, for messages.
    lines: number and bytes of its lines, the header first.
    wanted: what each column may be called.
    make: (number, the wanted fields) -> row; ValueError says why it is bad.

  Raises:
    DataError: the header does not name the columns.
  """
  _, header = next(lines, (1, b''))
  try:
    columns = decode(header).split('\t')
  except ValueError:
    columns = []
  places = [
    next((columns.index(name) for name in names if name in columns), None)
    for names in wanted
  ]
  if None in places:
    needed = ' and '.join(' or '.join(names) for names in wanted)
    raise DataError(
      f'{path}:1 is no header line with the column(s) {needed}.\n'
      'Put their names into the first line, with a tab between them.'
    )
  for number, line in lines:
    try:
      fields = decode(line).split('\t')
      if len(fields) != len(columns):
        raise ValueError(f'{len(fields)} columns, not {len(columns)}')
      yield make(number, *(fields[place] for place in places))
    except ValueError as error:
      yield Row(number, reason=str(error))


def label_of(field: str) -> int | str:
  """The label that a field of a tsv file is; ValueError where it is empty."""
  if not field:
    raise ValueError('no label')
  return int(field) if _INTEGER.fullmatch(field) else field


def text_bytes(value: object, name: str = 'text') -> bytes:
  """A field that is a text; ValueError says why it is none."""
  if value is None:
    raise ValueError(f'no {name}')
  if not isinstance(value, str):
    raise ValueError(f'{name} is not a string')
  if not value.strip():
    raise ValueError(f'empty {name}')
  return _utf8(value)


def _utf8(value: str) -> bytes:
  try:
    return value.encode()
  except UnicodeEncodeError:
    raise ValueError('not UTF-8 (half of a surrogate pair)') from None


_READERS = {'.jsonl': _jsonl_rows, '.tsv': _tsv_rows}
