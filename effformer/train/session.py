"""What one call of the program does: train, eval or dry_run."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections

from effformer import config as config_lib
from effformer import errors, tasks
from effformer.tasks.task import Task
from effformer.train import (
  checkpoint,
  loop,
  preemption,
  records,
  result,
  screen,
  setup,
  sharding,
  state,
  workdir,
)

# What may differ between the starts of one run: it changes how the run goes,
# never where it ends.
MAY_CHANGE = (
  'data.directory',
  'data.num_threads',
  'data.prefetch',
  'mesh.',
  'train.keep_checkpoints',
)


def dry_run(config: ml_collections.ConfigDict, console: screen.Screen) -> None:
  """Builds and compiles everything, trains nothing, writes no run folder."""
  task = tasks.make(config)
  program = setup.build(config, task)
  _introduce(config, task, program, console)
  setup.compile_train_step(program, console, screen.Clock())
  console.say('dry run: all is well; nothing was trained or written')


def train(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """Trains to the end, tests once, writes and returns result.json."""
  with _opened(config, path, console) as folder:
    done = _read_result(folder / 'result.json')
    if done is not None:
      console.say(f'{folder} holds a finished run; its result:')
      console.say(*result.lines(done))
      return done
    task = tasks.make(config)
    program = setup.build(config, task)
    _introduce(config, task, program, console)
    run, current = resume(config, task, program, folder, stop, console)
    # A best step beyond the restored state will come again.
    run.best.discard_after(int(current.step))
    run.train_step = setup.compile_train_step(program, console, run.clock)
    with stop.loop():
      current = loop.train(run, current)
      row, params = _selected(run, current)
      console.say(f'testing the parameters of step {row["step"]}')
      test = loop.evaluate(run, params, 'test')
    with console.heartbeat('measuring the floors'):
      floors = run.task.floors()
    outcome = result.make(run, current, row, test, floors)
    run.metrics.close()
    run.board.close()
    if jax.process_index() == 0:
      records.write_json(folder / 'result.json', outcome)
    console.say('', *result.lines(outcome), f'written to {folder}')
    return outcome


def evaluate(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """Scores the selected parameters of a run folder; writes eval.json."""
  if not (pathlib.Path(path) / 'config.json').exists():
    raise errors.CheckpointError(
      f'{path} holds no run to evaluate.\n'
      'Give the --workdir of a run, or train one with --mode=train.'
    )
  with _opened(config, path, console) as folder:
    task = tasks.make(config)
    program = setup.build(config, task)
    run, current = resume(config, task, program, folder, stop, console)
    if not run.metrics.rows('validation'):
      raise errors.CheckpointError(
        f'{folder} holds no evaluated step.\n'
        'Train first: the same command with --mode=train.'
      )
    with stop.loop():
      row, params = _selected(run, current)
      scores = {
        split: loop.evaluate(run, params, split)
        for split in ('validation', 'test')
      }
    outcome = {'step': row['step'], **scores}
    if jax.process_index() == 0:
      records.write_json(folder / 'eval.json', outcome)
    for split, score in scores.items():
      console.say(
        f'{split:<10} accuracy {100 * score["accuracy"]:.2f} of '
        f'{score["count"]}, loss {score["loss"]:.4f} (step {row["step"]})'
      )
    return outcome


@contextlib.contextmanager
def _opened(
  config: ml_collections.ConfigDict, path: str, console: screen.Screen
) -> Iterator[pathlib.Path]:
  """The run folder, locked, with a config that fits it."""
  is_first = jax.process_index() == 0
  with workdir.open_workdir(path, locked=is_first) as folder:
    changes = workdir.check_config(
      folder,
      config_lib.to_json_dict(config),
      allowed=MAY_CHANGE,
      write=is_first,
    )
    console.say(f'run folder: {folder}', *changes)
    yield folder


def resume(
  config: ml_collections.ConfigDict,
  task: Task,
  program: setup.Program,
  folder: pathlib.Path,
  stop: preemption.Stop,
  console: screen.Screen,
) -> tuple[loop.Run, state.TrainState]:
  """A run on a folder and the state it goes on from; nothing is deleted.

  `train_step` is None until somebody compiles it.
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
    console.say(f'going on from step {restored.step}: {last.directory}')
  else:
    console.say('starting from step 0: the run folder holds no checkpoint')
  metrics = records.Metrics(
    folder / 'metrics.jsonl',
    restored.step if restored else None,
    is_writer=jax.process_index() == 0,
  )
  run = loop.Run(
    config=config,
    task=task,
    mesh=program.mesh,
    abstract=program.abstract,
    first_state=program.first_state,
    train_step=None,
    eval_step=program.eval_step,
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


def _selected(run: loop.Run, current: state.TrainState):
  """The validation row and parameters that `train.select` names."""
  if run.config.train.select == 'last':
    rows = run.metrics.rows('validation')
    return rows[-1], current.params
  row = loop.best_row(run)
  abstract = run.abstract.params
  return row, run.best.restore(row['step'], abstract).state


def _read_result(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise errors.CheckpointError(
      f'{path} is damaged: {error}\n'
      'Delete it: the same command then tests the run again.'
    ) from error


def _introduce(
  config: ml_collections.ConfigDict,
  task: Task,
  program: setup.Program,
  console: screen.Screen,
) -> None:
  """Says what is about to run, on what, with what."""
  known = result.versions()
  dataset, train = task.dataset, config.train
  if dataset.stand_in:
    console.say(
      '*' * 78,
      'STAND-IN DATA: the real data set could not be had, so this run uses',
      f'generated examples. Its scores say nothing about {config.task}.',
      dataset.origin,
      '*' * 78,
    )
  size = len(dataset.splits['train'])
  shape = dict(zip(sharding.AXES, program.mesh.devices.shape, strict=True))
  per_device = train.batch_size // program.mesh.size
  console.say(
    ', '.join(f'{name} {version}' for name, version in known.items()),
    f'devices: {result.device()} in {jax.process_count()} process(es), '
    f'mesh {shape}',
    f'data: {dataset.origin}',
    *(f'  {note}' for note in dataset.notes),
    *(
      f'  {split:<10} {len(source):>7,} examples  sha256 '
      f'{dataset.fingerprints[split][:16]}'
      for split, source in dataset.splits.items()
    ),
    f'parameters of {config.mixer.name}:',
    *state.table(program.abstract.params),
    f'{train.num_steps:,} steps of {train.batch_size} = '
    f'{train.num_steps * train.batch_size / max(size, 1):.1f} epochs; '
    f'{per_device} rows per device and step'
    + (
      f' in {train.accumulate_steps} parts'
      if train.accumulate_steps > 1
      else ''
    ),
  )
  if not config.quick:
    console.say(
      'This is the full recipe. For one of minutes add `quick` to the config '
      'argument,',
      f'  for example --config=configs/lra_{config.task}.py:'
      f'{config.mixer.name},quick',
    )
