"""What is pruned: units, each the parameters that leave together.

    kind       name                       a unit is
    head       encoder/layer_0:head       a head of queries, with its rows of
                                          the output; and its own keys and
                                          values, unless heads share them
    kv_group   encoder/layer_0:kv_group   where heads share keys and values, a
                                          head of these with all its queries
    mlp        encoder/layer_0:mlp        a column of mlp/in and row of mlp/out
                                          (of mlp/out_low, with mlp_rank)
    layer      encoder/layer_0:layer      a block
    embedding  embedding:embedding        a vector of the table of tokens
    weight     PATH OF A KERNEL           a single weight

Scores and masks are {name: array}, one number or bool a unit; a share group of
layers has one place, encoder/shared_NAME. Masks are true where something is
kept.

Heads leave one by one only where the others do not notice: of mechanisms whose
heads differ by their number (random features and blocks, decays, ALiBi) or
choose together there are no such units.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np

from effformer.compress import tensors
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.models.block import LayerConfig
from effformer.shapes import Array

KINDS = ('head', 'kv_group', 'mlp', 'layer', 'embedding', 'weight')
# Mechanisms whose heads do not know of each other, nor of their number.
SEPARATE_HEADS = (
  *('full', 'linear', 'local', 'sparse', 'longformer', 'linformer'),
  'nystromformer',
)
# Parameters of these: the axis of the heads of queries ...
_OF_QUERIES = {
  **{'query/kernel': 1, 'query/bias': 0, 'out/kernel': 0, 'relative_bias': 0},
  **{'query_global/kernel': 1, 'query_global/bias': 0, 'conv': 0},
}
# ... of those where each head has mixtures of its own ...
_OF_MIXTURES = {'mix_keys': 0, 'mix_values': 0}
# ... that joins them ...
_OUT = {'out/kernel': 0}
# ... and of the heads of keys and values.
_OF_SOURCES = {
  f'{name}/{part}': axis
  for name in ('key', 'value', 'key_global', 'value_global', 'shares')
  for part, axis in (('kernel', 1), ('bias', 0))
}


class Part(NamedTuple):
  """A parameter that units have a share of.

  Attributes:
    path: of the parameter.
    axis: along which units lie; None if it is one unit's as a whole.
    width: entries of that axis a unit has, beside each other.
  """

  path: str
  axis: int | None
  width: int = 1


class Units(NamedTuple):
  """Units of one kind in one place.

  Attributes:
    kind: one of `KINDS`.
    shape: of their scores and masks: (number,), of weights the parameter's.
    parts: what leaves with a unit.
    exits: those of the parts through which alone a unit acts on the others, and
      linearly: where they are 0 it is as if it were not there. Empty for
      weights, and for what cannot be switched off, such as a post-LN block.
  """

  kind: str
  shape: tuple[int, ...]
  parts: tuple[Part, ...]
  exits: tuple[Part, ...]

  @property
  def entries(self) -> tuple[Part, ...]:
    """The parts that are no exits."""
    return tuple(part for part in self.parts if part not in self.exits)


def of(
  config: ml_collections.ConfigDict, params: Any, kinds: Sequence[str]
) -> dict[str, Units]:
  """All units of some kinds, by name.

  Args:
    config: of the model.
    params: of the model.
    kinds: of `KINDS`; 'weight' is of all kernels.

  Raises:
    ConfigError: a kind is unknown, or the model has no units of it.
  """
  flat, blocks, found = tensors.flatten(params), of_blocks(config, params), {}
  for kind in kinds:
    if kind not in KINDS:
      raise ConfigError(
        f'no kind of unit {kind!r}; there are {", ".join(KINDS)}.'
      )
    if kind == 'weight':
      own = {path: _weights(path, x) for path, x in flat.items()}
    elif kind == 'embedding':
      own = {'embedding:embedding': embedding(flat)}
    else:
      own = {f'{place}:{kind}': units[kind] for place, units in blocks.items()}
    own = {name: units for name, units in own.items() if units is not None}
    if not own:
      raise ConfigError(
        f'this model has nothing to prune of kind {kind!r}.\nHeads leave '
        f'mechanisms {", ".join(SEPARATE_HEADS)}; kv_group is for heads that '
        'share keys and values, embedding for models that look ids up.'
      )
    found |= own
  return found


def of_blocks(
  config: ml_collections.ConfigDict, params: Any
) -> dict[str, dict[str, Units | None]]:
  """`in_block` of every place of a block, 'encoder/layer_0'."""
  flat, layers = tensors.flatten(params), build.layer_configs(config)
  return {
    f'encoder/{name}': in_block(
      flat, f'encoder/{name}', layer, config.model.norm_order
    )
    for name, layer in zip(encoder.layer_names(layers), layers, strict=True)
  }


def in_block(
  flat: Mapping[str, Array], place: str, layer: LayerConfig, norm_order: str
) -> dict[str, Units | None]:
  """The units of a block by kind; None for a kind that it does not have."""
  own = {path: x for path, x in flat.items() if path.startswith(f'{place}/')}
  return {
    'head': _heads(own, layer),
    'kv_group': _kv_groups(own, layer),
    'mlp': _columns(own),
    'layer': _block(own, norm_order),
  }


def kind_of(name: str) -> str:
  """The kind of the units of a name."""
  return name.rpartition(':')[2] if ':' in name else 'weight'


def check(masks: Mapping[str, Array], units: Mapping[str, Units]) -> None:
  """Refuses masks of another model.

  Raises:
    ConfigError: there are no such units, or another number of them.
  """
  for name, mask in masks.items():
    if name not in units:
      raise ConfigError(
        f'there is a mask of {name}, which is not among the units of the model.'
      )
    if np.shape(mask) != units[name].shape:
      raise ConfigError(
        f'the mask of {name} is of shape {np.shape(mask)}, and the model has '
        f'{units[name].shape}: it is of another model.'
      )


def spread(x: Array, part: Part, shape: tuple[int, ...]) -> Array:
  """A number of each unit as an array that goes with a part of this shape."""
  if part.axis is None:
    return x.reshape((1,) * len(shape)) if x.size == 1 else x
  sizes = [1] * len(shape)
  sizes[part.axis] = -1
  return jnp.repeat(x, part.width, axis=0).reshape(sizes)


def total(x: Array, part: Part) -> Array:
  """The sum over what each unit has of a part, [U]."""
  if part.axis is None:
    return x.sum()[None]
  rows = jnp.moveaxis(x, part.axis, 0)
  return rows.reshape(rows.shape[0] // part.width, -1).sum(axis=1)


def take(
  flat: dict[str, Array], parts: Sequence[Part], index: np.ndarray
) -> None:
  """Keeps of these parameters what the units of these numbers have, in order.

  Args:
    flat: parameters by path, of which the parts are replaced; they may be
      traced.
    parts: those with an axis.
    index: numbers of units.
  """
  # A slice where it can be one: in a program that is cheaper than a gather.
  is_first = np.array_equal(index, np.arange(len(index)))
  for part in parts:
    entries = slice(len(index) * part.width)
    if not is_first:
      own = np.asarray(index)[:, None] * part.width + np.arange(part.width)
      entries = own.ravel()
    flat[part.path] = flat[part.path][(slice(None),) * part.axis + (entries,)]


def embedding(flat: Mapping[str, Array]) -> Units | None:
  """Rows of the table of tokens, with what a head has of each token."""
  table = 'embedding/embedding'
  if table not in flat:
    return None
  places = {'head_bias': 0, 'head_tokens/kernel': 1, 'head_tokens/bias': 0}
  parts = [Part(table, 0), *(Part(p, places[p]) for p in places if p in flat)]
  number = flat[table].shape[0]
  return Units('embedding', (number,), tuple(parts), (Part(table, 0),))


def _weights(path, x):
  if not tensors.is_rounded(path, x) or tensors.is_table(path):
    return None
  return Units('weight', np.shape(x), (Part(path, None),), ())


def _named(flat, end):
  """The path of a parameter of a block, and its shape; None without it."""
  return next(
    ((path, x.shape) for path, x in flat.items() if path.endswith(end)), None
  )


def _heads(flat, layer):
  sizes = _num_heads(flat, layer)
  if sizes is None:
    return None
  num_heads, num_sources = sizes
  parts = _mixer_parts(flat, _of_queries(layer), 1)
  if num_heads == num_sources:
    parts += _mixer_parts(flat, _OF_SOURCES, 1)
  return Units('head', (num_heads,), parts, _mixer_parts(flat, _OUT, 1))


def _kv_groups(flat, layer):
  sizes = _num_heads(flat, layer)
  if sizes is None or sizes[0] == sizes[1]:
    return None
  num_heads, num_sources = sizes
  width = num_heads // num_sources
  parts = _mixer_parts(flat, _of_queries(layer), width)
  parts += _mixer_parts(flat, _OF_SOURCES, 1)
  exits = _mixer_parts(flat, _OUT, width)
  return Units('kv_group', (num_sources,), parts, exits)


def _columns(flat):
  reader = '/mlp/out_low/kernel'
  if _named(flat, reader) is None:
    reader = '/mlp/out/kernel'
  places = {'/mlp/in/kernel': 1, '/mlp/in/bias': 0, reader: 0}
  first, *_, last = parts = tuple(
    Part(_named(flat, end)[0], axis) for end, axis in places.items()
  )
  return Units('mlp', (flat[first.path].shape[1],), parts, (last,))


def _block(flat, norm_order):
  ends = ()
  if _named(flat, '/bottleneck/widen/kernel'):
    # The only way back to the stream.
    ends = ('/bottleneck/widen/kernel', '/bottleneck/widen/bias')
  elif _named(flat, '/mixer/out/kernel'):
    ends = ('/mixer/out/kernel', '/mixer/out/bias', '/mlp/out/kernel')
    ends += ('/mlp/out/bias', '/conv/filter')
  # Of another mixer it is not known what switches it off.
  exits = []
  if norm_order == 'pre':
    exits = [Part(path, None) for path in flat if path.endswith(ends)]
  parts = tuple(Part(path, None) for path in flat)
  return Units('layer', (1,), parts, tuple(exits))


def _num_heads(flat, layer):
  """Heads of queries, and of keys and values; None if they cannot leave."""
  settings = dict(layer.settings)
  if layer.mixer not in SEPARATE_HEADS or settings.get('split_heads'):
    return None
  if settings.get('relative_bias') == 'alibi':
    return None
  return tuple(
    _named(flat, f'/mixer/{name}/kernel')[1][1] for name in ('query', 'key')
  )


def _of_queries(layer):
  has_own = dict(layer.settings).get('sharing') == 'none'
  return {**_OF_QUERIES, **(_OF_MIXTURES if has_own else {})}


def _mixer_parts(flat, axes, width):
  return tuple(
    Part(path, axes[path.partition('/mixer/')[2]], width)
    for path in flat
    if path.partition('/mixer/')[2] in axes
  )
