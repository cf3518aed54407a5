"""How many heads, columns and layers for what: options for `policy`.

A group is a layer (or the layers that share parameters). Its candidates are all
combinations of so many heads and so many columns, and none of it. The cost of
one is what its parts take on this device (`latency_table`), its loss is
measured with that layer alone pruned.

    found = structure.candidates(config, params, {'mlp': (1, 0.5, 0.25)})
    costs = structure.costs(config, params, found, 1, 128, 'table.json')
    options = structure.options(config, params, found, scores, costs, loss)
    plan = policy.solve(options, budget)[0]
    masks = structure.masks_of(found, plan, scores)
    config, params = shrink.shrink(config, params, masks)
"""

import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from effformer.compress import latency_table, patterns, shrink
from effformer.compress.policy import Option
from effformer.compress.prune import masks as masks_lib
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.shapes import Array

KINDS = ('head', 'kv_group', 'mlp')
NONE = 'none'

# Place -> name of a candidate -> kind of unit -> how many of them stay.
Candidates = Mapping[str, Mapping[str, Mapping[str, int]]]
Costs = Mapping[str, Mapping[str, float]]
# (config, parameters) -> what they cost in quality, 0 being nothing.
Loss = Callable[[ml_collections.ConfigDict, Any], float]


def candidates(
  config: ml_collections.ConfigDict,
  params: Any,
  shares: Mapping[str, Sequence[float]],
  *,
  none: bool = False,
) -> dict[str, dict[str, dict[str, int]]]:
  """What each layer may become, {'encoder/layer_0': {'mlp 5': {'mlp': 5}}}.

  Args:
    config: of the model.
    params: of the model.
    shares: of `KINDS`, the shares of units that may stay, at least one unit
      each; 1 for all of them is always among them. Layers without units of a
      kind are as they are; those whose heads share keys and values have units
      of kind kv_group and none of kind head.
    none: whether a layer may leave.

  Raises:
    ConfigError: no such kind or share, or no units of the kind.
  """
  for kind, own in shares.items():
    if kind not in KINDS:
      raise ConfigError(
        f'no kind of unit {kind!r} to have shares of; there are '
        f'{", ".join(KINDS)}.'
      )
    for share in own:
      if not 0 < share <= 1:
        raise ConfigError(
          f'a share of {kind} is above 0 and at most 1, not {share}.'
        )
  units = _units(config, params)
  for kind in shares:
    if kind not in map(units_lib.kind_of, units):
      raise ConfigError(
        f'no layer of this model has units of kind {kind!r} that leave one by '
        'one.\nHeads that share keys and values leave as kv_group, those of '
        f'other mechanisms than {", ".join(units_lib.SEPARATE_HEADS)} not at '
        'all.'
      )
  found = {}
  for place in dict.fromkeys(of_layers(config)):
    choices = []
    for kind, own in shares.items():
      if f'{place}:{kind}' in units:
        (number,) = units[f'{place}:{kind}'].shape
        counts = {max(round(share * number), 1) for share in (1, *own)}
        choices.append([(kind, n) for n in sorted(counts, reverse=True)])
    rows = [dict(row) for row in itertools.product(*choices)]
    found[place] = {_name(row): row for row in rows}
    if none:
      found[place][NONE] = {'layer': 0}
  return found


def masks_of(
  candidates: Candidates,
  chosen: Mapping[str, str],
  scores: Mapping[str, Array],
) -> masks_lib.Masks:
  """The masks that a plan stands for: the units of the highest scores stay.

  `shrink.shrink` makes the smaller model of them.

  Args:
    candidates: from `candidates`.
    chosen: place -> name of its candidate; what is missing stays as it is.
    scores: of the units, see `prune.scores`.
  """
  masks = {}
  for place, name in chosen.items():
    for kind, count in candidates[place][name].items():
      if kind == 'layer':
        masks[f'{place}:layer'] = np.zeros(1, bool)
        continue
      own = np.asarray(scores[f'{place}:{kind}'])
      if count < own.size:
        masks[f'{place}:{kind}'] = np.asarray(patterns.highest(own, count))
  return masks


def costs(
  config: ml_collections.ConfigDict,
  params: Any,
  candidates: Candidates,
  batch: int,
  length: int,
  path: str | pathlib.Path,
  *,
  causal: bool = False,
  measure: latency_table.Measure = latency_table.measured,
) -> dict[str, dict[str, float]]:
  """Milliseconds of each candidate: place -> name -> what all its layers take.

  Args:
    config, params: of the model.
    candidates: from `candidates`.
    batch, length, causal: see `latency_table.parts`.
    path, measure: see `latency_table.table`.

  Raises:
    CheckpointError: see `latency_table.table`.
  """
  params = jax.device_get(params)
  # Only numbers of units matter.
  any_scores = {
    name: np.zeros(own.shape) for name, own in _units(config, params).items()
  }
  parts = {}
  for place, rows in candidates.items():
    numbers = [i for i, own in enumerate(of_layers(config)) if own == place]
    for name, row in rows.items():
      parts[place, name] = []
      if 'layer' in row:
        continue
      masks = masks_of(candidates, {place: name}, any_scores)
      own, _ = shrink.shrink(config, params, masks)
      timed = latency_table.parts(own, batch, length, causal=causal)
      parts[place, name] = sum((timed[i] for i in numbers), ())
  table = latency_table.table(
    itertools.chain(*parts.values()), path, measure=measure
  )
  return {
    place: {
      name: latency_table.predicted(parts[place, name], table) for name in rows
    }
    for place, rows in candidates.items()
  }


def options(
  config: ml_collections.ConfigDict,
  params: Any,
  candidates: Candidates,
  scores: Mapping[str, Array],
  costs: Costs,
  loss: Loss,
) -> dict[str, list[Option]]:
  """The options of every place, for `policy.search`.

  Units are masked, so that the config and the compiled program of `loss` stay
  the same; a layer that leaves is left out, by config. As many layers as a
  model has to have at least, those of the highest losses, do not get the option
  to leave.

  Args:
    config, params: of the model.
    candidates: from `candidates`.
    scores: of the units, see `prune.scores`.
    costs: from `costs`, or other ones.
    loss: of a model, on data that are not those of the test.
  """
  units = _units(config, params)
  whole, losses = loss(config, params), {}
  for place, rows in candidates.items():
    losses[place] = {}
    for name, row in rows.items():
      masks = masks_of(candidates, {place: name}, scores)
      if not masks:
        losses[place][name] = whole
      elif 'layer' in row:
        losses[place][name] = _without(config, params, place, loss)
      else:
        masked = masks_lib.apply(params, masks, units)
        losses[place][name] = loss(config, masked)
  stays = _that_stay(config, losses)
  return {
    place: [
      Option(name, costs[place][name], value)
      for name, value in own.items()
      if not (name == NONE and place in stays)
    ]
    for place, own in losses.items()
  }


def _without(config, params, place, loss):
  rest = config.model.num_layers - of_layers(config).count(place)
  if rest < _least(config):
    # It has to stay, whatever the loss.
    return np.inf
  masks = {f'{place}:layer': np.zeros(1, bool)}
  return loss(*shrink.shrink(config, params, masks))


def _that_stay(config, losses):
  """Places, the highest losses first, until they have layers enough."""
  ranked = sorted(
    losses, key=lambda place: losses[place].get(NONE, np.inf), reverse=True
  )
  numbers, found, count = of_layers(config), set(), 0
  for place in ranked:
    if count >= _least(config):
      break
    found.add(place)
    count += numbers.count(place)
  return found


def _least(config):
  """Layers that a model has at least: one of each member of a hybrid."""
  return len(config.mixer.name.split('+'))


def of_layers(config: ml_collections.ConfigDict) -> list[str]:
  """The place of each layer."""
  names = encoder.layer_names(build.layer_configs(config))
  return [f'encoder/{name}' for name in names]


def _units(config, params):
  """Units of `KINDS` by name; heads only where they leave one by one."""
  found = {}
  for place, own in units_lib.of_blocks(config, params).items():
    if own['kv_group'] is not None:
      own['head'] = None
    found |= {f'{place}:{kind}': own[kind] for kind in KINDS if own[kind]}
  return found


def _name(row):
  return ', '.join(f'{kind} {n}' for kind, n in row.items()) or 'whole'
