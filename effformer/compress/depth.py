"""Fewer layers: those that stay, numbered anew.

What a model loses can be small where it was trained to do without single
layers (LayerDrop, Fan et al. 2019, 1909.11556; `model.layer_drop`).
"""

from collections.abc import Sequence
from typing import Any

import ml_collections

from effformer import attention
from effformer import config as config_lib
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.models.block import LayerConfig

# Settings of mixers that follow from the model, whatever the layer's number.
_OF_MODEL = (
  *('num_heads', 'head_width', 'use_bias', 'dropout', 'rotary', 'max_length'),
)


def drop_layers(
  config: ml_collections.ConfigDict, params: Any, keep: Sequence[int]
) -> tuple[ml_collections.ConfigDict, Any]:
  """The model of some of its layers.

  Args:
    config: of the model.
    params: of the model.
    keep: numbers of the layers that stay, from 0, in order.

  Returns:
    Config, in which `model.layers` has the new numbers, and parameters. A share
    group stays as long as one of its layers does. In a hybrid each layer keeps
    its mechanism, whatever share of the layers the mechanism has then.

  Raises:
    ConfigError: see `kept`.
  """
  keep, layers = tuple(keep), build.layer_configs(config)
  smaller = kept(config, keep)
  blocks = _renamed(
    params['encoder'],
    encoder.layer_names(layers),
    encoder.layer_names([layers[index] for index in keep]),
    keep,
  )
  return smaller, {**params, 'encoder': blocks}


def kept(
  config: ml_collections.ConfigDict, keep: Sequence[int]
) -> ml_collections.ConfigDict:
  """The config of `drop_layers`.

  Raises:
    ConfigError: no such layers, not in order, or none; or fewer than a hybrid
      has members.
  """
  keep = tuple(keep)
  number = config.model.num_layers
  if not keep or any(index not in range(number) for index in keep):
    raise ConfigError(
      f'layers to keep are {list(keep)}, and the model has layers 0 to '
      f'{number - 1}.\nName at least one of them.'
    )
  if list(keep) != sorted(set(keep)):
    raise ConfigError(
      f'layers to keep are {list(keep)}: name each once, from the lowest up.'
    )
  members = config.mixer.name.split('+')
  if len(keep) < len(members):
    raise ConfigError(
      f'a hybrid of {len(members)} members ({config.mixer.name}) needs as many '
      f'layers, and {list(keep)} are to be kept.'
    )
  layers = build.layer_configs(config)
  rows = {}
  for new, old in enumerate(keep):
    row = dict(config.model.layers.get(str(old), {}))
    if len(members) > 1:
      row = _told(config, layers[old]) | row
    if row:
      rows[str(new)] = row
  values = {'model.num_layers': len(keep), 'model.layers': rows}
  return config_lib.changed(config, values)


def _renamed(blocks, names, new_names, keep):
  """Parameters of an encoder whose layers have new names."""
  rest = {name: x for name, x in blocks.items() if name not in names}
  kept = {
    new: blocks[names[old]] for new, old in zip(new_names, keep, strict=True)
  }
  return {**rest, **kept}


def _told(config, layer: LayerConfig):
  """The mechanism of a layer and its settings, none of them inherited."""
  settings = {k: v for k, v in layer.settings if k not in _OF_MODEL}
  defaults = attention.settings(layer.mixer)
  inherited = {k: defaults[k] for k in config.mixer if k in defaults}
  return {'mixer': layer.mixer, **inherited, **settings}
