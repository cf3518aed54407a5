"""Steps that leave a choice to the policy: bits, and heads, columns, layers.

What was tried, and why the search stopped, is left in the folder of the step.
Losses are distances of outputs to those of the model before, on batches of the
train split that neither calibrate nor score units.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from scipy.special import rel_entr

from effformer import durable, errors
from effformer.compress import (
  bits,
  gptq,
  latency_table,
  outputs,
  places,
  policy,
  recipe,
  shrink,
  structure,
  tensors,
)
from effformer.compress.artefact import Compressed
from effformer.compress.places import Place
from effformer.compress.policy import Option
from effformer.compress.prune import masks as masks_lib
from effformer.compress.prune import units as units_lib

# What a policy tried.
SEARCH = 'search.json'
_FACTS = ('step', 'why', 'best', 'frontier', 'options')


def choose_bits(
  step: recipe.ChooseBits, model: Compressed, place: Place
) -> Compressed:
  """Codes of as many bits for each group as are best under the budget.

  Raises:
    ConfigError: no plan is within the budget.
  """
  params = model.params
  groups, grids = bits.groups(params), step.grids
  whole = 4 * sum(_size(params, paths) for paths in groups.values())
  fewest = bits.plan_of(
    groups, dict.fromkeys(groups, str(min(step.choices))), grids
  )
  # Nothing is measured for a budget that no plan reaches.
  least = bits.num_bytes(tensors.quantise(params, fewest))
  policy.check(least, step.budget * whole)
  quantise = tensors.quantise
  if step.method == 'gptq':
    moments = places.moments(model, step.batches, place)
    quantise = functools.partial(gptq.quantise, moments=moments)
  distance_of = _distances(step, model, place)

  def loss(rounded) -> float:
    return distance_of(model.config, tensors.dequantise(rounded))

  with place.console.heartbeat('measuring groups of matrices one by one'):
    options = bits.options(params, groups, grids, loss, quantise=quantise)

  def rounded(plan):
    return quantise(params, bits.plan_of(groups, plan, grids))

  found = _search(step, options, lambda plan: loss(rounded(plan)), whole, place)
  _write(step, options, found, place)
  return model._replace(params=rounded(found.best.plan))


def choose_units(
  step: recipe.ChooseUnits, model: Compressed, place: Place
) -> Compressed:
  """As many heads and columns in each layer as are best under the budget.

  Milliseconds of parts of layers are measured on this device once, and kept: a
  step that was interrupted, and the controls, go by the same ones.

  Raises:
    ConfigError: no plan is within the budget, or blocks take no time at all.
    CheckpointError: see `latency_table.table`.
  """
  config, params = model.config, model.params
  shares = dict.fromkeys(step.units, step.shares)
  found = structure.candidates(config, params, shares, none=step.drops_layers)
  units = units_lib.of(config, params, step.units)
  scores = places.unit_scores(step, model, place, units)
  network = places.task_of(model, place.parent).model
  with place.console.heartbeat('timing parts of layers, in turns'):
    costs = structure.costs(
      config,
      params,
      found,
      step.batch,
      network.num_tokens(step.length or config.data.max_length),
      place.times,
      measure=latency_table.measured,
    )
  # All units are the first candidate of a layer.
  whole = sum(next(iter(own.values())) for own in costs.values())
  if not whole:
    raise errors.ConfigError(
      'the blocks of this model take no longer than a program that does '
      'nothing, so there is no time to save.\nGive choose_units a larger batch.'
    )
  loss = _distances(step, model, place)
  with place.console.heartbeat('measuring layers one by one'):
    options = structure.options(config, params, found, scores, costs, loss)

  def measured(plan):
    masks = structure.masks_of(found, plan, scores)
    layers = {
      name: masks.pop(name)
      for name in list(masks)
      if units_lib.kind_of(name) == 'layer'
    }
    masked = masks_lib.apply(params, masks, units)
    if not layers:
      # The program that is compiled already.
      return loss(config, masked)
    return loss(*shrink.shrink(config, masked, layers))

  outcome = _search(step, options, measured, whole, place)
  plan = outcome.best.plan
  kept = [
    index
    for index, name in enumerate(structure.of_layers(config))
    if plan[name] != structure.NONE
  ]
  _write(step, options, outcome, place, kept=kept)
  masks = structure.masks_of(found, plan, scores)
  config, params = shrink.shrink(config, params, masks)
  return model._replace(config=config, params=params)


def kept_layers(
  folder: pathlib.Path, before: int, after: int
) -> tuple[int, ...]:
  """Layers that stayed in a `choose_units`, of those before it.

  Args:
    folder: of the step.
    before, after: how many layers the model had and has.

  Raises:
    CheckpointError: the file does not say, or it is that of another model.
  """
  kept = tried(folder).get('kept')
  is_row = isinstance(kept, list) and all(type(x) is int for x in kept)
  if not (is_row and len(kept) == after and _is_rising([-1, *kept, before])):
    which = f'which {after} of {before} layers were kept'
    raise _damaged(folder, f'does not say {which}')
  return tuple(kept)


def tried(folder: pathlib.Path) -> dict[str, Any]:
  """What a finished step in this folder left of its search.

  Raises:
    CheckpointError: the file is missing or damaged.
  """
  found = durable.read_json(folder / SEARCH)
  if found is None:
    raise _damaged(folder, 'is missing')
  for name in _FACTS:
    if name not in found:
      raise _damaged(folder, f'does not say {name!r} of the search')
  return found


def _is_rising(numbers):
  return all(np.diff(numbers) > 0)


def _damaged(folder, what):
  return errors.CheckpointError(
    f'{folder / SEARCH} {what}.\nPut an intact copy back, or '
    f'remove {folder} and the folders of the steps after it to choose again.'
  )


def distance(before: np.ndarray, after: np.ndarray) -> float:
  """Of outputs: mean KL of classes, in nats; of unit vectors 1 - cosine."""
  if before.ndim == 3:
    return float(1 - (before * after).sum(axis=-1).mean())
  return float(rel_entr(before, np.maximum(after, 1e-30)).sum(axis=-1).mean())


def _distances(
  step, model, place
) -> Callable[[ml_collections.ConfigDict, Any], float]:
  """(config, parameters) -> distance to the model, on batches of their own."""
  task = places.task_of(model, place.parent)
  batches = [
    *outputs.first_batches(task, model.config, step.batches, step.batches)
  ]
  own_run = outputs.function(model, task)

  def given(run, params):
    return np.concatenate([np.asarray(run(params, b)) for b in batches])

  before = given(own_run, model.params)

  def loss(config, params) -> float:
    if config is model.config:
      return distance(before, given(own_run, params))
    other = model._replace(config=config)
    run = outputs.function(other, places.task_of(other, place.parent))
    return distance(before, given(run, params))

  return loss


def _search(
  step: recipe.ChooseBits | recipe.ChooseUnits,
  options: Mapping[str, Sequence[Option]],
  loss: Callable[[dict[str, str]], float],
  whole: float,
  place: Place,
) -> policy.Outcome:
  """The best plan within the step's share of what the whole model costs."""
  with place.console.heartbeat('measuring whole plans'):
    found = policy.search(
      options,
      lambda plan: -loss(plan),
      step.budget * whole,
      floor=-step.tolerance if step.tolerance else -np.inf,
      max_trials=step.max_trials,
    )
  place.console.say(
    f'  {found.why}; its loss is {-found.best.score:.3g}, of '
    f'{found.best.cost / whole:.3g} of the {step.COST}'
  )
  return found


def _write(step, options, found, place, **more) -> None:
  facts = {
    'step': recipe.name_of(step),
    'why': found.why,
    'is_reached': found.is_reached,
    'best': found.best._asdict(),
    'frontier': [measured._asdict() for measured in found.frontier],
    'tried': [measured._asdict() for measured in found.tried],
    'options': {
      name: [option._asdict() for option in row]
      for name, row in options.items()
    },
    **more,
  }
  place.folder.mkdir(parents=True, exist_ok=True)
  durable.replace(
    place.folder / SEARCH, durable.dumps(facts, indent=1).encode()
  )


def _size(params, paths) -> int:
  """How many numbers stand at these paths."""
  flat = tensors.flatten(params)
  return sum(np.size(flat[path]) for path in paths)
