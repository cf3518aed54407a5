"""What a run leaves for its readers: metrics.jsonl, JSON files, TensorBoard.

A row of metrics.jsonl is a function of the configuration and the step; times
and rates belong elsewhere, so that the file of a run that was killed ends in
the same bytes as that of a run that was not.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from effformer import durable, errors

_NON_FINITE = ('NaN', 'Infinity', '-Infinity')


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes the value as JSON in one step; raises CheckpointError."""
  durable.replace(path, (durable.dumps(value, indent=2) + '\n').encode())


def best(
  rows: Iterable[dict[str, Any]], key: str, *, is_lower_better: bool = False
) -> dict[str, Any] | None:
  """Returns the earliest row with the best `row[key]`; NaN never wins.

  None where no row has a comparable value.
  """
  winner = None
  for row in rows:
    value = row.get(key)
    if value is None or value != value:
      continue
    if winner is None or (
      value < winner[key] if is_lower_better else value > winner[key]
    ):
      winner = row
  return winner


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The whole rows of a metrics.jsonl; it may be absent, or being written.

  Raises:
    CheckpointError: the file cannot be read, or a row before others is damaged.
  """
  path = pathlib.Path(path)
  try:
    data = path.read_bytes() if path.exists() else b''
  except OSError as error:
    raise errors.CheckpointError(
      f'{path} cannot be read: {durable.reason(error)}'
    ) from error
  kept = _complete_rows(data, math.inf, path)
  return [_parse(line) for line in kept.splitlines()]


class Metrics:
  """The file metrics.jsonl: one JSON object a line, each row exactly once."""

  def __init__(
    self,
    path: str | os.PathLike,
    resume_step: int | None,
    *,
    is_writer: bool = True,
  ):
    """Opens the file and drops the rows that the run will write again.

    Args:
      path: made if it does not exist.
      resume_step: step of the checkpoint the run goes on from; the complete
        rows up to and including it stay. None: from the start, no row stays.
      is_writer: False in the processes of a run that write nothing (all but
        0): they read the rows that are there and keep their own in memory.

    Raises:
      CheckpointError: the file cannot be read or written, or a row up to
        `resume_step` is damaged.
    """
    self.path = pathlib.Path(path)
    self._descriptor = None
    kept, data = b'', b''
    try:
      if self.path.exists():
        data = self.path.read_bytes()
      if resume_step is not None:
        kept = _complete_rows(data, resume_step, self.path)
      if is_writer:
        if kept != data or not self.path.exists():
          durable.replace(self.path, kept)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
      raise durable.not_written(self.path, error) from error
    self._num_bytes = len(kept)
    self._rows = [_parse(line) for line in kept.splitlines()]

  def append(self, row: dict[str, Any]) -> None:
    """Adds a row; after an error the file is as it was before.

    Args:
      row: has 'step' (not below that of the last row) and 'split'; values are
        numbers, strings, or scalars of NumPy or JAX. Equal floats give equal
        bytes.

    Raises:
      CheckpointError: the disk is full or the file cannot be written.
    """
    if self._rows and row['step'] < self._rows[-1]['step']:
      raise ValueError(
        f'step {row["step"]} after step {self._rows[-1]["step"]}'
      )
    assert isinstance(row['split'], str)
    line = (durable.dumps(row) + '\n').encode()
    if self._descriptor is not None:
      self._write(line)
    self._rows.append(_parse(line))

  def flush(self) -> None:
    """Forces the rows to the disk; to be called before the checkpoint of the
    same step is saved, as rows up to a checkpoint are not written again."""
    if self._descriptor is None:
      return
    try:
      os.fsync(self._descriptor)
    except OSError as error:
      raise durable.not_written(self.path, error) from error

  def rows(self, split: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a split (None: all) so far, as they were written."""
    return [row for row in self._rows if split in (None, row['split'])]

  def close(self) -> None:
    if self._descriptor is not None:
      self.flush()
      os.close(self._descriptor)
      self._descriptor = None

  def _write(self, line):
    written = 0
    try:
      while written < len(line):
        written += os.write(self._descriptor, line[written:])
    except OSError as error:
      os.ftruncate(self._descriptor, self._num_bytes)
      raise durable.not_written(self.path, error) from error
    self._num_bytes += len(line)


class TensorBoard:
  """Scalars for TensorBoard, from process 0; files are made at the first one.

  Events are written at once by the caller: the queue behind tensorboardX's
  SummaryWriter blocks for ever when its thread has died of a full disk.
  """

  def __init__(self, directory: str | os.PathLike, resume_step: int):
    """Opens no file.

    Args:
      directory: made when needed; several runs may follow in one folder.
      resume_step: TensorBoard is told to forget all events after this step.
    """
    self._directory = pathlib.Path(directory)
    self._resume_step = resume_step
    self._writer = None

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes each value under its name; raises CheckpointError."""
    import jax
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    if jax.process_index() != 0:
      return
    try:
      writer = self._writer or self._open()
      for name, value in values.items():
        event = event_pb2.Event(wall_time=time.time(), step=step)
        event.summary.CopyFrom(summary.scalar(name, float(value)))
        writer.write_event(event)
      writer.flush()
    except OSError as error:
      raise durable.not_written(self._directory, error) from error

  def close(self) -> None:
    if self._writer:
      self._writer.close()

  def _open(self):
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    self._directory.mkdir(parents=True, exist_ok=True)
    # The name holds the time in seconds only, and opening would overwrite.
    self._writer = event_file_writer.EventsWriter(
      str(self._directory / 'events'), f'.{os.getpid()}.{self._resume_step}'
    )
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._writer.write_event(
      event_pb2.Event(
        wall_time=time.time(), step=self._resume_step + 1, session_log=start
      )
    )
    return self._writer


def _complete_rows(data, resume_step, path):
  """Returns the leading bytes of `data` with whole rows up to the step."""
  end, start, is_torn = 0, 0, 0
  for number, line in enumerate(data.splitlines(keepends=True), start=1):
    start += len(line)
    try:
      is_wanted = json.loads(line)['step'] <= resume_step
      is_whole = line.endswith(b'\n')
    except (ValueError, TypeError, KeyError):
      is_wanted = is_whole = False
    if not is_whole:
      is_torn = is_torn or number
    elif is_wanted and is_torn:
      raise errors.CheckpointError(
        f'{path}:{is_torn}: this row is damaged, and rows after it belong to '
        f'the checkpoint of step {resume_step}\n'
        'Mend or delete the line, then give the same command again.'
      )
    elif is_wanted:
      end = start
  return data[:end]


def _parse(line):
  row = json.loads(line)
  return {
    key: float(value)
    if isinstance(value, str) and value in _NON_FINITE
    else value
    for key, value in row.items()
  }
