"""What lies in a run folder: its config, how it went, what it achieved."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from effformer.errors import CheckpointError, ConfigError


@dataclasses.dataclass(frozen=True)
class Run:
  """A run.

  Attributes:
    folder: where it lies.
    config: config.json.
    result: result.json; None while the run is not finished.
    rows: metrics.jsonl, without a last line that is still being written.
  """

  folder: pathlib.Path
  config: dict[str, Any]
  result: dict[str, Any] | None
  rows: tuple[dict[str, Any], ...]


def find(places: Iterable[str | os.PathLike]) -> list[Run]:
  """The runs in these folders and at any depth below, by path, each once.

  Raises:
    ConfigError: a place is no folder, or holds no run.
    CheckpointError: a file of a run cannot be read.
  """
  folders = set()
  for place in map(pathlib.Path, places):
    if not place.is_dir():
      raise ConfigError(f'{place} is no folder; name folders of runs.')
    found = {path.parent.resolve() for path in place.rglob('config.json')}
    if not found:
      raise ConfigError(
        f'{place} holds no run: there is no config.json in it or below.'
      )
    folders |= found
  return [_read(folder) for folder in sorted(folders)]


def _read(folder: pathlib.Path) -> Run:
  result = folder / 'result.json'
  return Run(
    folder,
    _json(folder / 'config.json', {'task', 'mixer', 'train', 'data'}),
    _json(result, {'task', 'test', 'floors'}) if result.exists() else None,
    tuple(_rows(folder / 'metrics.jsonl')),
  )


def _json(path: pathlib.Path, keys: set[str]) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError) as error:
    raise _damaged(path, error) from error
  if not isinstance(value, dict) or not keys <= set(value):
    raise _damaged(path, f'it lacks {", ".join(sorted(keys))}')
  return value


def _rows(path: pathlib.Path):
  if not path.exists():
    return
  try:
    text = path.read_text('utf-8')
    # What follows the last end of a line is still being written.
    for line in text.split('\n')[:-1]:
      yield json.loads(line)
  except (OSError, ValueError) as error:
    raise _damaged(path, error) from error


def _damaged(path, reason) -> CheckpointError:
  return CheckpointError(
    f'{path} is not what a run writes: {reason}.\n'
    'Leave its folder out, or train that run again.'
  )
