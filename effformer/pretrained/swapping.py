"""Another attention in a pretrained model: what has a meaning there is kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import ml_collections
import numpy as np

from effformer import attention, errors
from effformer import config as config_lib
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.pretrained.model import Pretrained

# What a layer is whatever its mechanism.
_FACTS = (
  *('num_heads', 'head_width', 'mlp_width', 'mlp_rank', 'bottleneck'),
  *('activation', 'share'),
)


class Swapped(NamedTuple):
  """A model with another attention.

  Attributes:
    model: it; its parameters are those of the original where names and shapes
      agree, others are as they are first made.
    kept: paths of parameters of the layers in question that stayed.
    made: paths of those that are new.
    left: paths of those of the original that have no place any more.
  """

  model: Pretrained
  kept: tuple[str, ...]
  made: tuple[str, ...]
  left: tuple[str, ...]


def swap(
  model: Pretrained,
  mechanism: str,
  layers: Sequence[int] | None = None,
  *,
  settings: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> Swapped:
  """`swap_mixers` of a pretrained model."""

  def initial(config):
    return model._replace(config=config).initial

  config, params, *paths = swap_mixers(
    model.config,
    model.params,
    initial,
    mechanism,
    layers,
    settings=settings,
    causal=model.is_causal,
    seed=seed,
  )
  return Swapped(model._replace(config=config, params=params), *paths)


class Mixers(NamedTuple):
  """Config and parameters with another attention; see `Swapped`."""

  config: ml_collections.ConfigDict
  params: Any
  kept: tuple[str, ...]
  made: tuple[str, ...]
  left: tuple[str, ...]


def swap_mixers(
  config: ml_collections.ConfigDict,
  params: Any,
  initial: Callable[[ml_collections.ConfigDict], Callable[[jax.Array], Any]],
  mechanism: str,
  layers: Sequence[int] | None = None,
  *,
  settings: Mapping[str, Any] | None = None,
  causal: bool = False,
  seed: int = 0,
) -> Mixers:
  """Replaces the attention of some layers by another mechanism.

  Projections of queries, keys, values and outputs stay, biases with them; what
  the mechanism has beside them is made anew, so a model needs training to be
  of use again, unless the mechanism has softmax attention as a limit.

  Args:
    config, params: of the model.
    initial: config -> key -> parameters of such a model, as first made.
    mechanism: row of `attention.TABLE`.
    layers: numbers of the layers from 0; None for all.
    settings: of the mechanism, beside its defaults.
    causal: whether the model is.
    seed: of new parameters.

  Raises:
    ConfigError: see `swapped_config`; or the mechanism cannot be used in such a
      model.
  """
  number = config.model.num_layers
  chosen = sorted(set(range(number) if layers is None else layers))
  config = swapped_config(
    config, mechanism, layers, settings=settings, causal=causal
  )
  with errors.refused(refusal(mechanism)):
    made = _flat(jax.jit(initial(config))(jax.random.key(seed)))
  before = _flat(params)
  params = {
    path: before[path]
    if path in before and before[path].shape == x.shape
    else np.asarray(x)
    for path, x in made.items()
  }
  # Layers of a share group have one place.
  names = encoder.layer_names(build.layer_configs(config, causal=causal))
  places = tuple(f'encoder/{names[index]}/mixer/' for index in chosen)
  own = sorted(path for path in params if path.startswith(places))
  kept = tuple(path for path in own if params[path] is before.get(path))
  return Mixers(
    config,
    flax.traverse_util.unflatten_dict(params, sep='/'),
    kept,
    tuple(path for path in own if path not in kept),
    tuple(sorted(set(before) - set(kept) - (set(params) - set(own)))),
  )


def swapped_config(
  config: ml_collections.ConfigDict,
  mechanism: str,
  layers: Sequence[int] | None = None,
  *,
  settings: Mapping[str, Any] | None = None,
  causal: bool = False,
) -> ml_collections.ConfigDict:
  """The config of `swap_mixers`.

  Raises:
    ConfigError: no such mechanism, layer or setting; or the mechanism is not
      of the direction of the model.
  """
  settings = dict(settings or {})
  chosen = _checked(config, causal, mechanism, layers, settings)
  facts = {index: row.to_dict() for index, row in config.model.layers.items()}
  # Settings of the mechanism before mean nothing to this one.
  stays = {*_FACTS, *({'num_kv_heads'} & {*attention.settings(mechanism)})}
  for index in chosen:
    row = facts.get(str(index), {})
    row = {name: value for name, value in row.items() if name in stays}
    facts[str(index)] = {**row, 'mixer': mechanism, **settings}
  return config_lib.changed(config, {'model.layers': facts})


def refusal(mechanism: str) -> str:
  """The message that its sizes or settings do not fit."""
  return f'{mechanism} cannot take the place of the attention of this model'


def _flat(params):
  return flax.traverse_util.flatten_dict(params, sep='/')


def _checked(config, causal, mechanism, layers, settings):
  if mechanism not in attention.TABLE:
    raise ConfigError(
      f'no mechanism {mechanism!r}; there are {", ".join(attention.TABLE)}.'
    )
  supports = attention.TABLE[mechanism].supports
  direction = 'causal' if causal else 'bidirectional'
  if not getattr(supports, direction):
    raise ConfigError(
      f'{mechanism} is not {direction}, which the attention of this model is.'
    )
  known = attention.settings(mechanism)
  for name in settings:
    if name not in known:
      raise ConfigError(
        f'{mechanism} has no setting {name!r}; it has {", ".join(known)}.'
      )
  number = config.model.num_layers
  chosen = range(number) if layers is None else layers
  for index in chosen:
    if index not in range(number):
      raise ConfigError(
        f'there is no layer {index}: the model has layers 0 to {number - 1}.'
      )
  return sorted(set(chosen))
