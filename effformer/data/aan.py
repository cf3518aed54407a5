"""Pairs of papers: does one cite the other? LRA Retrieval, and own pairs.

The release of LRA holds `tsv_data/new_aan_pairs.{train,eval,test}.tsv` from the
ACL Anthology Network (Radev et al., 2013): without a header, five columns,

    label (0.0 or 1.0)   id of a paper   id of another   text   text

Quotes are letters there. Own pairs are files of the same five columns, or of
the first three (`.tsv`, `.tsv.gz`) with the texts in a file of documents
(`data.documents`: .jsonl or .jsonl.gz rows of `id` and `text`), or .jsonl rows
of `text`, `other` and `label`. The texts of a row of five columns are its own,
whatever its ids are elsewhere.

Texts are kept up to 8 KiB, of which a model reads the first `max_length` bytes
(LRA: 4,000); of own pairs a text that stands in many is held once.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from effformer.data import rows, sentence_pairs
from effformer.data.dataset import Example
from effformer.data.rows import Row
from effformer.errors import DataError

# In the nested folder of the release; the outer one has other data.
FILES = {
  split: f'tsv_data/new_aan_pairs.{name}.tsv'
  for split, name in (
    ('train', 'train'),
    ('validation', 'eval'),
    ('test', 'test'),
  )
}
COUNTS = {'train': 147_086, 'validation': 18_090, 'test': 17_437}
MAX_BYTES = 8_192

Documents = Mapping[str, bytes]


def read_release(folder: pathlib.Path) -> dict[str, Iterator[Example]]:
  """The splits of the release.

  Raises:
    DataError: while reading, a row that cannot be used, named by file and row.
  """
  return {
    split: _examples(folder / name) for split, name in FILES.items()
  }  # fmt: skip


def faults(folder: pathlib.Path) -> Iterator[str]:
  """Everything that is wrong with the release, named by file and row.

  Also an id whose text is not always the same, a pair that occurs again, in one
  file or in another, a last row that is cut off, and how many rows there are.
  """
  texts, pairs = {}, {}
  for split, name in FILES.items():
    path, count = folder / name, 0
    try:
      for number, line in rows.Lines(path):
        count, place = number, (name, number)
        try:
          fields = _fields(rows.decode(line), (5,))
        except ValueError as error:
          yield f'{path}:{number}: {error}'
          continue
        for fault in _repeats(fields, place, texts, pairs):
          yield f'{path}:{number}: {fault}'
      if _is_cut_off(path):
        yield f'{path}:{count}: the last row has no line end; cut off?'
    except DataError as error:
      yield str(error).splitlines()[0]
      continue
    if count != COUNTS[split]:
      yield f'{path}: {count:,} rows, not {COUNTS[split]:,}'


class _Fields(NamedTuple):
  """A row of columns; `texts` is empty where it has three of them."""

  label: int
  ids: tuple[str, str]
  texts: tuple[str, ...]


def _repeats(fields: _Fields, place, texts: dict, pairs: dict) -> Iterator[str]:
  """What `fields` repeats, or contradicts, of the rows before.

  Args:
    fields: a row.
    place: its file and number.
    texts: id -> hash of its first text, and the place of that.
    pairs: hash of ids, and hash of texts -> the place of the first such pair.
      Hashes, since the texts themselves would fill a memory.
  """
  digests = [_digest(text) for text in fields.texts]
  for name, digest in zip(fields.ids, digests, strict=True):
    known, first = texts.setdefault(name, (digest, place))
    if known != digest:
      yield f'the text of {name[:40]!r} is not that of {_shown(first)}'
  keys = [_digest('\t'.join(fields.ids)), b''.join(digests)]
  first = next((pairs[key] for key in keys if key in pairs), place)
  for key in keys:
    pairs.setdefault(key, place)
  if first != place:
    yield f'the pair of {_shown(first)} once more'


def _shown(place) -> str:
  name, number = place
  return f'{pathlib.PurePath(name).name}:{number}'


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()[:16]


def _is_cut_off(path: pathlib.Path) -> bool:
  """Whether a file ends without the end of a line."""
  with open(path, 'rb') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    return file.read() != b'\n' and size > 0


def _examples(path: pathlib.Path) -> Iterator[Example]:
  for number, line in rows.Lines(path):
    try:
      fields = _fields(rows.decode(line), (5,))
    except ValueError as error:
      raise DataError(
        f'{path}:{number}: {error}\n'
        'The file is not that of the release; unpack the archive again.'
      ) from None
    text, other = map(_cut, fields.texts)
    yield {
      'text': text, 'other': other, 'label': fields.label,
      'id': ' '.join(fields.ids),
    }  # fmt: skip


def of_pairs(
  documents: str,
) -> Callable[[pathlib.Path, str], Iterator[Row]]:
  """A reader of own pairs, whose texts may stand in the file `documents`.

  Raises:
    ConfigError: while reading, a file of an unknown kind.
    DataError: while reading, a file that is missing or damaged.
  """
  texts, held = None, {}

  def read(path: pathlib.Path, split: str) -> Iterator[Row]:
    del split
    nonlocal texts
    lines = rows.Lines(path)
    lines.require_kind(
      ('.jsonl', '.tsv'),
      'Own pairs end in .jsonl, .tsv, .jsonl.gz or .tsv.gz.',
    )
    make = _json_row if lines.kind == '.jsonl' else _tsv_row
    if documents and texts is None:
      texts = _documents(documents)
    for number, line in lines:
      try:
        row = make(number, rows.decode(line), texts)
      except ValueError as error:
        yield Row(number, reason=str(error))
        continue
      # A text of many pairs is one object.
      row.text = held.setdefault(row.text, row.text)
      row.other = held.setdefault(row.other, row.other)
      yield row

  return read


def _tsv_row(number: int, line: str, documents: Documents | None) -> Row:
  fields = _fields(line, (5, 3))
  texts = [_cut(text) for text in fields.texts]
  if not texts:
    if documents is None:
      raise ValueError(
        '3 columns and no data.documents: set data.documents to the file of '
        'the texts'
      )
    for name in fields.ids:
      if name not in documents:
        raise ValueError(f'no document {name[:40]!r} in data.documents')
      if not documents[name]:
        raise ValueError(f'the document {name[:40]!r} is empty')
    texts = [documents[name] for name in fields.ids]
  text, other = texts
  return Row(number, text, fields.label, ' '.join(fields.ids), other=other)


def _fields(line: str, counts: tuple[int, ...]) -> _Fields:
  """The columns of a row, of which there are so many, or so many.

  Raises:
    ValueError: why it is a bad row.
  """
  columns = line.split('\t')
  if len(columns) not in counts:
    more = ' (or 3 with data.documents)' if 3 in counts else ''
    raise ValueError(f'{len(columns)} columns, not 5{more}')
  label, *ids = columns[:3]
  try:
    value = float(label)
  except ValueError:
    raise ValueError(f'label {label[:40]!r} is not a number') from None
  if value not in (0.0, 1.0):
    raise ValueError(f'label {label[:40]!r} is neither 0 nor 1')
  for name, text in zip(ids, columns[3:], strict=False):
    if not text.strip():
      raise ValueError(f'the document {name[:40]!r} is empty')
  return _Fields(int(value), tuple(ids), tuple(columns[3:]))


def _json_row(number: int, line: str, documents: Documents | None) -> Row:
  del documents
  row = sentence_pairs.json_row(number, line)
  row.text, row.other = row.text[:MAX_BYTES], row.other[:MAX_BYTES]
  return row


def _documents(given: str) -> Documents:
  path, texts = rows.own_path(given), {}
  for number, line in rows.Lines(path):
    try:
      name, text = _document(rows.decode(line))
      if texts.setdefault(name, text) != text:
        raise ValueError(f'the id {name[:40]!r} has another text further up')
    except ValueError as error:
      raise DataError(
        f'{path}:{number}: not a document: {error}\n'
        'Each row of data.documents is {"id": ..., "text": ...}, both strings.'
      ) from None
  return texts


def _document(line: str) -> tuple[str, bytes]:
  """Id and text of a row of documents; ValueError says why it has none."""
  fields = rows.json_object(line)
  name = fields.get('id')
  if name is None:
    raise ValueError('no id')
  if not isinstance(name, str):
    raise ValueError('id is not a string')
  text = fields.get('text')
  if isinstance(text, str) and not text.strip():
    # A fault of the pairs that need it.
    return name, b''
  return name, rows.text_bytes(text)[:MAX_BYTES]


def _cut(text: str) -> bytes:
  return text.encode()[:MAX_BYTES]
