"""Files that are whole after a crash: write aside, fsync, rename, fsync.

A rename within one file system is atomic, so a reader sees the old bytes or
the new ones; the fsyncs before and after it make this true after a power cut.
"""

import json
import math
import os
import pathlib
import re
from typing import Any

from effformer import errors

# More than any JSON file of a published model has; such a file is not read.
MAX_JSON_BYTES = 64 << 20


def sync(path: str | os.PathLike) -> None:
  """Forces a file's or a folder's content to the disk; raises OSError."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_new(path: str | os.PathLike, data: bytes) -> None:
  """Writes and syncs a file, not its folder; raises OSError."""
  with open(path, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def put(path: str | os.PathLike, data: bytes) -> None:
  """Gives the file new content in one step; raises OSError."""
  path = pathlib.Path(path)
  aside = path.with_name(path.name + '.tmp')
  try:
    write_new(aside, data)
    os.rename(aside, path)
  except BaseException:
    aside.unlink(missing_ok=True)
    raise
  sync(path.parent)


def replace(path: str | os.PathLike, data: bytes) -> None:
  """`put` for a file of a run; raises CheckpointError."""
  try:
    put(path, data)
  except OSError as error:
    raise not_written(path, error) from error


def read_json(path: str | os.PathLike) -> dict[str, Any] | None:
  """The object in a JSON file, None if there is no file.

  Raises:
    CheckpointError: the file cannot be read or holds no JSON object.
  """
  path = pathlib.Path(path)
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    why = reason(error)
  else:
    if isinstance(value, dict):
      return value
    why = 'it holds no JSON object'
  raise errors.CheckpointError(
    f'{path} cannot be read: {why}\nPut an intact copy back, or delete it.'
  )


def not_written(path: str | os.PathLike, error: OSError):
  """Returns the CheckpointError for a file of the run that was not written."""
  return errors.CheckpointError(
    f'cannot write {path}: {reason(error)}\n'
    'Make room or make the folder writable, then give the same command again: '
    'the run goes on from its last checkpoint.'
  )


def reason(error: BaseException) -> str:
  """Returns why, in one line: the system's words where there are any."""
  words = getattr(error, 'strerror', None) or str(error).strip()
  # The form in which tensorstore, below Orbax, passes on errors of the system.
  number = re.search(r"os_error_code='(\d+)'", words)
  if number:
    return os.strerror(int(number[1]))
  return (words.splitlines() or [type(error).__name__])[0][:200]


def dumps(value: Any, indent: int | None = None) -> str:
  """JSON text in which equal values have equal bytes.

  Floats are written by `repr`. Because JSON has no others, the non-finite
  floats become the strings 'NaN', 'Infinity' and '-Infinity'; NumPy and JAX
  scalars become the Python values they hold.
  """
  return json.dumps(_plain(value), allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if hasattr(value, 'item'):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else '-Infinity'[value > 0 :]
  return value
