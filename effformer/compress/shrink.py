"""From masks to a smaller model: what leaves is no longer there.

The smaller model gives what the masked one gives, from arrays of fewer numbers;
its config says in `model.layers` how many heads and columns each layer has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import ml_collections
import numpy as np

from effformer import config as config_lib
from effformer.compress import depth, tensors
from effformer.compress.prune import units as units_lib
from effformer.compress.prune.units import kind_of
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.shapes import Array

_KINDS = ('head', 'kv_group', 'mlp', 'layer')


def shrink(
  config: ml_collections.ConfigDict, params: Any, masks: Mapping[str, Array]
) -> tuple[ml_collections.ConfigDict, Any]:
  """The model without the heads, groups, columns and layers that leave.

  Args:
    config: of the model.
    params: of the model, masked or not.
    masks: {name: bool}, see `prune.units`; of a share group one, for all its
      layers.

  Raises:
    ConfigError: masks that do not fit the model, that leave a layer without
      heads or columns or the model without layers, or of single weights or
      vectors; groups that would share keys and values among unequal numbers of
      heads.
  """
  kinds = {kind_of(name) for name in masks}
  for kind in sorted(kinds - set(_KINDS)):
    raise ConfigError(
      f'masks of kind {kind!r} make no array smaller here: single weights stay '
      'zeros (masks.apply), vectors leave by shrink_vocabulary.'
    )
  units = units_lib.of(config, params, sorted(kinds)) if kinds else {}
  units_lib.check(masks, units)
  masks = {name: np.asarray(mask, bool) for name, mask in masks.items()}
  flat = dict(tensors.flatten(params))
  layers = build.layer_configs(config)
  names = encoder.layer_names(layers)
  rows = {index: row.to_dict() for index, row in config.model.layers.items()}
  for name, layer in dict(zip(names, layers, strict=True)).items():
    facts = _shrink_block(flat, f'encoder/{name}', layer, config, masks)
    for index, own in enumerate(names):
      if own == name and facts:
        rows[str(index)] = {**rows.get(str(index), {}), **facts}
  config = config_lib.changed(config, {'model.layers': rows})
  params = flax.traverse_util.unflatten_dict(flat, sep='/')
  keep = [
    index
    for index, name in enumerate(names)
    if masks.get(f'encoder/{name}:layer', np.ones(1, bool))[0]
  ]
  if len(keep) < len(names):
    config, params = depth.drop_layers(config, params, keep)
  return config, params


def shrink_vocabulary(
  params: Any, keep_ids: Sequence[int] | Array
) -> tuple[Any, np.ndarray]:
  """The model of some of its ids.

  Its vocabulary size is the number of these. What a head has of each token
  (tied or not) leaves with the token.

  Args:
    params: of the model.
    keep_ids: ids that stay; their order is kept as it was.

  Returns:
    Parameters, and new_id_Y int32: the new id of each old one, -1 for those
    that left.

  Raises:
    ConfigError: no such ids, none, or one twice; or the model looks no ids up.
  """
  flat = dict(tensors.flatten(params))
  units = units_lib.embedding(flat)
  if units is None:
    raise ConfigError('this model looks no ids up in a table: none can leave.')
  (number,) = units.shape
  given = np.asarray(keep_ids)
  ids = np.unique(given)
  is_row = given.ndim == 1 and given.size > 0
  if not (is_row and np.issubdtype(given.dtype, np.integer)):
    raise ConfigError(
      'ids to keep have to be a row of whole numbers, at least one of them.'
    )
  if len(ids) < given.size or ids[0] < 0 or ids[-1] >= number:
    raise ConfigError(
      f'ids to keep have to be 0 to {number - 1}, each once; got '
      f'{ids[0]} to {ids[-1]}, {given.size - len(ids)} of them again.'
    )
  units_lib.take(flat, units.parts, ids)
  new_id_Y = np.full(number, -1, np.int32)
  new_id_Y[ids] = np.arange(len(ids))
  return flax.traverse_util.unflatten_dict(flat, sep='/'), new_id_Y


def _shrink_block(flat, place, layer, config, masks):
  """Takes units out of one block, and tells what is new about it."""
  units = units_lib.in_block(flat, place, layer, config.model.norm_order)
  facts = {}
  columns = masks.get(f'{place}:mlp')
  if columns is not None and not columns.all():
    _check_left(columns, f'{place}:mlp')
    units_lib.take(flat, units['mlp'].parts, np.flatnonzero(columns))
    facts['mlp_width'] = int(columns.sum())
  if units['head'] is None:
    return facts
  heads, groups = _heads(place, units, masks)
  if heads.all():
    return facts
  width = flat[f'{place}/mixer/query/kernel'].shape[2]
  facts |= {'num_heads': int(heads.sum()), 'head_width': int(width)}
  own = units['head'].parts
  units_lib.take(flat, own, np.flatnonzero(heads))
  if units['kv_group'] is not None:
    paths = {part.path for part in own}
    shared = [p for p in units['kv_group'].parts if p.path not in paths]
    units_lib.take(flat, shared, np.flatnonzero(groups))
  if 'num_kv_heads' in dict(layer.settings):
    facts['num_kv_heads'] = int(groups.sum())
  return facts


def _heads(place, units, masks):
  """Which heads of queries stay, and of keys and values."""
  (num_heads,) = units['head'].shape
  heads = masks.get(f'{place}:head', np.ones(num_heads, bool))
  num_sources, width = num_heads, 1
  if units['kv_group'] is not None:
    (num_sources,) = units['kv_group'].shape
    width = num_heads // num_sources
    groups = masks.get(f'{place}:kv_group', np.ones(num_sources, bool))
    heads = heads & np.repeat(groups, width)
  _check_left(heads, f'{place}:head')
  counts = heads.reshape(num_sources, width).sum(axis=1)
  groups = counts > 0
  if len(set(counts[groups])) > 1:
    raise ConfigError(
      f'of the heads of {place} that share keys and values {counts.tolist()} '
      'would stay in each group; that has to be one number, or 0.\nTake units '
      'of kind kv_group.'
    )
  return heads, groups


def _check_left(mask, name):
  if not mask.any():
    raise ConfigError(
      f'nothing would be left of {name}, and a layer has at least one.\nKeep '
      'one, or let the whole layer leave (kind layer).'
    )
