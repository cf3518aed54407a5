"""metrics.jsonl across kills, atomic JSON, TensorBoard events, best row."""

import errno
import json
import os

import numpy as np
import pytest

from effformer import durable, errors
from effformer.train import records


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'metrics.jsonl'


def row(step, split='train', **values):
  return {'step': step, 'split': split, **values}


def write(path, rows, resume_step=None):
  metrics = records.Metrics(path, resume_step)
  for each in rows:
    metrics.append(each)
  metrics.close()
  return path.read_bytes()


def test_a_killed_run_leaves_the_bytes_of_one_that_was_not(path, tmp_path):
  rows = [row(step, loss=1 / step) for step in range(1, 9)]
  rows.insert(4, row(4, 'validation', accuracy=0.5))
  whole = write(tmp_path / 'whole.jsonl', rows)
  # The checkpoint of step 4 is the last; the kill came within step 7.
  write(path, rows[:7])
  with open(path, 'ab') as file:
    file.write(b'{"step": 7, "split": "tr')
  assert write(path, rows[5:], resume_step=4) == whole
  assert whole.splitlines()[0] == b'{"step": 1, "split": "train", "loss": 1.0}'


@pytest.mark.parametrize('resume_step', [None, -1])
def test_a_fresh_start_keeps_no_row(path, resume_step):
  write(path, [row(0, loss=1.0), row(1, loss=2.0)])
  assert write(path, [row(0, loss=3.0)], resume_step) == (
    b'{"step": 0, "split": "train", "loss": 3.0}\n'
  )


def test_a_last_line_without_its_newline_is_torn(path):
  data = write(path, [row(1, loss=1.0), row(2, loss=2.0)])
  path.write_bytes(data[:-1])
  assert write(path, [], resume_step=2) == data.splitlines(keepends=True)[0]


def test_damage_among_rows_that_count_is_refused(path):
  data = write(path, [row(1, loss=1.0), row(2, loss=2.0), row(3, loss=3.0)])
  path.write_bytes(data.replace(b'"step": 2', b'"step\x00: 2'))
  with pytest.raises(errors.CheckpointError, match=r'metrics\.jsonl:2: '):
    records.Metrics(path, 3)
  assert b'\x00' in path.read_bytes()
  assert write(path, [], resume_step=1) == data.splitlines(keepends=True)[0]


def test_rows_come_back(path):
  metrics = records.Metrics(path, None)
  metrics.append(row(1, loss=float('nan'), top=float('-inf')))
  metrics.append(row(1, 'validation', loss=np.float32(0.1), count=np.int64(3)))
  first, second = metrics.rows()
  assert np.isnan(first['loss'])
  assert first['top'] == -np.inf
  assert metrics.rows('validation') == [second]
  assert second == row(1, 'validation', loss=float(np.float32(0.1)), count=3)
  for line in path.read_text().splitlines():
    json.loads(line, parse_constant=pytest.fail)
  metrics.close()


def test_steps_do_not_go_back(path):
  write(path, [row(5, loss=1.0)])
  metrics = records.Metrics(path, 5)
  for step in (5, 6):
    with pytest.raises(ValueError, match=f'step 4 after step {step}'):
      metrics.append(row(4, loss=1.0))
    metrics.append(row(6, 'validation', loss=1.0))
  metrics.close()


def test_a_full_disk_leaves_whole_rows_and_a_second_try(path, monkeypatch):
  metrics = records.Metrics(path, None)
  metrics.append(row(1, loss=1.0))
  room, real_write = [10], os.write

  def write_some(descriptor, data):
    if not room[0]:
      raise OSError(errno.ENOSPC, 'No space left on device')
    done = real_write(descriptor, data[: room[0]])
    room[0] -= done
    return done

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', write_some)
    with pytest.raises(errors.CheckpointError, match='No space left') as caught:
      metrics.append(row(2, loss=2.0))
  assert str(path) in str(caught.value)
  assert metrics.rows() == [row(1, loss=1.0)]
  metrics.append(row(2, loss=2.0))
  assert metrics.rows() == [row(1, loss=1.0), row(2, loss=2.0)]
  metrics.close()


def test_flush_reaches_the_disk_or_says_so(path, monkeypatch):
  metrics = records.Metrics(path, None)

  def fail(descriptor):
    raise OSError(errno.EIO, 'Input/output error')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', fail)
    with pytest.raises(errors.CheckpointError, match='Input/output error'):
      metrics.flush()
  metrics.close()


def test_a_path_that_cannot_be_written(tmp_path):
  with pytest.raises(errors.CheckpointError, match=r'none/metrics\.jsonl'):
    records.Metrics(tmp_path / 'none' / 'metrics.jsonl', None)


def test_write_json_is_all_or_nothing(tmp_path, monkeypatch):
  path = tmp_path / 'result.json'
  records.write_json(path, {'accuracy': np.float64(0.5), 'loss': float('inf')})
  before = path.read_bytes()
  assert json.loads(before) == {'accuracy': 0.5, 'loss': 'Infinity'}

  def fail(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  for name in ('fsync', 'rename'):
    with monkeypatch.context() as patch:
      patch.setattr(os, name, fail)
      with pytest.raises(errors.CheckpointError, match='No space left'):
        records.write_json(path, {'accuracy': 1.0})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0.1, '0.1'),
    (float('nan'), '"NaN"'),
    (float('inf'), '"Infinity"'),
    (-float('inf'), '"-Infinity"'),
    (np.float32(0.1), '0.10000000149011612'),
    (True, 'true'),
    ((1, {'a': None}), '[1, {"a": null}]'),
  ],
)
def test_dumps(value, text):
  assert durable.dumps(value) == text


def test_best_is_the_earliest_highest():
  rows = [row(1, a=0.5), row(2), row(3, a=float('nan')), row(4, a=0.7)]
  rows.append(row(5, a=0.7))
  assert records.best(rows, 'a')['step'] == 4
  assert records.best(rows[::-1], 'a')['step'] == 5
  assert records.best(rows[1:3], 'a') is None


def test_best_is_the_lowest_where_it_is_to_be():
  rows = [{'a': value} for value in (3, float('nan'), 1, 1, 2)]
  assert records.best(rows, 'a', is_lower_better=True) is rows[2]


def read_events(folder):
  """Yields the events of all files, each record with a frame of 16 bytes."""
  from tensorboardX.proto import event_pb2

  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      yield event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]


def test_tensorboard_forgets_what_is_written_again(tmp_path):
  folder = tmp_path / 'events'
  unused = records.TensorBoard(folder, 0)
  unused.close()
  assert not folder.exists()
  for resume_step in (0, 4):
    board = records.TensorBoard(folder, resume_step)
    board.write(resume_step + 3, {'loss': 0.5})
    board.close()
  events = list(read_events(folder))
  scalars = [
    (event.step, value.tag, value.simple_value)
    for event in events
    for value in event.summary.value
  ]
  assert scalars == [(3, 'loss', 0.5), (7, 'loss', 0.5)]
  starts = [event.step for event in events if event.session_log.status == 1]
  assert starts == [1, 5]


def test_tensorboard_on_a_file(tmp_path):
  (tmp_path / 'events').touch()
  board = records.TensorBoard(tmp_path / 'events', 0)
  with pytest.raises(errors.CheckpointError, match='events'):
    board.write(1, {'loss': 0.5})


def test_a_process_that_does_not_write_sees_the_same_rows(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  writer = records.Metrics(path, None)
  for step in (1, 2, 3):
    writer.append({'step': step, 'split': 'train', 'loss': step / 3})
  before = path.read_bytes()
  reader = records.Metrics(path, 2, is_writer=False)
  assert reader.rows() == writer.rows()[:2]
  reader.append({'step': 3, 'split': 'train', 'loss': float('nan')})
  reader.flush()
  reader.close()
  assert len(reader.rows()) == 3
  assert path.read_bytes() == before
