"""One process for a run folder, and one config."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from effformer import errors
from effformer.train import workdir

CONFIG = {
  'seed': 1,
  'train': {'learning_rate': 0.1, 'num_steps': 10, 'log_every_steps': 5},
  'mesh': {'data': -1, 'fsdp': 1},
  'mixer': {},
}

HOLDER = """
import sys, time
from effformer.train import workdir
with workdir.open_workdir(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


def changed(**keys):
  config = json.loads(json.dumps(CONFIG))
  for key, value in keys.items():
    *parents, last = key.split('__')
    place = config
    for parent in parents:
      place = place[parent]
    place[last] = value
  return config


@pytest.fixture
def holder(tmp_path, repository):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path / 'run')],
    cwd=repository,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, holder):
  path = tmp_path / 'run'
  with (
    pytest.raises(errors.CheckpointError) as caught,
    workdir.open_workdir(path),
  ):
    pytest.fail('two processes in one folder')
  message = str(caught.value)
  assert f'in use by pid {holder.pid} on host {socket.gethostname()}' in message
  assert str(path) in message
  with workdir.open_workdir(path, locked=False) as opened:
    assert opened == path
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with workdir.open_workdir(path):
    text = (path / 'lock').read_text()
    assert text == f'pid {os.getpid()} on host {socket.gethostname()}\n'
  with workdir.open_workdir(path):
    pass


def test_parents_are_made_and_the_path_is_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with workdir.open_workdir('a/b') as path:
    assert path == tmp_path / 'a' / 'b'
    assert path.is_dir()


@pytest.mark.parametrize('name', ['file', 'file/below'])
def test_a_file_in_the_way(tmp_path, name):
  (tmp_path / 'file').touch()
  with (
    pytest.raises(errors.CheckpointError) as caught,
    workdir.open_workdir(tmp_path / name),
  ):
    pytest.fail('a file is no folder')
  message = str(caught.value)
  assert str(tmp_path / name) in message
  assert '--workdir' in message
  assert caught.value.exit_code == 4


def test_a_folder_without_rights(tmp_path, monkeypatch):
  def refuse(*args):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(os, 'open', refuse)
  with (
    pytest.raises(errors.CheckpointError, match='Permission denied'),
    workdir.open_workdir(tmp_path),
  ):
    pytest.fail('no lock was taken')


def test_the_first_start_writes_the_config(tmp_path):
  assert workdir.check_config(tmp_path, CONFIG, write=False) == []
  assert list(tmp_path.iterdir()) == []
  assert workdir.check_config(tmp_path, CONFIG) == []
  assert json.loads((tmp_path / 'config.json').read_text()) == CONFIG
  assert workdir.check_config(tmp_path, CONFIG) == []


def test_what_json_does_not_know_is_no_change(tmp_path):
  config = {'betas': (0.9, 0.999), 'rate': np.float32(0.5), 'clip': np.inf}
  workdir.check_config(tmp_path, config)
  assert workdir.check_config(tmp_path, config) == []


ALLOWED = ('mesh.', 'train.log_every_steps', 'train.num')


def test_allowed_changes_are_told_and_stored(tmp_path):
  workdir.check_config(tmp_path, CONFIG)
  config = changed(mesh__fsdp=2, train__log_every_steps=7)
  told = [
    'mesh.fsdp is now 2; the run was started with 1.',
    'train.log_every_steps is now 7; the run was started with 5.',
  ]
  for write, expected in ((False, told), (True, told), (True, [])):
    found = workdir.check_config(tmp_path, config, allowed=ALLOWED, write=write)
    assert found == expected


@pytest.mark.parametrize(
  ('keys', 'line'),
  [
    ({'train__learning_rate': 0.2}, 'train.learning_rate: 0.1 -> 0.2'),
    ({'train__num_steps': 20}, 'train.num_steps: 10 -> 20'),
    ({'seed': True}, 'seed: 1 -> true'),
    ({'seed': 1.0}, 'seed: 1 -> 1.0'),
    ({'new': 'x'}, 'new: absent -> "x"'),
    ({'mixer': {'window': 3}}, 'mixer.window: absent -> 3'),
    ({'train': 3}, 'train: absent -> 3'),
  ],
)
def test_other_changes_are_refused(tmp_path, keys, line):
  workdir.check_config(tmp_path, CONFIG)
  before = (tmp_path / 'config.json').read_bytes()
  config = changed(mesh__fsdp=2, **keys)
  with pytest.raises(errors.ConfigError) as caught:
    workdir.check_config(tmp_path, config, allowed=ALLOWED)
  message = str(caught.value)
  assert f'  {line}' in message
  assert 'mesh.fsdp' not in message
  assert 'another --workdir' in message
  assert len(message.splitlines()) <= 5
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_long_diff_is_cut(tmp_path):
  workdir.check_config(tmp_path, CONFIG)
  config = changed(seed=2, train__learning_rate=1.0, train__num_steps=3, new=4)
  with pytest.raises(errors.ConfigError) as caught:
    workdir.check_config(tmp_path, config)
  assert '(and 1 more)' in str(caught.value)
  assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize('data', [b'', b'{"seed": 1', b'[]', b'\xff'])
def test_a_damaged_config_is_refused(tmp_path, data):
  (tmp_path / 'config.json').write_bytes(data)
  with pytest.raises(errors.CheckpointError, match=r'config\.json is damaged'):
    workdir.check_config(tmp_path, CONFIG)
  assert (tmp_path / 'config.json').read_bytes() == data
