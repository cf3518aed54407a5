"""A recipe, carried out: from a trained run to a compressed model.

Each step leaves its model in a folder of its own, written as a whole, and
training steps are runs like any other: what is interrupted goes on where it
was, and ends in the same bytes. Nothing is chosen by the test split.

    FOLDER/recipe.json        the recipe, and a digest of the parent
    FOLDER/step_0_train/run   the run of a training step
    FOLDER/step_0_train       the model after it (`artefact`)
    FOLDER/latencies.json     milliseconds that a `choose_units` went by
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax
import ml_collections

from effformer import durable, errors, tasks
from effformer.compress import artefact, choices, recipe, steps, tensors
from effformer.compress.artefact import Compressed
from effformer.compress.places import Parent, Place
from effformer.models import classifier, embedder
from effformer.train import prediction, preemption, screen, state, workdir

TIMES = 'latencies.json'
_KINDS = {
  classifier.Classifier: 'classifier',
  classifier.PairClassifier: 'pair_classifier',
  embedder.Embedder: 'embedder',
}


def parent_of(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> Parent:
  """The trained model of a run folder, with the data of its config.

  Raises:
    ConfigError: the task has neither classes nor vectors of texts.
    CheckpointError: the folder holds no evaluated run of this config.
  """
  _, params, _ = prediction.trained(config, path, stop, console)
  task = tasks.make(config)
  kind = _KINDS.get(type(task.model))
  if kind is None:
    raise errors.ConfigError(
      f'task={config.task!r} cannot be compressed by a recipe.\n'
      'It takes models that give classes, or vectors of texts.'
    )
  # Of the data alone, and so the same after every step.
  task = dataclasses.replace(task, floors=functools.cache(task.floors))
  params = jax.device_get(params)
  return Parent(
    Compressed(
      config,
      kind,
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
  rows: Sequence[recipe.Step],
  folder: str | pathlib.Path,
  stop: preemption.Stop,
  console: screen.Screen,
  *,
  times: pathlib.Path | None = None,
) -> Compressed:
  """The model after all steps, from where an earlier call stopped.

  Args:
    parent: what is compressed.
    rows: the steps.
    folder: of this recipe and parent alone.
    stop: the signals.
    console: what people see.
    times: of parts of layers on this device, see `choices.choose_units`; None
      for a file in the folder. Recipes that are compared should share it.

  Raises:
    ConfigError: a step does not fit the model.
    CheckpointError: the folder is of another recipe or parent, or cannot be
      written.
    Preempted: asked to stop.
  """
  folder, rows = pathlib.Path(folder), tuple(rows)
  times = times or folder / TIMES
  recipe.check_order(rows)
  done = [recipe.row_of(step) for step in rows]
  _bind(folder, done, parent.model.parent_sha256)
  current, kept = parent.model, tuple(range(len(parent.task.model.layers)))
  for number, (step, own) in enumerate(
    zip(rows, folders(rows, folder), strict=True)
  ):
    if (own / artefact.MANIFEST).exists():
      current = artefact.load(own)
      console.say(f'step {number}, {recipe.name_of(step)}: done before')
    else:
      console.say(f'step {number}: {recipe.name_of(step)}')
      place = Place(parent, rows, stop, console, kept, own, times)
      current = steps.CARRY[type(step)](step, current, place)
      current = current._replace(steps=tuple(done[: number + 1]))
      size = artefact.save(current, own)
      count = state.num_params(tensors.dequantise(current.params))
      console.say(f'  {count:,} parameters, {size:,} bytes on disk')
    if isinstance(step, recipe.DropLayers):
      kept = tuple(kept[index] for index in step.keep)
    elif isinstance(step, recipe.ChooseUnits):
      sizes = len(kept), current.config.model.num_layers
      kept = tuple(kept[index] for index in choices.kept_layers(own, *sizes))
  return current


def folders(
  rows: Sequence[recipe.Step], folder: pathlib.Path
) -> Iterator[pathlib.Path]:
  """Where the model after each step is, in order."""
  for number, step in enumerate(rows):
    yield folder / f'step_{number}_{recipe.name_of(step)}'


def _bind(folder, rows, digest) -> None:
  """Binds the folder to recipe and parent, or refuses others."""
  text = durable.dumps({'steps': rows, 'parent_sha256': digest}, indent=2)
  # As JSON has them: lists for tuples.
  facts, known = json.loads(text), durable.read_json(folder / workdir.RECIPE)
  if known is None:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      durable.put(folder / workdir.RECIPE, text.encode())
    except OSError as error:
      raise durable.not_written(folder / workdir.RECIPE, error) from error
  elif known != facts:
    what = 'parent' if known.get('steps') == facts['steps'] else 'recipe'
    raise errors.CheckpointError(
      f'{folder} holds the steps of another {what}.\n'
      'Give the same one again, or another folder.'
    )
