"""R3 from outside: a real process, a real signal, the same bytes after all."""

import random
import signal
import time

import pytest

from experiments import tiny

KEYS = {
  'train__num_steps': 400,
  'train__eval_every_steps': 100,
  'train__checkpoint_every_steps': 100,
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  tiny.write_data(folder)
  return folder


@pytest.fixture(scope='module')
def alone(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp('alone')
  process = tiny.start(tiny.command(folder, data, **KEYS))
  output, _ = process.communicate()
  assert process.returncode == 0, output
  return folder


def wait_for(process, words: str) -> None:
  for line in process.stdout:
    if words in line:
      return
  raise AssertionError(f'{words!r} was never printed')


def same_bytes(folder, alone) -> bool:
  return (
    tiny.result(folder)['state_sha256'] == tiny.result(alone)['state_sha256']
    and (folder / 'metrics.jsonl').read_bytes()
    == (alone / 'metrics.jsonl').read_bytes()
  )


def finish(folder, data) -> None:
  process = tiny.start(tiny.command(folder, data, **KEYS))
  output, _ = process.communicate()
  assert process.returncode == 0, output


@pytest.mark.slow
def test_a_signal_while_training_saves_that_step(data, alone, tmp_path):
  process = tiny.start(tiny.command(tmp_path, data, **KEYS))
  wait_for(process, 'step 100  validation')
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=30)
  assert process.returncode == 143, output
  assert 'stopped and saved at step' in output
  saved = int(output.split('saved at step ')[1].split()[0])
  assert (tmp_path / 'checkpoints' / 'last' / f'{saved:08d}').is_dir()
  finish(tmp_path, data)
  assert same_bytes(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
  'number',
  [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1],
  ids=lambda s: s.name,
)
def test_signals_at_random_times(data, alone, tmp_path, number):
  """Four a signal: imports, compilation, steps, saves, tests are all hit."""
  generator = random.Random(int(number))
  for trial in range(4):
    folder = tmp_path / str(trial)
    process = tiny.start(tiny.command(folder, data, **KEYS))
    time.sleep(generator.uniform(0.5, 12))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    # A signal before Python runs the handlers' first line kills, as always.
    assert process.returncode in (0, 143, -number), output
    if process.returncode != -number:
      assert 'Traceback' not in output
  for trial in (0, 3):
    finish(tmp_path / str(trial), data)
    assert same_bytes(tmp_path / str(trial), alone)
