"""Pairs of papers: does one cite the other? LRA Retrieval, and own pairs.

The release of LRA holds `tsv_data/new_aan_pairs.{train,eval,test}.tsv` from the
ACL Anthology Network (Radev et al., 2013): without a header, five columns,

    label (0.0 or 1.0)   id of a paper   id of another   text   text

Quotes are letters there. Own pairs are files of the same five columns, or of
the first three (`.tsv`, `.tsv.gz`) with the texts in a file of documents
(`data.documents`: .jsonl or .jsonl.gz rows of `id` and `text`), or .jsonl rows
of `text`, `other` and `label`.

Texts are kept up to 8 KiB, of which a model reads the first `max_length` bytes
(LRA: 4,000); a document that stands in many pairs is held once.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

from effformer.data import rows
from effformer.data.dataset import Example
from effformer.data.rows import Row
from effformer.errors import ConfigError, DataError

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
  """Everything that is wrong with the release, named by file and row."""
  for split, name in FILES.items():
    path, count = folder / name, 0
    try:
      for row in of_pairs('')(path, ''):
        count += 1
        if row.reason:
          yield f'{path}:{row.number}: {row.reason}'
    except DataError as error:
      yield str(error).splitlines()[0]
      continue
    if count != COUNTS[split]:
      yield f'{path}: {count:,} rows, not {COUNTS[split]:,}'


def _examples(path: pathlib.Path) -> Iterator[Example]:
  for row in of_pairs('')(path, ''):
    if row.reason:
      raise DataError(
        f'{path}:{row.number}: {row.reason}\n'
        'The file is not that of the release; unpack the archive again.'
      )
    yield {
      'text': row.text, 'other': row.other, 'label': row.label, 'id': row.id,
    }  # fmt: skip


def of_pairs(
  documents: str,
) -> Callable[[pathlib.Path, str], Iterator[Row]]:
  """A reader of own pairs, whose texts may stand in the file `documents`.

  Raises:
    DataError: while reading, a file that is missing or damaged.
  """
  texts = None

  def read(path: pathlib.Path, split: str) -> Iterator[Row]:
    del split
    nonlocal texts
    if texts is None:
      texts = _documents(documents)
    lines = rows.Lines(path)
    if lines.kind == '.jsonl':
      make = _json_row
    elif lines.kind == '.tsv':
      make = _tsv_row
    else:
      raise ConfigError(
        f'unknown kind of file: {path}\n'
        'Own pairs end in .jsonl, .tsv, .jsonl.gz or .tsv.gz.'
      )
    # A document of many pairs is one object.
    held = dict(texts)
    for number, line in lines:
      try:
        yield make(number, rows.decode(line), held)
      except ValueError as error:
        yield Row(number, reason=str(error))

  return read


def _tsv_row(number: int, line: str, held: dict[str, bytes]) -> Row:
  fields = line.split('\t')
  if len(fields) not in (3, 5):
    raise ValueError(f'{len(fields)} columns, not 5 (or 3 with data.documents)')
  label, first, second = fields[:3]
  try:
    value = float(label)
  except ValueError:
    raise ValueError(f'label {label[:40]!r} is not a number') from None
  if value not in (0.0, 1.0):
    raise ValueError(f'label {label[:40]!r} is neither 0 nor 1')
  if len(fields) == 5:
    for name, text in zip((first, second), fields[3:], strict=True):
      held.setdefault(name, _cut(text))
  for name in (first, second):
    if name not in held:
      raise ValueError(f'no document {name[:40]!r} in data.documents')
    if not held[name].strip():
      raise ValueError(f'the document {name[:40]!r} is empty')
  texts = held[first], held[second]
  return Row(number, texts[0], int(value), f'{first} {second}', other=texts[1])


def _json_row(number: int, line: str, held: dict[str, bytes]) -> Row:
  del held
  row = rows.json_row(number, line)
  row.other = rows.text_bytes(json.loads(line).get('other'), 'other')
  row.text, row.other = row.text[:MAX_BYTES], row.other[:MAX_BYTES]
  return row


def _documents(path: str) -> Documents:
  if not path:
    return {}
  texts = {}
  lines = rows.Lines(pathlib.Path(path).expanduser())
  for number, line in lines:
    try:
      fields = json.loads(rows.decode(line))
      texts[fields['id']] = _cut(fields['text'])
    except (ValueError, KeyError, TypeError) as error:
      raise DataError(
        f'{path}:{number}: not a document: {type(error).__name__} {error}\n'
        'Each row of data.documents is {"id": ..., "text": ...}.'
      ) from None
  return texts


def _cut(text: str) -> bytes:
  return text.encode()[:MAX_BYTES]
