"""What the modes share: a folder, its program, the state to go on from."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from effformer import config as config_lib
from effformer import errors, tasks
from effformer.tasks.task import Task
from effformer.train import (
  checkpoint,
  identity,
  introduction,
  loop,
  preemption,
  records,
  screen,
  setup,
  state,
  workdir,
)


@contextlib.contextmanager
def opened(
  config: ml_collections.ConfigDict,
  path: str,
  console: screen.Screen,
  *,
  must_exist: bool = False,
) -> Iterator[pathlib.Path]:
  """The run folder, locked, with a config that fits what it holds."""
  if must_exist and not workdir.has_begun(path):
    raise errors.CheckpointError(
      f'{path} holds no run.\n'
      'Give the --workdir of a run, or train one with --mode=train.'
    )
  with workdir.open_workdir(path, locked=jax.process_index() == 0) as folder:
    console.say(f'run folder: {folder}')
    # A start that never came to its first step binds nobody.
    if workdir.has_begun(folder):
      console.say(
        *workdir.check_config(
          folder,
          config_lib.to_json_dict(config),
          allowed=workdir.MAY_CHANGE,
          write=False,
        )
      )
    yield folder


def build(
  config: ml_collections.ConfigDict,
  console: screen.Screen,
  adapt: Callable[[Task], Task] | None = None,
) -> tuple[Task, setup.Program]:
  """Task and program, introduced on the screen.

  Args:
    config: the locked config.
    console: what people see.
    adapt: what is made of the task of the config; None for itself.

  Raises:
    ConfigError, DataError: they cannot be had.
  """
  # Before the data: what does not fit the devices must not wait for them.
  setup.check_devices(config)
  task = tasks.make(config)
  if adapt:
    task = adapt(task)
  _agree_on_data(task)
  program = setup.build(config, task)
  console.say(*introduction.lines(config, task, program))
  return task, program


def _agree_on_data(task: Task) -> None:
  """Raises DataError where the processes of a run have different data."""
  if jax.process_count() == 1:
    return
  here = identity.of_data(task.dataset)['sha256']
  number = np.frombuffer(bytes.fromhex(here), np.uint8)
  everywhere = multihost_utils.process_allgather(number)
  if not (everywhere == number[None]).all():
    raise errors.DataError(
      'the processes of this run have different data; this one has '
      f'{task.dataset.origin}.\n'
      'Prepare the same data on every host: python -m effformer.data prepare'
    )


def resume(
  config: ml_collections.ConfigDict,
  task: Task,
  program: setup.Program,
  folder: pathlib.Path,
  stop: preemption.Stop,
  console: screen.Screen,
  *,
  is_writer: bool = True,
) -> tuple[loop.Run, state.TrainState]:
  """A run on a folder and the state it goes on from.

  `train_step` and `eval_step` are not compiled yet. `is_writer` False leaves
  metrics.jsonl as it is.
  """
  last, best = (
    checkpoint.Checkpoints(
      folder / 'checkpoints' / name,
      keep=config.train.keep_checkpoints if name == 'last' else 1,
      announce=console.say,
    )
    for name in ('last', 'best')
  )
  restored = last.restore_newest(program.abstract)
  if restored:
    console.say(
      f'going on from step {restored.step}: {last.directory}',
      *identity.other_software(restored.facts),
    )
  else:
    console.say('starting from step 0: the run folder holds no checkpoint')
  metrics = records.Metrics(
    folder / 'metrics.jsonl',
    restored.step if restored else None,
    is_writer=is_writer and jax.process_index() == 0,
  )
  run = loop.Run(
    config=config,
    task=task,
    mesh=program.mesh,
    abstract=program.abstract,
    first_state=program.first_state,
    train_step=None,
    eval_step=None,
    last=last,
    best=best,
    metrics=metrics,
    board=records.TensorBoard(
      folder / 'tensorboard', restored.step if restored else 0
    ),
    stop=stop,
    screen=console,
    clock=screen.Clock(),
  )
  return run, restored.state if restored else program.first_state()


def advanced(
  config: ml_collections.ConfigDict,
  task: Task,
  program: setup.Program,
  folder: pathlib.Path,
  stop: preemption.Stop,
  console: screen.Screen,
) -> tuple[loop.Run, state.TrainState, dict[str, Any]]:
  """A run after its last step, its last state, and the cost of a step."""
  write_identity(folder, config, task)
  run, current = resume(config, task, program, folder, stop, console)
  # A best step beyond the restored state will come again.
  run.best.discard_after(int(current.step))
  steps = setup.compile_steps(
    program, console, run.clock, training=config.train.num_steps > 0
  )
  run.train_step, run.eval_step = steps.train, steps.evaluate
  run.frozen = program.frozen()
  with stop.loop():
    current = loop.train(run, current)
  return run, current, steps.cost


def selected(
  run: loop.Run, current: state.TrainState
) -> tuple[dict[str, Any], Any]:
  """The validation row and the parameters that `train.select` names."""
  row = loop.best_row(run)
  if run.config.train.select == 'last':
    row = run.metrics.rows('validation')[-1]
    if row['step'] == int(current.step):
      return row, current.params
  step = row['step']
  try:
    return row, run.best.restore(step, run.abstract.params).state
  except errors.CheckpointError as error:
    if step in run.last.steps():
      return row, run.last.restore(step, run.abstract).state.params
    raise errors.CheckpointError(
      f'the parameters of step {step}, which are to be tested, cannot be '
      f'read:\n{str(error).splitlines()[0]}\n'
      'Put an intact copy back, or train again with another --workdir.'
    ) from error


def require_evaluated(run: loop.Run, folder: pathlib.Path) -> None:
  """Raises CheckpointError where no step has been evaluated yet."""
  if not run.metrics.rows('validation'):
    raise errors.CheckpointError(
      f'{folder} holds no evaluated step.\n'
      'Train first: the same command with --mode=train.'
    )


def write_identity(
  folder: pathlib.Path, config: ml_collections.ConfigDict, task: Task
) -> None:
  """Binds the folder to config and data, or refuses other data."""
  identity.check_data(folder, task.dataset)
  if jax.process_index() == 0:
    identity.write_data(folder, task.dataset)
  write_config(folder, config)


def write_config(
  folder: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Makes the folder one of `config`."""
  if jax.process_index() == 0:
    records.write_json(folder / 'config.json', config_lib.to_json_dict(config))
