"""Files that a mode of the program leaves, wherever they lie."""

import os
import pathlib
from collections.abc import Collection, Iterable
from typing import Any

from effformer import durable
from effformer.errors import CheckpointError


def find(
  places: Iterable[str | os.PathLike],
  name: str,
  needed: Collection[str],
  mode: str,
) -> list[dict[str, Any]]:
  """The content of the files of a name in these folders and below.

  By path, each once.

  Args:
    places: folders.
    name: of the files.
    needed: keys that the content has.
    mode: that writes them.

  Raises:
    CheckpointError: a file cannot be read, or lacks a key.
  """
  paths = {
    path.resolve()
    for place in map(pathlib.Path, places)
    for path in place.rglob(name)
  }
  return [_read(path, needed, mode) for path in sorted(paths)]


def _read(path, needed, mode):
  found = durable.read_json(path) or {}
  if not {*needed} <= set(found):
    raise CheckpointError(
      f'{path} is not what --mode={mode} writes.\n'
      'Leave its folder out, or make it again.'
    )
  return found
