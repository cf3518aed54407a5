"""What each step of a recipe does to a model; see `recipe` and `pipeline`."""

import dataclasses
import functools

import jax
import numpy as np

from effformer import config as config_lib
from effformer.compress import (
  affine,
  awq,
  bottleneck,
  choices,
  depth,
  fold,
  halves,
  low_rank,
  places,
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
from effformer.compress.prune import masks, scores, sparsegpt, units
from effformer.pretrained import swap_mixers
from effformer.train import prediction, session, starting

# A training step warms up over this share of its steps.
_WARMUP = 0.1


def _drop(step, model, place) -> Compressed:
  config, params = depth.drop_layers(model.config, model.params, step.keep)
  return model._replace(config=config, params=params)


def _initial(model, place):
  """Config -> key -> parameters, of a model for the same task."""

  def initial(config):
    return places.task_of(model._replace(config=config), place.parent).init

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
    task = places.task_of(model, place.parent)
    rows = places.rows(task, model, step.batches)
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
    moments = places.moments(model, step.batches, place)
  config, params = low_rank.factorise(
    model.config, model.params, ranks, moments=moments
  )
  return model._replace(config=config, params=params)


def _prune(step, model, place) -> Compressed:
  found = units.of(model.config, model.params, step.units)
  score = places.unit_scores(step, model, place, found)
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
  moments = places.moments(model, step.batches, place)
  if step.method == 'gptq':
    return model._replace(params=sparsegpt.quantise(params, plan, moments))
  if step.method == 'awq':
    factors = awq.factors(model.config, params, moments, plan)
  else:
    factors = smooth.factors(model.config, params, moments)
  params, left = fold.fold(model.config, params, factors)
  return model._replace(params=tensors.quantise(params, plan, factors=left))


CARRY: dict[type, places.Carry] = {
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
  recipe.ChooseUnits: choices.choose_units,
  recipe.ChooseBits: choices.choose_bits,
}
