"""Where a step of a recipe is carried out, and what of the data it may see.

Batches are of the train split, in the order of the seed.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from effformer import tasks
from effformer.compress import calibrate, outputs, recipe
from effformer.compress.artefact import Compressed
from effformer.compress.prune import scores
from effformer.compress.prune.units import Units
from effformer.shapes import Array
from effformer.tasks.task import Task
from effformer.train import preemption, screen

_OF_LOSSES = {'saliency': scores.saliency, 'taylor': scores.taylor}


class Parent(NamedTuple):
  """What is compressed.

  Attributes:
    model: its config is that of the run, with data and training.
    task: of the run.
  """

  model: Compressed
  task: Task


class Place(NamedTuple):
  """Where a step is carried out.

  Attributes:
    parent: the teacher.
    steps: the whole recipe.
    stop: the signals.
    console: what people see.
    kept: layers of the parent that are left.
    folder: of the step.
    times: file of the milliseconds of parts, see `latency_table.table`.
  """

  parent: Parent
  steps: tuple[recipe.Step, ...]
  stop: preemption.Stop
  console: screen.Screen
  kept: tuple[int, ...]
  folder: pathlib.Path
  times: pathlib.Path


# The model after the step.
Carry = Callable[[recipe.Step, Compressed, Place], Compressed]


def task_of(model: Compressed, parent: Parent) -> Task:
  """The task with the network of a model, on the data that are loaded."""
  return tasks.make(model.config, parent.task.dataset)


def rows(
  task: Task, model: Compressed, number: int
) -> Iterator[tuple[Array, ...]]:
  """Inputs of so many batches."""
  for batch in outputs.first_batches(task, model.config, number):
    yield outputs.rows(task, batch)


def moments(
  model: Compressed, batches: int, place: Place
) -> dict[str, calibrate.Moments]:
  """Of the inputs of dense layers, on so many batches."""
  task = task_of(model, place.parent)
  return calibrate.collect(task.model, model.params, rows(task, model, batches))


def unit_scores(
  step: recipe.Prune | recipe.ChooseUnits,
  model: Compressed,
  place: Place,
  units: Units,
) -> dict[str, Array]:
  """Scores of units, by the rule that a step names."""
  if step.score == 'magnitude':
    return scores.magnitude(model.params, units)
  if step.score == 'random':
    return scores.random(jax.random.key(model.config.seed), units)
  task = task_of(model, place.parent)

  def loss(params, batch):
    return task.measure(params, batch)['loss'].mean()

  batches = outputs.first_batches(task, model.config, step.batches)
  return _OF_LOSSES[step.score](loss, model.params, batches, units)
