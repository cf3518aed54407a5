"""Layers that share one set of parameters: which layers, and which parameters.

Of two layers that were trained apart the i-th units have nothing to do with
each other, and their mean is no mean of what the layers do. So one is written
in the order of the other first (`alignment`).

Sharing one set by all layers is that of ALBERT (Lan et al. 2020, 1909.11942,
section 3.1). It saves parameters and bytes, no operations.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import ml_collections
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance

from effformer import config as config_lib
from effformer.compress import alignment, tensors
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.models.block import LayerConfig

Groups = Mapping[str, Sequence[int]]
# Of layers that cannot share; distances of others are at most 2.
_APART = 4.0
# The parameters of all blocks stand there while they are compared.
_PLACE = 'block'


class _Block(NamedTuple):
  """The parameters of one layer, and what they are.

  Attributes:
    name: of their place.
    layer: its facts, without its share group.
    flat: by path.
  """

  name: str
  layer: LayerConfig
  flat: Mapping[str, np.ndarray]

  @property
  def form(self):
    """What has to be equal for layers to share parameters."""
    return self.layer, {path: x.shape for path, x in self.flat.items()}


def similarity(
  config: ml_collections.ConfigDict, params: Any, *, align: bool = True
) -> np.ndarray:
  """Cosines of the parameters of each two layers, float64 [L, L].

    s_ij = <w_i, w_j> / |w_i| |w_j|

  All parameters of a layer are one vector w. Scales of norms are in it, so
  layers that have nothing in common are somewhat above 0.

  Args:
    config: of the model.
    params: of the model, numbers.
    align: whether one is aligned to the other first, which gives the greatest
      cosine that there is. Time L^2 (F^2 D + F^3).

  Returns:
    The matrix, symmetric; NaN for layers that cannot share parameters, as they
    are of other mixers, settings or widths.

  Raises:
    ConfigError: parameters are codes.
  """
  blocks = _blocks(config, params)
  cosine_LL = np.full((len(blocks),) * 2, np.nan)
  for i, own in enumerate(blocks):
    for j, other in enumerate(blocks[: i + 1]):
      if own.name == other.name:
        cosine_LL[i, j] = cosine_LL[j, i] = 1.0
      elif own.form == other.form:
        flat = _aligned(own, other, config) if align else own.flat
        cosine_LL[i, j] = cosine_LL[j, i] = _cosine(flat, other.flat)
  return cosine_LL


def align(
  config: ml_collections.ConfigDict, params: Any, layer: int, to: int
) -> Any:
  """The parameters, with one layer in the order of another one's units.

  The function of the model is the same, but for the last bits of its sums.

  Args:
    config: of the model.
    params: of the model, numbers.
    layer: number of the layer that is written anew, from 0; with it the others
      of its share group.
    to: number of the layer that it is to be near to.

  Raises:
    ConfigError: no such layers, or they differ in more than their parameters;
      parameters are codes.
  """
  blocks = _blocks(config, params)
  _check_layers((layer, to), blocks)
  _check_alike((to, layer), blocks)
  own, other = blocks[layer], blocks[to]
  if own.name == other.name:
    return params
  changed = _tree(_aligned(own, other, config))
  return {**params, 'encoder': {**params['encoder'], own.name: changed}}


def tie(
  config: ml_collections.ConfigDict,
  params: Any,
  groups: Groups,
  *,
  align: bool = True,
  weights: Sequence[float] | None = None,
) -> tuple[ml_collections.ConfigDict, Any]:
  """The model whose layers of each group share one set of parameters.

  They are the mean sum_i a_i w_i / sum_i a_i of those of the layers. ALBERT is
  one group of all layers.

  Args:
    config: of the model.
    params: of the model, numbers.
    groups: numbers of layers by the name of the group, of letters, digits and
      underscores. Layers of no group stay as they are; one that was of another
      group leaves it.
    align: whether the others of a group are aligned to its first one.
    weights: a_i of all layers of the model, 0 or more, such as what each counts
      for the loss; None for 1.

  Returns:
    Config, with `model.layers.I.share`, and parameters, those of a group at
    `encoder/shared_NAME`.

  Raises:
    ConfigError: no such layers; a layer is in two groups; layers of a group
      differ in more than their parameters, or are fewer than two; a name is
      none, or that of a group which goes on without these layers; weights that
      do not fit; parameters are codes.
  """
  blocks = _blocks(config, params)
  groups = {name: tuple(numbers) for name, numbers in groups.items()}
  _check_groups(groups, blocks)
  weight_L = _checked_weights(weights, groups, len(blocks))
  rows = {index: row.to_dict() for index, row in config.model.layers.items()}
  tied = {}
  for name, numbers in groups.items():
    first, *others = (blocks[number] for number in numbers)
    flats = [
      first.flat,
      *(_aligned(x, first, config) if align else x.flat for x in others),
    ]
    tied[f'shared_{name}'] = _tree(_mean(flats, weight_L[list(numbers)]))
    # What one of them says of itself is so of all.
    told = [rows.get(str(number), {}) for number in numbers]
    row = functools.reduce(lambda a, b: {**a, **b}, told) | {'share': name}
    rows |= {str(number): row for number in numbers}
  config = config_lib.changed(config, {'model.layers': rows})
  left = set(encoder.layer_names(build.layer_configs(config)))
  gone = {block.name for block in blocks} - left
  kept = {k: x for k, x in params['encoder'].items() if k not in gone}
  return config, {**params, 'encoder': {**kept, **tied}}


def groups_of(
  similarity: np.ndarray, number: int
) -> dict[str, tuple[int, ...]]:
  """Which layers to tie, for a number of distinct layers.

  From single layers on, those two groups are joined of which pairs of layers
  have the greatest mean similarity (agglomerative, average linkage; Sokal &
  Michener 1958), until so many are left. Layers need not be neighbours.

  Args:
    similarity: [L, L], of `similarity`.
    number: of distinct layers that are to be left.

  Returns:
    Groups of two and more for `tie`, in order, named by their first layer: 'g3'
    has layer 3 and later ones.

  Raises:
    ConfigError: there cannot be so many, or not so few, as layers differ.
  """
  num_layers = len(similarity)
  if similarity.shape != (num_layers, num_layers):
    raise ValueError(f'similarity has to be [L, L], got {similarity.shape}')
  if not 1 <= number <= num_layers:
    raise ConfigError(
      f'{num_layers} layers cannot become {number} distinct ones: name 1 to '
      f'{num_layers}.'
    )
  found = {index: (index,) for index in range(num_layers)}
  distance_LL = np.where(np.isnan(similarity), _APART, 1 - similarity)
  np.fill_diagonal(distance_LL, 0.0)
  joined = np.zeros((0, 4))
  if num_layers > 1:
    pairs = scipy.spatial.distance.squareform(distance_LL, checks=False)
    joined = scipy.cluster.hierarchy.linkage(pairs, 'average')
  for step, (one, other, distance, _) in enumerate(joined):
    if len(found) == number:
      break
    if distance > _APART - 1:
      raise ConfigError(
        f'{num_layers} layers cannot become {number} distinct ones: layers of '
        f'{len(found)} kinds cannot share parameters.\nName {len(found)} or '
        'more.'
      )
    found[num_layers + step] = found.pop(int(one)) + found.pop(int(other))
  groups = sorted(tuple(sorted(own)) for own in found.values() if len(own) > 1)
  return {f'g{own[0]}': own for own in groups}


def _blocks(config, params):
  layers = build.layer_configs(config)
  names, flat = encoder.layer_names(layers), tensors.flatten(params['encoder'])
  blocks = []
  for name, layer in zip(names, layers, strict=True):
    own = {
      f'{_PLACE}{path.removeprefix(name)}': x
      for path, x in flat.items()
      if path.startswith(f'{name}/')
    }
    for path, x in own.items():
      if isinstance(x, tensors.QTensor):
        raise ConfigError(
          f'{path.replace(_PLACE, name, 1)} is codes, of which there is no '
          'mean.\nTie layers first, and round after.'
        )
    own = {path: np.asarray(x) for path, x in own.items()}
    blocks.append(_Block(name, dataclasses.replace(layer, share=''), own))
  return blocks


def _aligned(own, other, config):
  units = units_lib.in_block(
    own.flat, _PLACE, own.layer, config.model.norm_order
  )
  return alignment.aligned(own.flat, other.flat, units)


def _cosine(a, b):
  def product(x, y):
    return sum(np.vdot(x[path].astype(np.float64), y[path]) for path in x)

  return product(a, b) / np.sqrt(product(a, a) * product(b, b))


def _mean(flats, weight_I):
  share_I = weight_I / weight_I.sum()
  return {
    path: sum(
      share * flat[path].astype(np.float64)
      for share, flat in zip(share_I, flats, strict=True)
    ).astype(x.dtype)
    for path, x in flats[0].items()
  }


def _tree(flat):
  return flax.traverse_util.unflatten_dict(flat, sep='/')[_PLACE]


def _check_layers(numbers, blocks):
  for number in numbers:
    if number not in range(len(blocks)):
      raise ConfigError(
        f'there is no layer {number}: the model has layers 0 to '
        f'{len(blocks) - 1}.'
      )


def _check_alike(numbers, blocks):
  first, *others = numbers
  for number in others:
    own, other = blocks[number], blocks[first]
    facts = [
      field.name
      for field in dataclasses.fields(LayerConfig)
      if getattr(own.layer, field.name) != getattr(other.layer, field.name)
    ]
    if own.form != other.form:
      raise ConfigError(
        f'layers {first} and {number} cannot share parameters: they differ in '
        f'{", ".join(facts) or "the shapes of these"}.\nTie layers of equal '
        'facts.'
      )


def _check_groups(groups, blocks):
  seen = {}
  for name, numbers in groups.items():
    if not re.fullmatch(r'\w+', name, re.ASCII):
      raise ConfigError(
        f'{name!r} is no name of a group: use letters, digits and underscores.'
      )
    _check_layers(numbers, blocks)
    for number in numbers:
      if number in seen:
        raise ConfigError(
          f'layer {number} is in group {name!r} and in {seen[number]!r} before '
          'that: name each layer once.'
        )
      seen[number] = name
    if len(numbers) < 2:
      raise ConfigError(
        f'group {name!r} has {len(numbers)} layers, and sharing needs two or '
        'more.'
      )
    _check_alike(numbers, blocks)
  for number, block in enumerate(blocks):
    name = block.name.removeprefix('shared_')
    if block.name != name and name in groups and number not in seen:
      raise ConfigError(
        f'layer {number} is of a share group {name!r} already: give the new '
        'group another name, or this layer too.'
      )


def _checked_weights(weights, groups, num_layers):
  weight_L = np.ones(num_layers) if weights is None else np.asarray(weights)
  is_fine = weight_L.shape == (num_layers,) and np.all(
    (weight_L >= 0) & (weight_L < np.inf)
  )
  if not is_fine or not all(weight_L[list(x)].sum() for x in groups.values()):
    raise ConfigError(
      f'weights have to be {num_layers} numbers from 0 on, one for each layer, '
      f'and not all 0 in a group; got {np.asarray(weights).tolist()}.'
    )
  return weight_L
