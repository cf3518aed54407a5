"""What lies in a run folder: its config, how it went, what it achieved."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from effformer import durable, scores
from effformer.errors import CheckpointError, ConfigError
from effformer.train import records, workdir


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

  @property
  def score(self) -> str:
    """The measure that is its score."""
    return scores.of_task(self.config['task'])


def find(
  places: Iterable[str | os.PathLike], *, may_be_none: bool = False
) -> list[Run]:
  """The runs in these folders and at any depth below, by path, each once.

  Raises:
    ConfigError: a place is no folder; or holds no run, unless `may_be_none`.
    CheckpointError: a file of a run cannot be read.
  """
  folders = set()
  for place in map(pathlib.Path, places):
    if not place.is_dir():
      raise ConfigError(f'{place} is no folder; name folders of runs.')
    found = {
      path.parent.resolve()
      for path in place.rglob('config.json')
      # The stage before a run, or a step of a recipe, is no run to compare.
      if not _is_stage(path.parent) and not _is_of_recipe(path.parent)
    }
    if not found and not may_be_none:
      raise ConfigError(
        f'{place} holds no run: there is no config.json in it or below.'
      )
    folders |= found
  return [_read(folder) for folder in sorted(folders)]


def _is_stage(folder: pathlib.Path) -> bool:
  is_named_so = folder.name == workdir.PRETRAIN
  return is_named_so and (folder.parent / 'config.json').exists()


def _is_of_recipe(folder: pathlib.Path) -> bool:
  """Whether it is of a compression, or the training of one of its steps."""
  if (folder.parent.parent / workdir.RECIPE).exists():
    return True
  # Also while its parent is trained, and there is no recipe yet.
  compress = (durable.read_json(folder / 'config.json') or {}).get('compress')
  return isinstance(compress, dict) and bool(compress.get('steps'))


def _read(folder: pathlib.Path) -> Run:
  return Run(
    folder,
    _with(folder / 'config.json', 'task', 'mixer', 'train', 'data'),
    _with(folder / 'result.json', 'task', 'test', 'floors'),
    tuple(records.read_rows(folder / 'metrics.jsonl')),
  )


def _with(path: pathlib.Path, *keys: str) -> dict[str, Any] | None:
  """The object in a file, None if there is none; it has these keys."""
  value = durable.read_json(path)
  if value is not None and not set(keys) <= set(value):
    raise CheckpointError(
      f'{path} is not what a run writes: it lacks {", ".join(sorted(keys))}.\n'
      'Leave its folder out, or train that run again.'
    )
  return value
