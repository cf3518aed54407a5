"""What one call of the program does: train, eval or dry_run.

Beside it: `prediction` and `profile`.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from effformer import config as config_lib
from effformer import errors, tasks
from effformer.tasks.task import Task
from effformer.train import (
  checkpoint,
  durable,
  identity,
  introduction,
  loop,
  preemption,
  pretraining,
  records,
  result,
  screen,
  setup,
  state,
  workdir,
)


def dry_run(config: ml_collections.ConfigDict, console: screen.Screen) -> None:
  """Builds and compiles everything, trains nothing, writes no run folder."""
  task, program = build(config, console)
  if stage := _stage(config, task, program):
    console.say('the stage before it:')
    setup.compile_steps(stage.program, console, screen.Clock())
    console.say('the run:')
  setup.compile_steps(program, console, screen.Clock())
  console.say('dry run: all is well; nothing was trained, no run was written')


def train(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """Trains to the end, tests once, writes and returns result.json."""
  with opened(config, path, console) as folder:
    done = result.read(folder / 'result.json')
    if done is not None:
      console.say(f'{folder} holds a finished run; its result:')
      console.say(*result.lines(done))
      return done
    task, program = build(config, console)
    if stage := _stage(config, task, program):
      # A start that never came to its first step binds nobody.
      _write_config(folder, config)
      facts = _pretrain(stage, folder, stop, console)
      program = _after(stage, facts, program, folder, console)
    run, current, cost = _advanced(config, task, program, folder, stop, console)
    with stop.loop():
      row, params = selected(run, current)
      console.say(f'testing the parameters of step {row["step"]}')
      test = loop.evaluate(run, params, 'test')
      stop.agree(config.train.num_steps)
    with console.heartbeat('measuring the floors'):
      floors = run.task.floors()
    outcome = result.make(run, current, row, test, floors, cost)
    if stage:
      outcome['pretrain'] = facts
    run.metrics.close()
    run.board.close()
    if jax.process_index() == 0:
      records.write_json(folder / 'result.json', outcome)
    console.say('', *result.lines(outcome), f'written to {folder}')
    return outcome


def _advanced(config, task, program, folder, stop, console):
  """A run after its last step, its last state, and the cost of a step."""
  _write_identity(folder, config, task)
  run, current = resume(config, task, program, folder, stop, console)
  # A best step beyond the restored state will come again.
  run.best.discard_after(int(current.step))
  steps = setup.compile_steps(program, console, run.clock)
  run.train_step, run.eval_step = steps.train, steps.evaluate
  with stop.loop():
    current = loop.train(run, current)
  return run, current, steps.cost


class _Stage(NamedTuple):
  """The stage before a run."""

  config: ml_collections.ConfigDict
  task: Task
  program: setup.Program


def _stage(config, task, program) -> _Stage | None:
  """The stage that a config asks for, if it fits the run."""
  if not config.pretrain.num_steps:
    return None
  own = pretraining.stage_config(config)
  stage_task = tasks.pretraining(own, task)
  stage = _Stage(own, stage_task, setup.build(own, stage_task))
  pretraining.check(
    program.abstract.params, stage.program.abstract.params, config
  )
  return stage


def _pretrain(stage, folder, stop, console) -> dict[str, Any]:
  """Brings the stage to its end, where that is still to be done.

  Returns:
    What is to be known of it, as in the run's pretrain.json.
  """
  facts = durable.read_json(folder / 'pretrain.json')
  if workdir.has_begun(folder) and facts is not None:
    return facts
  config, path = stage.config, folder / workdir.PRETRAIN
  console.say(
    f'pretraining ({config.pretrain.objective}): '
    f'{config.train.num_steps:,} steps on the inputs of {stage.task.name}'
  )
  with opened(config, str(path), console) as place:
    if facts is not None:
      # Done; only looked at, to see that config and data are the same.
      identity.check_data(place, stage.task.dataset)
      return facts
    run, current, _ = _advanced(
      config, stage.task, stage.program, place, stop, console
    )
    row, params = selected(run, current)
    digest = state.digest(params)
    run.metrics.close()
    run.board.close()
  facts = {
    'objective': config.pretrain.objective,
    'num_steps': config.train.num_steps,
    'validation': row,
    'params_sha256': digest,
  }
  if jax.process_index() == 0:
    records.write_json(folder / 'pretrain.json', facts)
  console.say(f'pretraining is over; training on {stage.task.name} begins')
  return facts


def _after(stage, facts, program, folder, console) -> setup.Program:
  """The program, whose first state has the trunk that the stage hands on."""

  def first_state():
    step = facts['validation']['step']
    best = checkpoint.Checkpoints(
      folder / workdir.PRETRAIN / 'checkpoints' / 'best', keep=1
    )
    abstract = stage.program.abstract.params
    params = best.restore(step, abstract).state
    if state.digest(params) != facts['params_sha256']:
      raise errors.CheckpointError(
        f'the pretrained parameters in {best.directory} are not those that '
        'this run began with.\nPut them back, or train again with another '
        '--workdir.'
      )
    console.say(f'starting from the pretrained parameters of step {step}')
    return pretraining.merged(program.first_state(), params)

  return program._replace(first_state=first_state)


def evaluate(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """Scores a run folder: validation and, once it is finished, test.

  Writes eval.json; a checkpoint that proves damaged is set aside, nothing
  else is changed.
  """
  with opened(config, path, console, must_exist=True) as folder:
    task, program = build(config, console)
    run, current = resume(
      config, task, program, folder, stop, console, is_writer=False
    )
    require_evaluated(run, folder)
    run.eval_step = setup.compile_steps(
      program, console, run.clock, training=False
    ).evaluate
    # The test split is for the end of a run.
    is_finished = int(current.step) == config.train.num_steps
    splits = ('validation', 'test') if is_finished else ('validation',)
    with stop.loop():
      row, params = selected(run, current)
      scores = {split: loop.evaluate(run, params, split) for split in splits}
      stop.agree(config.train.num_steps)
    outcome = {'step': row['step'], **scores}
    if is_finished:
      with console.heartbeat('measuring the floors'):
        outcome['floors'] = run.task.floors()
    if jax.process_index() == 0:
      records.write_json(folder / 'eval.json', outcome)
    for split, score in scores.items():
      console.say(
        f'{split:<10} accuracy {100 * score["accuracy"]:.2f} of '
        f'{score["count"]}, loss {score["loss"]:.4f}'
        + (f', {score["bits"]:.4f} bits a token' if 'bits' in score else '')
        + f' (step {row["step"]})'
      )
    for name, accuracy in outcome.get('floors', {}).items():
      console.say(f'{"floor":<10} accuracy {100 * accuracy:.2f}  {name}')
    return outcome


def require_evaluated(run: loop.Run, folder: pathlib.Path) -> None:
  """Raises CheckpointError where no step has been evaluated yet."""
  if not run.metrics.rows('validation'):
    raise errors.CheckpointError(
      f'{folder} holds no evaluated step.\n'
      'Train first: the same command with --mode=train.'
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
  config: ml_collections.ConfigDict, console: screen.Screen
) -> tuple[Task, setup.Program]:
  """Task and program, introduced on the screen.

  Raises:
    ConfigError, DataError: they cannot be had.
  """
  # Before the data: what does not fit the devices must not wait for them.
  setup.check_devices(config)
  task = tasks.make(config)
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


def _write_identity(
  folder: pathlib.Path, config: ml_collections.ConfigDict, task: Task
) -> None:
  """Binds the folder to config and data, or refuses other data."""
  identity.check_data(folder, task.dataset)
  if jax.process_index() == 0:
    identity.write_data(folder, task.dataset)
  _write_config(folder, config)


def _write_config(folder, config):
  if jax.process_index() == 0:
    records.write_json(folder / 'config.json', config_lib.to_json_dict(config))


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
