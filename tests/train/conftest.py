"""A tiny run, built and compiled once for all tests of this room."""

import dataclasses
import pathlib
from types import SimpleNamespace

import jax
import pytest

from effformer.train import runs, setup
from tests.train.tiny_run import StopAt, quiet_screen, tiny_config, tiny_task


@pytest.fixture(scope='package')
def tiny() -> SimpleNamespace:
  """The parts of a tiny run; `compiled` is its training step."""
  config = tiny_config()
  task = tiny_task(config)
  program = setup.build(config, task, jax.devices()[:1])
  return SimpleNamespace(
    config=config,
    task=task,
    program=program,
    compiled=program.trace_train_step().lower().compile(),
    compiled_eval=program.lower_eval_step().compile(),
  )


@pytest.fixture
def start(tiny):
  """start(folder, stop) -> (run, state), as a new process would."""

  def start(folder: pathlib.Path, stop=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    console = quiet_screen()
    run, current = runs.resume(
      changes.get('config', tiny.config),
      changes.get('task', tiny.task),
      tiny.program,
      folder,
      stop or StopAt(),
      console,
    )
    run.best.discard_after(int(current.step))
    steps = {'train_step': tiny.compiled, 'eval_step': tiny.compiled_eval}
    return dataclasses.replace(run, **steps), current

  return start


@pytest.fixture
def printed():
  """printed(run) -> what the run has said."""
  return lambda run: run.screen.console.file.getvalue()
