"""Self-pretraining: a stage before a run, whose trunk the run starts from.

The stage is a run of its own in the folder `pretrain` of the run: it is resumed
like any other, and the run begins when it is over. What is to be known of it
then stands in the run's pretrain.json, with a digest of the parameters that it
hands on.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections

from effformer import config as config_lib
from effformer import durable, errors, tasks
from effformer.tasks.task import Task
from effformer.train import (
  checkpoint,
  identity,
  preemption,
  records,
  runs,
  screen,
  setup,
  state,
  workdir,
)

# Parameters of these names stay as they were made.
_HEAD = 'head'
# Keys of `pretrain` that stand for those of `train`.
_OWN = ('num_steps', 'learning_rate', 'warmup_steps')


class Stage(NamedTuple):
  """The stage before a run."""

  config: ml_collections.ConfigDict
  task: Task
  program: setup.Program


def stage(
  config: ml_collections.ConfigDict, task: Task, program: setup.Program
) -> Stage | None:
  """The stage that a config asks for, if it fits the run."""
  if not config.pretrain.num_steps:
    return None
  own = stage_config(config)
  stage_task = tasks.pretraining(own, task)
  before = Stage(own, stage_task, setup.build(own, stage_task))
  check(program.abstract.params, before.program.abstract.params, config)
  return before


def pretrain(
  stage: Stage,
  folder: pathlib.Path,
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """Brings the stage to its end, where that is still to be done.

  Returns:
    What is to be known of it, as in the run's pretrain.json.
  """
  facts = durable.read_json(folder / workdir.PRETRAIN_FACTS)
  if workdir.has_begun(folder) and facts is not None:
    return facts
  config, path = stage.config, folder / workdir.PRETRAIN
  console.say(
    f'pretraining ({config.pretrain.objective}): '
    f'{config.train.num_steps:,} steps on the inputs of {stage.task.name}'
  )
  with runs.opened(config, str(path), console) as place:
    if facts is not None:
      # Done; only looked at, to see that config and data are the same.
      identity.check_data(place, stage.task.dataset)
      return facts
    run, current, _ = runs.advanced(
      config, stage.task, stage.program, place, stop, console
    )
    row, params = runs.selected(run, current)
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
    records.write_json(folder / workdir.PRETRAIN_FACTS, facts)
  console.say(f'pretraining is over; training on {stage.task.name} begins')
  return facts


def handed_on(
  stage: Stage,
  facts: dict[str, Any],
  program: setup.Program,
  folder: pathlib.Path,
  console: screen.Screen,
) -> setup.Program:
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
    return merged(program.first_state(), params)

  return program._replace(first_state=first_state)


def stage_config(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The config of the stage: that of the run, with `pretrain` for `train`."""
  # `select` says what the run is tested with. What the stage hands on is its
  # best step: it is kept by itself, while the last one leaves with the states.
  return config_lib.changed(
    config,
    {
      **{f'train.{key}': config.pretrain[key] for key in _OWN},
      'train.select': 'best',
    },
  )


def check(run: Any, stage: Any, config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError where the trunks of two models differ.

  Args:
    run, stage: parameters, or their shapes.
    config: of the run.
  """
  for path, leaf in _trunk(run):
    other = _find(stage, path)
    if other is None or other.shape != leaf.shape:
      name = '/'.join(path)
      raise errors.ConfigError(
        f'{config.mixer.name} has other parameters when it is pretrained with '
        f'pretrain.objective={config.pretrain.objective}: {name} is '
        f'{other and other.shape}, not {leaf.shape}.\n'
        'Use pretrain.objective=masked.'
      )


def merged(made: state.TrainState, stage_params: Any) -> state.TrainState:
  """A first state with the trunk of the stage; the head is as it was made."""

  def choose(path, leaf):
    names = tuple(key.key for key in path)
    if names[0].startswith(_HEAD):
      return leaf
    # Stage and run have one mesh, and the same rule for arrays of one shape.
    return jax.device_put(_find(stage_params, names), leaf.sharding)

  params = jax.tree_util.tree_map_with_path(choose, made.params)
  return made.replace(params=params)


def _trunk(params):
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = tuple(key.key for key in path)
    if not names[0].startswith(_HEAD):
      yield names, leaf


def _find(params, names):
  for name in names:
    if name not in params:
      return None
    params = params[name]
  return params
