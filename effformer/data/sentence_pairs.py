"""Own pairs of sentences with any labels, or with scores, as GLUE has them.

tsv: a header line that names at least `sentence1` (or `text`), `sentence2` (or
`other`) and `label` (or `score`, where scores are asked for); no quoting.
jsonl: `text`, `other` and `label` (or `score`).

A score is a number from 0 to 5. It is kept as a label in thousandths, rounded,
which those of STS-B are whole numbers of.
"""

import pathlib
from collections.abc import Callable, Iterator

from effformer.data import rows
from effformer.data.rows import Row

# The highest score, and how many parts a point of it is kept in.
HIGHEST = 5
PER_POINT = 1000
_TEXTS = (('sentence1', 'text'), ('sentence2', 'other'))
_SCORE = ('score',)


def read(path: pathlib.Path, split: str) -> Iterator[Row]:
  """All rows of a file, good and bad ones, in order; see `rows.of_texts`."""
  del split
  return _read(path, (*_TEXTS, rows.LABEL), rows.label_of, json_row)


def read_scored(path: pathlib.Path, split: str) -> Iterator[Row]:
  """As `read`, of files that have scores; these are the labels."""
  del split
  return _read(path, (*_TEXTS, _SCORE), thousandths, _scored_json_row)


def _read(
  path: pathlib.Path,
  columns: tuple[tuple[str, ...], ...],
  label_of: Callable[[str], int | str],
  row_of_json: Callable[[int, str], Row],
) -> Iterator[Row]:
  def tsv_row(number: int, text: str, other: str, label: str) -> Row:
    return Row(
      number,
      rows.text_bytes(text, 'sentence1'),
      label_of(label),
      other=rows.text_bytes(other, 'sentence2'),
    )

  lines = rows.Lines(path)
  lines.require_kind(
    ('.jsonl', '.tsv'),
    'Own pairs end in .jsonl, .tsv, .jsonl.gz or .tsv.gz.',
  )
  if lines.kind == '.tsv':
    yield from rows.table(path, iter(lines), columns, tsv_row)
    return
  for number, line in lines:
    try:
      yield row_of_json(number, rows.decode(line))
    except ValueError as error:
      yield Row(number, reason=str(error))


def json_row(number: int, line: str, needs_label: bool = True) -> Row:
  """The row of a JSON object; ValueError says why it is a bad one."""
  row = rows.json_row(number, line, needs_label)
  row.other = rows.text_bytes(rows.json_object(line).get('other'), 'other')
  return row


def _scored_json_row(number: int, line: str) -> Row:
  row = json_row(number, line, needs_label=False)
  row.label = thousandths(rows.json_object(line).get('score'))
  return row


def thousandths(score: object) -> int:
  """A score as it is kept; ValueError says why it is none."""
  if score is None or score == '':
    raise ValueError('no score')
  try:
    # True is a number to Python.
    number = float('' if isinstance(score, bool) else score)
  except (TypeError, ValueError, OverflowError):
    raise ValueError(f'score {str(score)[:40]!r} is not a number') from None
  # NaN is within no bounds.
  if not 0 <= number <= HIGHEST:
    raise ValueError(f'score {number:g} is not from 0 to {HIGHEST}')
  return round(PER_POINT * number)
