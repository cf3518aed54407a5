"""--mode=profile: a trace is written, and nothing else is touched."""

import gzip
import json

import pytest

from effformer import errors, tasks
from effformer.train import profile
from tests.train.tiny_run import quiet_screen, tiny_config, tiny_task


@pytest.fixture(scope='module')
def config():
  return tiny_config(train__batch_size=8, train__eval_batch_size=8)


def test_traces_so_many_steps(config, tmp_path, monkeypatch):
  monkeypatch.setattr(tasks, 'make', tiny_task)
  (tmp_path / 'metrics.jsonl').write_text('a run stands here')
  console = quiet_screen()
  place = profile.profile(config, str(tmp_path), console)
  assert place == tmp_path / 'profile'
  (path,) = place.rglob('perfetto_trace.json.gz')
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  steps = [e for e in events if e.get('name') == 'train' and e['ph'] == 'X']
  assert len(steps) == profile.STEPS
  assert list(place.rglob('*.xplane.pb'))
  printed = console.console.file.getvalue()
  assert 'waiting for data' in printed
  assert str(place) in printed
  assert {p.name for p in tmp_path.iterdir()} == {
    *('metrics.jsonl', 'lock', 'profile')
  }
  assert (tmp_path / 'metrics.jsonl').read_text() == 'a run stands here'


def test_a_run_of_too_few_steps_is_refused(tmp_path):
  config = tiny_config(train__num_steps=3)
  with pytest.raises(errors.ConfigError, match='takes 7 steps'):
    profile.profile(config, str(tmp_path / 'run'), quiet_screen())
  assert not (tmp_path / 'run').exists()


def test_a_place_that_cannot_be_written_is_exit_4(
  config, tmp_path, monkeypatch
):
  monkeypatch.setattr(tasks, 'make', tiny_task)
  (tmp_path / 'profile').write_text('a file')
  with pytest.raises(errors.CheckpointError, match='no trace'):
    profile.profile(config, str(tmp_path), quiet_screen())
