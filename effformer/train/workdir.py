"""The folder of a run: one process at a time, one config for its whole life.

`config.json` is the config of the first start; `lock` names the process that
writes into the folder.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from effformer import durable, errors
from effformer.train import records

_ABSENT = 'absent'

# The folder, in that of a run, of the stage before it.
PRETRAIN = 'pretrain'
PRETRAIN_FACTS = 'pretrain.json'
# What a run began with, where that was trained before.
START_FACTS = 'start.json'
EFFICIENCY = 'efficiency.json'
# What --mode=compress leaves: what it measured; and what its steps are.
COMPRESSION = 'compression.json'
RECIPE = 'recipe.json'

# What may differ between the starts of one run: it changes how the run goes,
# never where it ends (but for the policy about steps that are not finite,
# which matters from the first such step on).
MAY_CHANGE = (
  'data.directory',
  'data.num_threads',
  'data.prefetch',
  'mesh.',
  # The values count, not how they were said.
  'overridden',
  'train.keep_checkpoints',
  'train.nonfinite',
)


@contextlib.contextmanager
def open_workdir(
  path: str | os.PathLike, *, locked: bool = True
) -> Iterator[pathlib.Path]:
  """Makes the folder and holds it for this process.

  The lock is the kernel's (flock) and ends with the process, so a killed run
  leaves nothing to clear away. The file `lock` stays; its text is only there
  to say who holds it.

  Args:
    path: folder of the run; its parents are made too.
    locked: False in the processes of a run that do not write (all but 0).

  Yields:
    The absolute path.

  Raises:
    CheckpointError: the folder cannot be made or written, or another process
      holds it.
  """
  path = pathlib.Path(os.path.abspath(path))
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _unusable(path, error) from error
  if not locked:
    yield path
    return
  try:
    descriptor = os.open(path / 'lock', os.O_RDWR | os.O_CREAT, 0o666)
  except OSError as error:
    raise _unusable(path, error) from error
  try:
    _hold(descriptor, path)
    yield path
  finally:
    os.close(descriptor)


def holder(path: str | os.PathLike) -> str:
  """Who holds the folder, as its lock says it; '' where nobody does."""
  try:
    descriptor = os.open(pathlib.Path(path) / 'lock', os.O_RDWR)
  except OSError:
    # Whoever wants to use the folder will say what is wrong with it.
    return ''
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError:
    return _holder(descriptor)
  finally:
    os.close(descriptor)
  return ''


def has_begun(path: str | os.PathLike) -> bool:
  """Whether a run in this folder has left a row or a checkpoint.

  Raises:
    CheckpointError: the path cannot be looked at.
  """
  path = pathlib.Path(path)
  metrics, last = path / 'metrics.jsonl', path / 'checkpoints' / 'last'
  try:
    if metrics.exists() and metrics.stat().st_size:
      return True
    saved = last.iterdir() if last.exists() else ()
    return any(not entry.name.startswith('tmp-') for entry in saved)
  except OSError as error:
    raise _unusable(path, error) from error


def check_config(
  workdir: str | os.PathLike,
  config: dict[str, Any],
  *,
  allowed: Sequence[str] = (),
  write: bool = True,
) -> list[str]:
  """Compares the config with that of the run's first start.

  Args:
    workdir: folder of the run.
    config: nested dict of JSON values.
    allowed: dotted keys that may change between starts; an entry that ends in
      a dot stands for all keys below it ('mesh.').
    write: whether to write config.json: at the first start, and when allowed
      keys have changed. False in all processes of a run but 0.

  Returns:
    One sentence for each allowed key that has changed.

  Raises:
    ConfigError: another key has changed.
    CheckpointError: config.json is damaged, or cannot be read or written.
  """
  path = pathlib.Path(workdir) / 'config.json'
  now = json.loads(durable.dumps(config))
  before = _load(path)
  if before is None:
    if write:
      records.write_json(path, now)
    return []
  before, after = flatten(before), flatten(now)
  changes = [
    (key, before.get(key, _ABSENT), after.get(key, _ABSENT))
    for key in sorted(before.keys() | after.keys())
    if before.get(key, _ABSENT) != after.get(key, _ABSENT)
  ]
  refused = [change for change in changes if not matches(change[0], allowed)]
  if refused:
    raise errors.ConfigError(_refusal(path.parent, refused))
  if changes and write:
    records.write_json(path, now)
  return [
    f'{key} is now {new}; the run was started with {old}.'
    for key, old, new in changes
  ]


def _hold(descriptor, path):
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise errors.CheckpointError(
      f'{path} is in use by {_holder(descriptor)}\n'
      'Wait for it, stop it, or use another --workdir.'
    ) from error
  except OSError as error:
    raise _unusable(path, error) from error
  try:
    os.ftruncate(descriptor, 0)
    text = f'pid {os.getpid()} on host {socket.gethostname()}\n'
    os.pwrite(descriptor, text.encode(), 0)
  except OSError as error:
    raise _unusable(path, error) from error


def _holder(descriptor):
  text = os.pread(descriptor, 200, 0).decode(errors='replace').strip()
  return text or 'another process'


def _unusable(path, error):
  return errors.CheckpointError(
    f'cannot use {path} as the folder of a run: {durable.reason(error)}\n'
    'Give a --workdir that this user can make and write.'
  )


def _load(path):
  """Returns the stored config, or None at the first start."""
  try:
    config = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except OSError as error:
    raise _unusable(path.parent, error) from error
  except ValueError:
    config = None
  if not isinstance(config, dict):
    raise errors.CheckpointError(
      f'{path} is damaged\n'
      'Put an intact copy back. To write it anew from the present config, '
      'delete it: the settings of the earlier starts are then not checked.'
    )
  return config


def flatten(value: Any, prefix: str = '') -> dict[str, str]:
  """Dotted key -> JSON text, in which 1, 1.0 and true differ."""
  if isinstance(value, dict) and (value or not prefix):
    flat = {}
    for key, item in value.items():
      flat |= flatten(item, f'{prefix}.{key}' if prefix else key)
    return flat
  return {prefix: json.dumps(value)}


def matches(key: str, allowed: Sequence[str]) -> bool:
  """Whether a dotted key is one of these; see `check_config`."""
  return any(
    key.startswith(entry) if entry.endswith('.') else key == entry
    for entry in allowed
  )


def _refusal(workdir, refused):
  lines = [f'  {key}: {old} -> {new}' for key, old, new in refused[:3]]
  if len(refused) > 3:
    lines[-1] += f' (and {len(refused) - 3} more)'
  return '\n'.join(
    [
      f'the config is not that of the run in {workdir}:',
      *lines,
      'Use another --workdir, or restore the value.',
    ]
  )
