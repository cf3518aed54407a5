"""A recipe, carried out: from a trained run to a compressed model.

Each step leaves its model in a folder of its own, written as a whole, and
training steps are runs like any other: what is interrupted goes on where it
was, and ends in the same bytes. The test split is not touched.

    FOLDER/recipe.json        the recipe, and a digest of the parent
    FOLDER/step_0_train/run   the run of a training step
    FOLDER/step_0_train       the model after it (`artefact`)
"""

import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import ml_collections

from effformer import config as config_lib
from effformer import data, durable, errors, tasks
from effformer.compress import (
  artefact,
  awq,
  calibrate,
  depth,
  fold,
  gptq,
  recipe,
  shrink,
  smooth,
  tensors,
)
from effformer.compress.artefact import Compressed
from effformer.compress.distill import maps, teaching
from effformer.compress.prune import masks, scores, units
from effformer.tasks.task import Task
from effformer.train import (
  prediction,
  preemption,
  screen,
  session,
  starting,
  state,
)

RECIPE = 'recipe.json'
# A training step warms up over this share of its steps.
_WARMUP = 0.1


class Parent(NamedTuple):
  """What is compressed.

  Attributes:
    model: its config is that of the run, with data and training.
    task: of the run.
  """

  model: Compressed
  task: Task


class _Place(NamedTuple):
  """What the steps share."""

  parent: Parent
  folder: pathlib.Path
  stop: preemption.Stop
  console: screen.Screen


def parent_of(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> Parent:
  """The trained model of a run folder, with the data of its config.

  Raises:
    ConfigError: the task has no classes, or its examples are no single rows.
    CheckpointError: the folder holds no evaluated run of this config.
  """
  _, params, _ = prediction.trained(config, path, stop, console)
  task = tasks.make(config)
  if task.predict is None or task.num_texts > 1:
    raise errors.ConfigError(
      f'task={config.task!r} cannot be compressed by a recipe: it takes models '
      'that give classes to single texts or images.'
    )
  params = jax.device_get(params)
  return Parent(
    Compressed(
      config,
      'classifier',
      task.model.vocabulary_size,
      task.dataset.num_classes,
      False,
      params,
      state.digest(params),
    ),
    task,
  )


def run(
  parent: Parent,
  steps: Sequence[recipe.Step],
  folder: str | pathlib.Path,
  stop: preemption.Stop,
  console: screen.Screen,
) -> Compressed:
  """The model after all steps, from where an earlier call stopped.

  Raises:
    ConfigError: a step does not fit the model.
    CheckpointError: the folder is of another recipe or parent, or cannot be
      written.
    Preempted: asked to stop.
  """
  folder = pathlib.Path(folder)
  steps = tuple(steps)
  recipe.check_order(steps)
  rows = [recipe.row_of(step) for step in steps]
  _bind(folder, rows, parent.model.parent_sha256)
  place = _Place(parent, folder, stop, console)
  current, kept = parent.model, tuple(range(len(parent.task.model.layers)))
  for number, step in enumerate(steps):
    own = folder / f'step_{number}_{recipe.name_of(step)}'
    if (own / artefact.MANIFEST).exists():
      current = artefact.load(own)
      console.say(f'step {number}, {recipe.name_of(step)}: done before')
    else:
      console.say(f'step {number}: {recipe.name_of(step)}')
      current = _DO[type(step)](step, current, kept, own, place)
      current = current._replace(steps=tuple(rows[: number + 1]))
      size = artefact.save(current, own)
      count = state.num_params(current.numbers)
      console.say(f'  {count:,} parameters, {size:,} bytes on disk')
    if isinstance(step, recipe.DropLayers):
      kept = tuple(kept[index] for index in step.keep)
  return current


def _bind(folder, rows, digest) -> None:
  """Binds the folder to recipe and parent, or refuses others."""
  text = durable.dumps({'steps': rows, 'parent_sha256': digest}, indent=2)
  # As JSON has them: lists for tuples.
  facts, known = json.loads(text), durable.read_json(folder / RECIPE)
  if known is None:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      durable.put(folder / RECIPE, text.encode())
    except OSError as error:
      raise durable.not_written(folder / RECIPE, error) from error
  elif known != facts:
    what = 'parent' if known.get('steps') == facts['steps'] else 'recipe'
    raise errors.CheckpointError(
      f'{folder} holds the steps of another {what}.\n'
      'Give the same one again, or another folder.'
    )


def _drop(step, model, kept, own, place) -> Compressed:
  del kept, own, place
  config, params = depth.drop_layers(model.config, model.params, step.keep)
  return model._replace(config=config, params=params)


def _prune(step, model, kept, own, place) -> Compressed:
  del kept, own
  found = units.of(model.config, model.params, step.units)
  if step.score == 'magnitude':
    score = scores.magnitude(model.params, found)
  elif step.score == 'random':
    key = jax.random.key(model.config.seed)
    score = scores.random(key, found)
  else:
    task = _task(model, place)

    def loss(params, batch):
      return task.measure(params, batch)['loss'].mean()

    measure = {'saliency': scores.saliency, 'taylor': scores.taylor}
    score = measure[step.score](
      loss, model.params, _batches(task, model.config, step.batches), found
    )
  if step.within == 'model':
    score = scores.normalised(score)
  chosen = masks.structured(score, step.ratio, step.within)
  config, params = shrink.shrink(model.config, model.params, chosen)
  return model._replace(config=config, params=params)


def _train(step, model, kept, own, place) -> Compressed:
  config = config_lib.changed(
    model.config,
    {
      'model.pretrained': '',
      'train.num_steps': step.steps,
      'train.learning_rate': step.learning_rate,
      'train.warmup_steps': round(_WARMUP * step.steps),
      'train.eval_every_steps': min(
        step.steps, model.config.train.eval_every_steps
      ),
    },
  )
  teacher, number = place.parent.task.model, len(kept)
  layers = maps.layer_map('kept', number, len(teacher.layers), kept)
  adapt = functools.partial(
    teaching.taught,
    teacher=teacher,
    params=place.parent.model.params,
    lesson=step.lesson,
    layers=layers,
  )
  path = str(own / 'run')
  start = starting.Start(model.params, 'the model before this step')
  session.train(
    config, path, place.stop, place.console, start=start, adapt=adapt
  )
  _, params, _ = prediction.trained(config, path, place.stop, place.console)
  return model._replace(params=jax.device_get(params))


def _round(step, model, kept, own, place) -> Compressed:
  del kept, own
  params = model.params
  plan = tensors.uniform_plan(params, step.grid, tables=step.table_grid)
  if step.method == 'nearest':
    return model._replace(params=tensors.quantise(params, plan))
  task = _task(model, place)
  moments = calibrate.collect(
    task.model,
    params,
    (
      (batch['ids_BT'], batch['lengths_B'])
      for batch in _batches(task, model.config, step.batches)
    ),
  )
  if step.method == 'gptq':
    return model._replace(params=gptq.quantise(params, plan, moments))
  if step.method == 'awq':
    factors = awq.factors(model.config, params, moments, plan)
  else:
    factors = smooth.factors(model.config, params, moments)
  params, left = fold.fold(model.config, params, factors)
  return model._replace(params=tensors.quantise(params, plan, factors=left))


_DO = {
  recipe.DropLayers: _drop,
  recipe.Prune: _prune,
  recipe.Train: _train,
  recipe.Round: _round,
}


def _task(model: Compressed, place: _Place) -> Task:
  """The task with the network of a step, on the data that are loaded."""
  return tasks.make(model.config, place.parent.task.dataset)


def _batches(task: Task, config, number: int) -> Iterator[data.Batch]:
  """The first batches of the train split, in the order of the seed."""
  for step in range(number):
    yield data.batch_at(
      task.dataset.splits['train'],
      task.encode,
      step,
      seed=config.seed,
      batch_size=config.train.eval_batch_size,
      max_length=config.data.max_length,
    )
