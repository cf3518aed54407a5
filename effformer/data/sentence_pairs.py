"""Own pairs of sentences with any labels, as GLUE has them.

tsv: a header line that names at least `sentence1` (or `text`), `sentence2` (or
`other`) and `label`; no quoting. jsonl: `text`, `other` and `label`.
"""

import pathlib
from collections.abc import Iterator

from effformer.data import rows
from effformer.data.rows import Row

_COLUMNS = (('sentence1', 'text'), ('sentence2', 'other'), rows.LABEL)


def read(path: pathlib.Path, split: str) -> Iterator[Row]:
  """All rows of a file, good and bad ones, in order; see `rows.of_texts`."""
  del split
  lines = rows.Lines(path)
  lines.require_kind(
    ('.jsonl', '.tsv'),
    'Own pairs end in .jsonl, .tsv, .jsonl.gz or .tsv.gz.',
  )
  if lines.kind == '.tsv':
    yield from rows.table(path, iter(lines), _COLUMNS, _tsv_row)
    return
  for number, line in lines:
    try:
      yield json_row(number, rows.decode(line))
    except ValueError as error:
      yield Row(number, reason=str(error))


def json_row(number: int, line: str) -> Row:
  """The row of a JSON object; ValueError says why it is a bad one."""
  row = rows.json_row(number, line)
  row.other = rows.text_bytes(rows.json_object(line).get('other'), 'other')
  return row


def _tsv_row(number: int, text: str, other: str, label: str) -> Row:
  return Row(
    number,
    rows.text_bytes(text, 'sentence1'),
    rows.label_of(label),
    other=rows.text_bytes(other, 'sentence2'),
  )
