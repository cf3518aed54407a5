"""Tables of results: small CSV files, one row a measurement."""

import csv
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).resolve().parent / 'results'


def write(path: pathlib.Path | None, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes the rows, all their keys in the heading; None: nowhere."""
  rows = list(rows)
  if path is None:
    return
  # Rows of an older table may lack a column.
  columns = list(dict.fromkeys(key for row in rows for key in row))
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


def read(path: pathlib.Path | None) -> list[dict[str, str]]:
  """The rows, in words; none where there is no such file."""
  if path is None or not path.exists():
    return []
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def merge(
  path: pathlib.Path | None, rows: Iterable[Mapping[str, Any]], *keys: str
) -> None:
  """Writes the rows in place of those with equal keys, and keeps the others."""
  merged = {}
  for row in [*read(path), *rows]:
    merged[tuple(str(row[key]) for key in keys)] = row
  write(path, (merged[key] for key in sorted(merged)))
