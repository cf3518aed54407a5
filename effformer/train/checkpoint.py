"""Checkpoints of a run: written whole or not at all, trusted only when proven.

Orbax writes the arrays into `tmp-<step>-<attempt>/state`, a manifest of hashes
follows (`manifest`), everything is forced to the disk, and one rename to
`<step, 8 digits>` is the commit. What a folder of checkpoints can hold:

  00000040     a committed checkpoint
  tmp-*        an unfinished save or removal; deleted at the next start
  damaged-*    a checkpoint that failed its manifest; never touched again

The list of checkpoints is read from the folder each time it is needed. With
several processes the folder is on a file system that all of them see, every
method is called by all of them, and process 0 alone renames and deletes.
"""

import itertools
import logging
import os
import pathlib
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from effformer import durable, errors
from effformer.train import manifest

_log = logging.getLogger(__name__)
_COMMITTED = re.compile(r'\d{8,}')
# Threads of a failed Orbax save may write on for a while, so that no two
# attempts of one process may share a folder.
_attempts = itertools.count(1)
_FINE, _DAMAGED, _FAILED = range(3)


class Restored(NamedTuple):
  """What a checkpoint held.

  Attributes:
    step: number of training steps done.
    state: pytree of arrays, with the shardings that were asked for.
    facts: the JSON values that were given to `save`.
  """

  step: int
  state: Any
  facts: dict[str, Any]


class Checkpoints:
  """The checkpoints in one folder."""

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int,
    announce: Callable[[str], None] = _log.warning,
  ):
    """Opens no file.

    Args:
      directory: made by the first `save` if need be.
      keep: number of newest checkpoints that `prune` leaves, at least 1.
      announce: is given one sentence whenever a checkpoint is set aside.
    """
    if keep < 1:
      raise ValueError(f'keep must be at least 1, not {keep}')
    self.directory = pathlib.Path(os.path.abspath(directory))
    for name in ('absl', 'asyncio'):
      logging.getLogger(name).addFilter(_is_news)
    _silence_stragglers()
    self._keep = keep
    self._announce = announce

  def steps(self) -> list[int]:
    """Returns the committed steps, ascending, as the folder shows them now."""
    return [int(path.name) for path in self._list() if _is_committed(path)]

  def save(
    self, step: int, state: Any, facts: dict[str, Any] | None = None
  ) -> None:
    """Commits the state, or leaves everything as it was.

    A step that is committed already is left as it is: state is a function of
    the step, and a signal may ask for the step that was saved last.

    Args:
      step: number of training steps done.
      state: pytree of jax.Array leaves (Orbax restores no NumPy scalars).
      facts: JSON values to keep with it, such as versions.

    Raises:
      CheckpointError: it could not be written, neither at once nor when tried
        again; the checkpoints before it are intact.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
      assert isinstance(leaf, jax.Array), f'{_name(path)} is a {type(leaf)}'
    try:
      self._attempt(step, state, facts or {})
    # Orbax and tensorstore report a full disk as ValueError, RuntimeError and
    # others, not only as OSError.
    except Exception:
      try:
        self._attempt(step, state, facts or {})
      except Exception as error:
        raise self._not_saved(step, error) from error

  def prune(self, keep_also: Iterable[int] = ()) -> None:
    """Deletes all but the newest ones and those of the steps in `keep_also`."""
    steps = self.steps()
    self._remove(set(steps[: -self._keep]) - set(keep_also))

  def discard_after(self, step: int) -> None:
    """Deletes the checkpoints of all later steps, and unfinished ones."""
    _together(self._delete_unfinished)
    self._remove(later for later in self.steps() if later > step)

  def restore_newest(self, like: Any) -> Restored | None:
    """Restores the newest checkpoint that is whole.

    A damaged one is announced and renamed to `damaged-<step>`, then the one
    before it is tried.

    Args:
      like: pytree of jax.ShapeDtypeStruct with shardings, on any mesh.

    Returns:
      None where no checkpoint was ever committed.

    Raises:
      CheckpointError: there were checkpoints but none is whole, now or at an
        earlier start; or the newest whole one is that of another model.
    """
    _together(self._delete_unfinished)
    for step in reversed(self.steps()):
      try:
        self._verify(step)
      except manifest.DamagedError as damage:
        self._set_aside(step, damage)
      else:
        return self._read(step, like)
    damaged = [path for path in self._list() if path.name.startswith('damaged')]
    if damaged:
      raise self._none_whole(damaged)
    return None

  def restore(self, step: int, like: Any) -> Restored:
    """Restores the checkpoint of this step; see `restore_newest` for `like`.

    Raises:
      CheckpointError: there is none, it is damaged, or of another model.
    """
    if step not in self.steps():
      raise errors.CheckpointError(
        f'no checkpoint of step {step} in {self.directory}; '
        f'there are: {self.steps()}'
      )
    try:
      self._verify(step)
    except manifest.DamagedError as damage:
      raise errors.CheckpointError(
        f'damaged checkpoint {self._path(step)}: {damage}\n'
        'Put an intact copy back, or use the checkpoint of another step: '
        f'{[other for other in self.steps() if other != step]}.'
      ) from damage
    return self._read(step, like)

  def _path(self, step):
    return self.directory / f'{step:08d}'

  def _list(self):
    try:
      return sorted(path for path in self.directory.iterdir() if path.is_dir())
    except FileNotFoundError:
      return []
    except OSError as error:
      raise _unusable(self.directory, error) from error

  def _attempt(self, step, state, facts):
    aside = self.directory / f'tmp-{step}-{next(_attempts)}'
    if step not in self.steps():
      try:
        _together(lambda: self._make_room(aside))
        with ocp.PyTreeCheckpointer() as checkpointer:
          checkpointer.save(aside / 'state', state)
        body = {'step': step, 'facts': facts, 'tree': _describe(state)}
        _together(lambda: self._commit(aside, body))
      except Exception:
        if jax.process_index() == 0:
          shutil.rmtree(aside, ignore_errors=True)
        raise
    _together(lambda: durable.sync(self.directory))

  def _make_room(self, aside):
    if aside.exists():
      shutil.rmtree(aside)
    aside.mkdir(parents=True)

  def _commit(self, aside, body):
    manifest.write(aside, body)
    os.rename(aside, self._path(body['step']))

  def _not_saved(self, step, error):
    steps = self.steps()
    since = (
      f'the run goes on from step {steps[-1]}' if steps else 'it starts anew'
    )
    return errors.CheckpointError(
      f'cannot save the checkpoint of step {step}: {durable.reason(error)}\n'
      f'  in {self.directory}\n'
      'Make room or make the folder writable, then give the same command '
      f'again: {since}.'
    )

  def _remove(self, steps):
    def remove():
      for step in sorted(steps, reverse=True):
        # Renamed first, so that a kill leaves no half checkpoint behind.
        aside = self.directory / f'tmp-{step}-removed'
        if aside.exists():
          shutil.rmtree(aside)
        os.rename(self._path(step), aside)
        shutil.rmtree(aside)

    try:
      _together(remove)
    except OSError as error:
      raise _unusable(self.directory, error) from error

  def _delete_unfinished(self):
    for path in self._list():
      if path.name.startswith('tmp-'):
        shutil.rmtree(path, ignore_errors=True)

  def _verify(self, step):
    def verify():
      body = manifest.verify(self._path(step))
      if body['step'] != step:
        raise manifest.DamagedError(f'it holds step {body["step"]}')

    try:
      _together(verify)
    except OSError as error:
      raise _unusable(self._path(step), error) from error

  def _set_aside(self, step, damage):
    def set_aside():
      target = self.directory / f'damaged-{step:08d}'
      number = 1
      while target.exists():
        number += 1
        target = target.with_name(f'damaged-{step:08d}-{number}')
      os.rename(self._path(step), target)
      durable.sync(self.directory)
      self._announce(
        f'The checkpoint of step {step} is damaged ({damage}); it is set aside '
        f'as {target} and the one before it is tried.'
      )

    try:
      _together(set_aside)
    except OSError as error:
      raise _unusable(self._path(step), error) from error

  def _none_whole(self, damaged):
    shown = [f'{path.name} ({_damage(path)})' for path in damaged[-4:]]
    if len(damaged) > 4:
      shown.append(f'and {len(damaged) - 4} more')
    return errors.CheckpointError(
      f'no checkpoint in {self.directory} is whole\n'
      f'  damaged: {", ".join(shown)}\n'
      'The run does not silently start again from step 0. Put an intact copy '
      'back under its number,\n'
      f'or, to start again on purpose, delete {self.directory}'
    )

  def _read(self, step, like):
    path = self._path(step)
    body = manifest.read(path)
    difference = _difference(body['tree'], _describe(like))
    if difference:
      raise errors.CheckpointError(
        f'{path} holds another model than the config describes:\n'
        f'{difference}\n'
        'Use the config of that run, or another --workdir.'
      )
    arguments = ocp.args.PyTreeRestore(
      item=like,
      restore_args=ocp.checkpoint_utils.construct_restore_args(like),
    )
    try:
      with ocp.PyTreeCheckpointer() as checkpointer:
        state = checkpointer.restore(path / 'state', args=arguments)
    except OSError as error:
      raise _unusable(path, error) from error
    assert jax.tree.structure(state) == jax.tree.structure(like)
    return Restored(step, state, body['facts'])


def _silence_stragglers() -> None:
  """Drops what the threads of a failed save say after it.

  They report by the hundred, through sys.unraisablehook, that the event loop
  of the save is closed, and warn of parts that were never begun; why it failed
  is in the error of the save itself.
  """
  warnings.filterwarnings('ignore', "coroutine 'async_serialize")
  before = sys.unraisablehook
  if getattr(before, 'silences_stragglers', False):
    return

  def hook(report):
    if repr(report.exc_value) != "RuntimeError('Event loop is closed')":
      before(report)

  hook.silences_stragglers = True
  sys.unraisablehook = hook


def _together(action: Callable[[], None]) -> None:
  """Calls `action` on process 0 and raises everywhere if it failed there.

  With several processes it is a barrier too.
  """
  failure, code = None, _FINE
  if jax.process_index() == 0:
    try:
      action()
    except Exception as error:
      is_damage = isinstance(error, manifest.DamagedError)
      failure, code = error, _DAMAGED if is_damage else _FAILED
  if jax.process_count() > 1:
    code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
  if failure:
    raise failure
  if code == _DAMAGED:
    raise manifest.DamagedError('found by process 0')
  if code == _FAILED:
    raise errors.CheckpointError('process 0 failed; its own message says why')


def _is_news(record):
  """Orbax logs errors that it also raises; asyncio, all but the first one."""
  if record.name == 'asyncio':
    return 'exception was never retrieved' not in record.getMessage()
  return not (record.exc_info and 'orbax' in record.pathname)


def _is_committed(path):
  return _COMMITTED.fullmatch(path.name) is not None


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _describe(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): f'{x.dtype}{list(x.shape)}' for path, x in leaves}


def _difference(stored, wanted):
  """Returns at most three lines, one for each leaf that differs, or ''."""
  lines = [
    f'  {name}: {stored.get(name, "nothing")} in the checkpoint, '
    f'{wanted.get(name, "nothing")} in the model'
    for name in sorted(stored.keys() | wanted.keys())
    if stored.get(name) != wanted.get(name)
  ]
  if len(lines) > 3:
    lines[2:] = [f'  and {len(lines) - 2} more']
  return '\n'.join(lines)


def _damage(path):
  try:
    manifest.verify(path)
  except (manifest.DamagedError, OSError) as error:
    return durable.reason(error)
  return 'whole: rename it to its number to use it again'


def _unusable(path, error):
  return errors.CheckpointError(
    f'cannot use {path}: {durable.reason(error)}\n'
    'Make the folder readable and writable for this user, then give the same '
    'command again.'
  )
