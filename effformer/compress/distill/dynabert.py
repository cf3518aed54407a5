"""One network of many widths (DynaBERT, Hou et al. 2020, 2004.04037).

Heads, and columns of the feed-forward part, are sorted once by importance; a
sub-network of width m has the first of them in every layer:

    h = round(m H) heads, f = F h / H columns

as their code has it. All sub-networks are trained together, each taught by the
whole network as it was before, with

    lambda_1 softCE(z_m, z) + lambda_2 sum_l MSE(h_m[l], h[l])

Only for mechanisms whose heads are alike and apart from each other, with as
many heads of keys and values as of queries.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from effformer import config as config_lib
from effformer.compress.distill import hidden, losses
from effformer.compress.distill.capture import Captured
from effformer.compress.distill.maps import LayerMap
from effformer.errors import ConfigError
from effformer.models import encoder
from effformer.models.block import LayerConfig
from effformer.models.trunk import Trunk
from effformer.shapes import Array

WIDTHS = (0.25, 0.5, 0.75, 1.0)
MECHANISMS = ('full', 'local', 'linear')
# Which axis of a parameter is that of the heads, or of the columns.
_HEAD_AXES = {
  **{f'{name}/kernel': 1 for name in ('query', 'key', 'value')},
  **{f'{name}/bias': 0 for name in ('query', 'key', 'value')},
  'out/kernel': 0,
  'relative_bias': 0,
}
_COLUMN_AXES = {'in/kernel': 1, 'in/bias': 0, 'out/kernel': 0}


class Importance(NamedTuple):
  """How much heads and columns of one layer matter.

  Attributes:
    heads_H, columns_F: at least 0.
  """

  heads_H: Array
  columns_F: Array


class _Sizes(NamedTuple):
  """How many heads and columns a layer has."""

  heads_H: int
  columns_F: int


def importance(module: Trunk, params: Any, grads: Any) -> dict[str, Importance]:
  """How much a loss depends on each head and column, to first order.

      head     |dL / d m_h| = |<W_o[h], dL/dW_o[h]>| at m = 1, where y is
               sum_h m_h o_h W_o[h] (Michel et al. 2019, 1905.10650)
      column   |<w_1, dw_1> + b_1 db_1| + |<w_2, dw_2>|, as DynaBERT's code

  Add those of several batches with `jax.tree.map(jnp.add, a, b)`.

  Args:
    module: the network.
    params: its parameters.
    grads: gradients of the loss of one batch.

  Returns:
    By the name of a layer, 'layer_0'; layers of a share group are one.

  Raises:
    ConfigError: heads of a layer cannot be told apart.
  """
  check(module.layers)
  found = {}
  for name in dict.fromkeys(encoder.layer_names(module.layers)):
    product = jax.tree.map(
      lambda w, g: w * g, params['encoder'][name], grads['encoder'][name]
    )
    first, second = product['mlp']['in'], product['mlp']['out']
    found[name] = Importance(
      jnp.abs(product['mixer']['out']['kernel'].sum(axis=(1, 2))),
      jnp.abs(first['kernel'].sum(axis=0) + first['bias'])
      + jnp.abs(second['kernel'].sum(axis=1)),
    )
  return found


def sort(
  module: Trunk, params: Any, found: Mapping[str, Importance]
) -> dict[str, Any]:
  """Parameters of the same function, the most important heads first.

  What is as important as another keeps its place behind it.

  Args:
    module: the network.
    params: its parameters.
    found: of every layer; see `importance`.
  """
  check(module.layers)

  def pick(name, part, x, axis):
    order = np.argsort(-np.asarray(getattr(found[name], part)), stable=True)
    return jnp.take(x, order, axis=axis)

  return _picked(module.layers, params, pick)


def narrow(module: Trunk, params: Any, width: float) -> dict[str, Any]:
  """Parameters of the sub-network of a width, the first ones of each layer.

  A slice, through which gradients go back to the whole.

  Args:
    module: the whole network.
    params: its parameters, sorted.
    width: m, in (0, 1].

  Raises:
    ConfigError: there is no such width, or heads cannot be told apart.
  """
  check(module.layers)
  names = encoder.layer_names(module.layers)
  sizes = {
    name: _sizes(layer, width)
    for name, layer in zip(names, module.layers, strict=True)
  }

  def pick(name, part, x, axis):
    return jax.lax.slice_in_dim(x, 0, getattr(sizes[name], part), axis=axis)

  return _picked(module.layers, params, pick)


def narrow_module(module: Trunk, width: float) -> Trunk:
  """The network that takes the parameters of `narrow`."""
  check(module.layers)
  layers = []
  for layer in module.layers:
    sizes = _sizes(layer, width)
    settings = {
      **dict(layer.settings),
      'num_heads': sizes.heads_H,
      'head_width': _head_width(module, layer),
    }
    layers.append(
      dataclasses.replace(
        layer,
        settings=tuple(sorted(settings.items())),
        mlp_width=sizes.columns_F,
      )
    )
  return dataclasses.replace(module, layers=tuple(layers))


def narrow_config(
  config: ml_collections.ConfigDict, module: Trunk, width: float
) -> ml_collections.ConfigDict:
  """The config of the sub-network: num_heads, head_width, mlp_width a layer.

  Args:
    config: of the whole network; what else `model.layers` says stays.
    module: the whole network.
    width: m.
  """
  check(module.layers)
  facts = {name: row.to_dict() for name, row in config.model.layers.items()}
  for index, layer in enumerate(module.layers):
    sizes = _sizes(layer, width)
    facts[str(index)] = {
      **facts.get(str(index), {}),
      'num_heads': sizes.heads_H,
      'head_width': _head_width(module, layer),
      'mlp_width': sizes.columns_F,
    }
  return config_lib.changed(config, {'model.layers': facts})


def loss(
  student: Captured,
  teacher: Captured,
  layers: LayerMap,
  *,
  lambda1: float = 1.0,
  lambda2: float = 0.1,
) -> Array:
  """What a sub-network of a classifier is to learn, for each example [B].

  Args:
    student: of the sub-network, with its states.
    teacher: of the whole network, before its training, with its states.
    layers: which states are compared: all of them with their own where depths
      are equal.
    lambda1, lambda2: (1, 0.1) where widths are trained, (1, 1) where depths
      are too.
  """
  if student.output.ndim != 2:
    raise ValueError(
      f'logits of classes are [B, C], not {student.output.shape}'
    )
  if not (student.states and teacher.states):
    raise ValueError("both networks must be captured with 'states'")
  value_B = lambda1 * losses.soft_cross_entropy(student.output, teacher.output)
  for own, other in layers.states:
    state_B = hidden.state_mse(
      student.states[own], teacher.states[other], student.keep_BT
    )
    value_B += lambda2 * hidden.over_texts(state_B, value_B.shape[0])
  return value_B


def check(layers: tuple[LayerConfig, ...]) -> None:
  """Raises ConfigError for layers of which heads cannot be taken apart."""
  for index, layer in enumerate(layers):
    settings = dict(layer.settings)
    reason = ''
    if layer.mixer not in MECHANISMS:
      reason = f'{layer.mixer} may have heads that differ'
    elif settings.get('relative_bias') == 'alibi':
      reason = 'the slopes of alibi belong to the places of the heads'
    elif layer.mlp_rank:
      reason = 'its feed-forward part is of low rank'
    elif settings.get('num_kv_heads') is not None:
      reason = 'its heads of keys and values have a number of their own'
    if reason:
      raise ConfigError(
        f'layer {index} has no sub-networks of fewer heads: {reason}.\n'
        f'Those that have are {", ".join(MECHANISMS)}, without alibi, '
        'num_kv_heads and mlp_rank.'
      )


def _sizes(layer, width) -> _Sizes:
  if not 0 < width <= 1:
    raise ConfigError(f'a width is above 0 and at most 1, not {width}.')
  whole = _num_heads(layer)
  num_heads = max(round(whole * width), 1)
  return _Sizes(num_heads, max(layer.mlp_width * num_heads // whole, 1))


def _num_heads(layer):
  # The default of all mechanisms with heads.
  return dict(layer.settings).get('num_heads', 4)


def _head_width(module, layer):
  own = dict(layer.settings).get('head_width')
  return module.width // _num_heads(layer) if own is None else own


def _picked(layers, params, pick) -> dict[str, Any]:
  """Parameters of which `pick(layer's name, part, x, axis)` takes a share."""
  blocks = dict(params['encoder'])
  for name in dict.fromkeys(encoder.layer_names(layers)):
    block = dict(blocks[name])
    for room, part, axes in (
      ('mixer', 'heads_H', _HEAD_AXES),
      ('mlp', 'columns_F', _COLUMN_AXES),
    ):
      flat = flax.traverse_util.flatten_dict(block[room], sep='/')
      block[room] = flax.traverse_util.unflatten_dict(
        {
          path: pick(name, part, x, axes[path]) if path in axes else x
          for path, x in flat.items()
        },
        sep='/',
      )
    blocks[name] = block
  return {**params, 'encoder': blocks}
