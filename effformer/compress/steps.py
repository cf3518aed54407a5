"""What each step of a recipe does to a model; see `recipe` and `pipeline`."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import rel_entr

from effformer import config as config_lib
from effformer import durable, tasks
from effformer.compress import (
  affine,
  awq,
  bits,
  bottleneck,
  calibrate,
  depth,
  fold,
  gptq,
  halves,
  low_rank,
  outputs,
  policy,
  qat,
  recipe,
  share,
  shrink,
  simplify,
  smooth,
  split,
  tensors,
)
from effformer.compress.artefact import Compressed
from effformer.compress.distill import maps, teaching
from effformer.compress.prune import masks, scores, units
from effformer.pretrained import swap_mixers
from effformer.tasks.task import Task
from effformer.train import prediction, preemption, screen, session, starting

# What a policy tried, in the folder of its step.
SEARCH = 'search.json'
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


class Place(NamedTuple):
  """Where a step is carried out.

  Attributes:
    parent: the teacher.
    steps: the whole recipe.
    stop: the signals.
    console: what people see.
    kept: layers of the parent that are left.
    folder: of the step.
  """

  parent: Parent
  steps: tuple[recipe.Step, ...]
  stop: preemption.Stop
  console: screen.Screen
  kept: tuple[int, ...]
  folder: pathlib.Path


# The model after the step.
Carry = Callable[[recipe.Step, Compressed, Place], Compressed]


def task_of(model: Compressed, parent: Parent) -> Task:
  """The task with the network of a model, on the data that are loaded."""
  return tasks.make(model.config, parent.task.dataset)


def _drop(step, model, place) -> Compressed:
  config, params = depth.drop_layers(model.config, model.params, step.keep)
  return model._replace(config=config, params=params)


def _initial(model, place):
  """Config -> key -> parameters, of a model for the same task."""

  def initial(config):
    return task_of(model._replace(config=config), place.parent).init

  return initial


def _swap(step, model, place) -> Compressed:
  swapped = swap_mixers(
    model.config,
    model.params,
    _initial(model, place),
    step.mechanism,
    step.layers or None,
    settings=step.settings,
    seed=model.config.seed,
  )
  place.console.say(
    f'  {len(swapped.kept)} parameters of attention stay, {len(swapped.made)} '
    f'are new, {len(swapped.left)} leave'
  )
  return model._replace(config=swapped.config, params=swapped.params)


def _bottleneck(step, model, place) -> Compressed:
  config, params = bottleneck.narrow(
    model.config,
    model.params,
    step.width,
    _initial(model, place),
    step.layers or None,
    mlp_width=step.mlp_width,
    seed=model.config.seed,
  )
  return model._replace(config=config, params=params)


def _share(step, model, place) -> Compressed:
  alike_LL = share.similarity(model.config, model.params)
  groups = share.groups_of(alike_LL, step.number)
  config, params = share.tie(model.config, model.params, groups)
  return model._replace(config=config, params=params)


def _simplify(step, model, place) -> Compressed:
  config, params, lines = model.config, model.params, None
  if step.norm == 'affine':
    task = task_of(model, place.parent)
    rows = _rows(task, model, step.batches)
    lines = affine.fit(task.model, params, rows)
  if step.norm:
    config, params = simplify.swap_norm(config, params, step.norm, lines)
  if step.activation:
    config, params = simplify.swap_activation(config, params, step.activation)
  return model._replace(config=config, params=params)


def _factorise(step, model, place) -> Compressed:
  flat, ranks = tensors.flatten(model.params), {}
  for path, x in flat.items():
    if path.endswith('/mlp/in/kernel') and 'mlp' in step.parts:
      part = path.removesuffix('/in/kernel')
      ranks[part] = low_rank.rank_for(*x.shape, step.share)
  if 'embedding' in step.parts:
    # Without a table, which is then refused in words.
    table_YD = flat.get(low_rank.TABLE, np.zeros((1, 1)))
    ranks[low_rank.EMBEDDING] = low_rank.rank_for(*table_YD.shape, step.share)
  moments = None
  if 'mlp' in step.parts:
    moments = _moments(model, step.batches, place)
  config, params = low_rank.factorise(
    model.config, model.params, ranks, moments=moments
  )
  return model._replace(config=config, params=params)


def _prune(step, model, place) -> Compressed:
  found = units.of(model.config, model.params, step.units)
  if step.score == 'magnitude':
    score = scores.magnitude(model.params, found)
  elif step.score == 'random':
    key = jax.random.key(model.config.seed)
    score = scores.random(key, found)
  else:
    task = task_of(model, place.parent)

    def loss(params, batch):
      return task.measure(params, batch)['loss'].mean()

    measure = {'saliency': scores.saliency, 'taylor': scores.taylor}
    batches = outputs.first_batches(task, model.config, step.batches)
    score = measure[step.score](loss, model.params, batches, found)
  if step.within == 'model':
    score = scores.normalised(score)
  chosen = masks.structured(score, step.ratio, step.within)
  config, params = shrink.shrink(model.config, model.params, chosen)
  return model._replace(config=config, params=params)


def _train(step, model, place) -> Compressed:
  config = config_lib.changed(
    model.config,
    {
      # It begins with the model, and nothing comes before that.
      'model.pretrained': '',
      'pretrain.num_steps': 0,
      'train.num_steps': step.steps,
      # Of 'rsqrt' the rate is a factor, and no peak.
      'train.schedule': 'cosine',
      'train.learning_rate': step.learning_rate,
      'train.warmup_steps': round(_WARMUP * step.steps),
      'train.eval_every_steps': min(
        step.steps, model.config.train.eval_every_steps
      ),
    },
  )
  teacher = place.parent.task.model
  layers = maps.layer_map(
    'kept', len(place.kept), len(teacher.layers), place.kept
  )
  floors, params = place.parent.task.floors, place.parent.model.params
  has_params = functools.partial(halves.doubled, params=model.params)

  def adapt(task):
    task = teaching.taught(task, teacher, params, step.lesson, layers)
    task = has_params(task)
    if step.rounded:
      task = qat.rounded(task, _plan(model.params, place.steps))
    return dataclasses.replace(task, floors=floors)

  path = str(place.folder / 'run')
  start = starting.Start(model.params, 'the model before this step')
  whom = place.stop, place.console
  session.train(config, path, *whom, start=start, adapt=adapt)
  _, trained, _ = prediction.trained(config, path, *whom, adapt=has_params)
  return model._replace(params=jax.device_get(trained))


def _split(step, model, place) -> Compressed:
  params = halves.of(model.params, _plan(model.params, place.steps))
  return model._replace(params=params)


def _plan(params, steps: tuple[recipe.Step, ...]) -> tensors.Plan:
  """What the parameters are to be: as at the end, before a split ternary."""
  last = steps[-1]
  is_before = halves.OTHER not in params and recipe.has_split(steps)
  grid = split.ternary(last.grid) if is_before else last.grid
  return tensors.uniform_plan(params, grid, tables=last.table_grid)


def _round(step, model, place) -> Compressed:
  params = model.params
  model = model._replace(activations=step.activations)
  plan = tensors.uniform_plan(params, step.grid, tables=step.table_grid)
  if step.method == 'nearest':
    return model._replace(params=tensors.quantise(params, plan))
  moments = _moments(model, step.batches, place)
  if step.method == 'gptq':
    return model._replace(params=gptq.quantise(params, plan, moments))
  if step.method == 'awq':
    factors = awq.factors(model.config, params, moments, plan)
  else:
    factors = smooth.factors(model.config, params, moments)
  params, left = fold.fold(model.config, params, factors)
  return model._replace(params=tensors.quantise(params, plan, factors=left))


def _moments(model, batches, place):
  task = task_of(model, place.parent)
  rows = _rows(task, model, batches)
  return calibrate.collect(task.model, model.params, rows)


def _rows(task, model, number):
  for batch in outputs.first_batches(task, model.config, number):
    yield outputs.rows(task, batch)


def _choose_bits(step, model, place) -> Compressed:
  params, task = model.params, task_of(model, place.parent)
  if step.method == 'gptq':
    moments = _moments(model, step.batches, place)
    quantise = functools.partial(gptq.quantise, moments=moments)
  else:
    quantise = tensors.quantise
  # Others than those that calibrate.
  batches = [
    *outputs.first_batches(task, model.config, step.batches, step.batches)
  ]
  run = outputs.function(model, task)
  before = np.concatenate([np.asarray(run(params, b)) for b in batches])

  def loss(rounded) -> float:
    numbers = tensors.dequantise(rounded)
    after = np.concatenate([np.asarray(run(numbers, b)) for b in batches])
    return distance(before, after)

  groups, grids = bits.groups(params), step.grids
  number = sum(_size(params, paths) for paths in groups.values())
  with place.console.heartbeat('measuring groups of matrices one by one'):
    options = bits.options(params, groups, grids, loss, quantise=quantise)

  def rounded(plan):
    return quantise(params, bits.plan_of(groups, plan, grids))

  with place.console.heartbeat('measuring whole plans'):
    found = policy.search(
      options,
      lambda plan: -loss(rounded(plan)),
      step.budget * 4 * number,
      floor=-step.tolerance if step.tolerance else -np.inf,
      max_trials=step.max_trials,
    )
  place.console.say(
    f'  {found.why}; its loss is {-found.best.score:.3g}, of '
    f'{step.budget:.3g} of the bytes'
  )
  facts = {
    'why': found.why,
    'is_reached': found.is_reached,
    'best': found.best._asdict(),
    'frontier': [measured._asdict() for measured in found.frontier],
    'tried': [measured._asdict() for measured in found.tried],
    'options': {
      name: [option._asdict() for option in row]
      for name, row in options.items()
    },
  }
  place.folder.mkdir(parents=True, exist_ok=True)
  durable.replace(
    place.folder / SEARCH, durable.dumps(facts, indent=1).encode()
  )
  return model._replace(params=rounded(found.best.plan))


def _size(params, paths) -> int:
  """How many numbers stand at these paths."""
  flat = tensors.flatten(params)
  return sum(np.size(flat[path]) for path in paths)


def distance(before: np.ndarray, after: np.ndarray) -> float:
  """Of outputs: mean KL of classes, in nats; of unit vectors 1 - cosine."""
  if before.ndim == 3:
    return float(1 - (before * after).sum(axis=-1).mean())
  return float(rel_entr(before, np.maximum(after, 1e-30)).sum(axis=-1).mean())


CARRY: dict[type, Carry] = {
  recipe.DropLayers: _drop,
  recipe.Swap: _swap,
  recipe.Bottleneck: _bottleneck,
  recipe.Share: _share,
  recipe.Simplify: _simplify,
  recipe.Prune: _prune,
  recipe.Factorise: _factorise,
  recipe.Train: _train,
  recipe.Split: _split,
  recipe.Round: _round,
  recipe.ChooseBits: _choose_bits,
}
