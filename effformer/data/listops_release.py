"""ListOps as the release of LRA has it.

    listops-1000/basic_{train,val,test}.tsv

After the heading `Source`, `Target` two columns: the expression, its symbols
apart by spaces and nested in pairs by parentheses, which every reader drops
(`( ( ( [MAX 2 ) 9 ) ] )` is `[MAX 2 9 ]`), and its value.
"""

import hashlib
import pathlib
from collections.abc import Iterator

from effformer.data import listops, rows
from effformer.data.dataset import Example
from effformer.data.rows import Row
from effformer.errors import DataError

# In the nested folder of the release; the outer one has another copy.
FILES = {
  split: f'listops-1000/basic_{name}.tsv'
  for split, name in (
    ('train', 'train'),
    ('validation', 'val'),
    ('test', 'test'),
  )
}
COUNTS = {'train': 96_000, 'validation': 2_000, 'test': 2_000}
_HEADING = ['Source', 'Target']
_SPACES = bytes.maketrans(b'()', b'  ')


def read_release(folder: pathlib.Path) -> dict[str, Iterator[Example]]:
  """The splits of the release.

  Raises:
    DataError: while reading, a row that cannot be used, named by file and row.
  """
  return {split: _examples(folder / name) for split, name in FILES.items()}


def faults(folder: pathlib.Path) -> Iterator[str]:
  """Everything that is wrong with the release, named by file and row.

  Also values that the expressions do not have, expressions that occur again,
  in one file or in another, and how many there are.
  """
  # Hashes, since the expressions themselves are hundreds of MB.
  seen = {}
  for split, name in FILES.items():
    path, count = folder / name, 0
    try:
      for row in _rows(path):
        count += 1
        place = f'{path}:{row.number}'
        if row.reason:
          yield f'{place}: {row.reason}'
          continue
        value = listops.evaluate(row.text)
        if value != row.label:
          yield f'{place}: {row.label} stands there, not {value}'
        digest = hashlib.sha256(row.text).digest()
        if (first := seen.setdefault(digest, place)) != place:
          yield f'{place}: the expression of {first} once more'
    except DataError as error:
      yield str(error).splitlines()[0]
      continue
    if count != COUNTS[split]:
      yield f'{path}: {count:,} rows, not {COUNTS[split]:,}'


def expression(source: bytes) -> bytes:
  """An expression of the release as it is read: without its parentheses."""
  return b' '.join(source.translate(_SPACES).split())


def _examples(path: pathlib.Path) -> Iterator[Example]:
  for row in _rows(path):
    if row.reason:
      raise DataError(
        f'{path}:{row.number}: {row.reason}\n'
        'The file is not that of the release; unpack the archive again.'
      )
    yield {
      'text': row.text, 'label': row.label, 'id': f'{path.stem}:{row.number}',
    }  # fmt: skip


def _rows(path: pathlib.Path) -> Iterator[Row]:
  """All rows, good and bad ones; numbered as in an editor, heading included."""
  for number, line in rows.Lines(path):
    try:
      fields = rows.decode(line).split('\t')
      if number == 1:
        if fields != _HEADING:
          raise DataError(f'{path}:1: the heading is not Source and Target')
        continue
      if len(fields) != 2:
        raise ValueError(f'{len(fields)} columns, not 2')
      source, target = fields
      if not (len(target) == 1 and target in '0123456789'):
        raise ValueError(f'the value {target[:40]!r} is no digit')
      text = expression(source.encode())
      listops.check(text)
    except ValueError as error:
      yield Row(number, reason=str(error))
    except DataError as error:
      if number == 1:
        raise
      yield Row(number, reason=str(error).splitlines()[0])
    else:
      yield Row(number, text, int(target))
