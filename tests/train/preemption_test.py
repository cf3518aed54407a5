"""Signals in every phase, each in a process of its own."""

import signal
import subprocess
import sys

import pytest

from effformer import errors
from effformer.train import preemption

PROGRAM = """
import sys
from effformer.train import preemption
assert not {'jax', 'numpy'} & set(sys.modules)
import os, signal, time
from effformer import errors
number = getattr(signal, sys.argv[2])

def send():
  os.kill(os.getpid(), number)

def setup(stop):
  send()
  print('not reached')

def loop(stop):
  with stop.loop():
    for step in range(9):
      if step == 3:
        assert not stop.requested
        send()
        # With other threads about, a signal need not be at home at once.
        while not stop.requested:
          time.sleep(0.001)
      if stop.agree(step):
        print('saved', step)
        break
  print('not reached')

def second(stop):
  with stop.loop():
    send()
    print('saving', flush=True)
    send()
    time.sleep(60)

def second_in_setup(stop):
  try:
    send()
  finally:
    send()
    print('not reached')

def after_the_loop(stop):
  with stop.loop():
    pass
  send()
  print('not reached')

def failing_in_the_loop(stop):
  with stop.loop():
    send()
    raise ValueError('a bug')

class Dying:
  def __del__(self):
    send()

def inside_a_callback(stop):
  dying = Dying()
  del dying
  print('goes on')
  loop(stop)

stop = preemption.Stop()
stop.install()
try:
  globals()[sys.argv[1]](stop)
except errors.Preempted as error:
  print('preempted', error)
  sys.exit(error.exit_code)
"""

SECOND = '{0} after {0}: leaving at once.\n'


def run(repository, case, name):
  return subprocess.run(
    [sys.executable, '-c', PROGRAM, case, name],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGUSR1'])
@pytest.mark.parametrize(
  ('case', 'output', 'message'),
  [
    ('setup', 'preempted {0}\n', ''),
    ('second', 'saving\n', SECOND),
  ],
)
def test_each_signal(repository, case, output, message, name):
  done = run(repository, case, name)
  assert done.stdout == output.format(name)
  assert done.stderr == message.format(name)
  assert done.returncode == 143


@pytest.mark.parametrize(
  ('case', 'output', 'message'),
  [
    ('loop', 'saved 3\npreempted SIGTERM\n', ''),
    ('inside_a_callback', 'goes on\nsaved 0\npreempted SIGTERM\n', ''),
    ('second_in_setup', '', SECOND.format('SIGTERM')),
    ('after_the_loop', 'preempted SIGTERM\n', ''),
  ],
)
def test_each_phase(repository, case, output, message):
  done = run(repository, case, 'SIGTERM')
  assert (done.stdout, done.stderr) == (output, message)
  assert done.returncode == 143


def test_a_failure_in_the_loop_is_not_hidden(repository):
  done = run(repository, 'failing_in_the_loop', 'SIGTERM')
  assert done.returncode == 1
  assert 'ValueError: a bug' in done.stderr


def test_handlers_are_given_back():
  before = [signal.getsignal(number) for number in preemption.SIGNALS]
  hook = sys.unraisablehook
  stop = preemption.Stop()
  stop.install()
  stop.install()
  within = [signal.getsignal(number) for number in preemption.SIGNALS]
  stop.uninstall()
  after = [signal.getsignal(number) for number in preemption.SIGNALS]
  assert after == before
  assert sys.unraisablehook == hook
  assert not set(within) & set(before)


def test_nothing_requested_nothing_raised():
  stop = preemption.Stop()
  with stop.loop():
    assert not stop.agree(1)
  assert not stop.requested


def test_a_stop_is_no_exception_that_handlers_catch():
  assert not issubclass(errors.Preempted, Exception)
