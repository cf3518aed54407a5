"""One network of many widths and depths.

DynaBERT (Hou et al. 2020, 2004.04037). Heads, and columns of the feed-forward
part, are sorted once by importance (`prune.scores.taylor`); a sub-network of
width m has the first of them in every layer:

    h = round(m H) heads, f = F h / H columns

as their code has it, and one of depth d of L layers those of numbers
floor(i / d), i < round(d L). All sub-networks are trained together, each taught
by the whole network as it was before, with

    lambda_1 softCE(z_m, z) + lambda_2 sum_l MSE(h_m[l], h[l])

Only for mechanisms whose heads are apart from each other, with as many heads of
keys and values as of queries.
"""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import ml_collections
import numpy as np

from effformer.compress import depth as depth_lib
from effformer.compress import shrink, tensors
from effformer.compress.distill import hidden, losses
from effformer.compress.distill.capture import Captured
from effformer.compress.distill.maps import LayerMap
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.shapes import Array

WIDTHS = (0.25, 0.5, 0.75, 1.0)
KINDS = ('head', 'mlp')


def sort(
  config: ml_collections.ConfigDict, params: Any, scores: Mapping[str, Array]
) -> Any:
  """Parameters of the same function, the most important units first.

  What is as important as another keeps its place behind it.

  Args:
    config: of the network.
    params: its parameters.
    scores: of the units of `KINDS`, such as `prune.scores.taylor` gives.

  Raises:
    ConfigError: heads cannot be told apart, or scores are of another network.
  """
  units = _units(config, params)
  units_lib.check(scores, units)
  flat = dict(tensors.flatten(params))
  for name, score in scores.items():
    order = np.argsort(-np.asarray(score), stable=True)
    units_lib.take(flat, units[name].parts, order)
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def narrow(
  config: ml_collections.ConfigDict,
  params: Any,
  width: float,
  depth: float = 1.0,
) -> tuple[ml_collections.ConfigDict, Any]:
  """The sub-network of a width and a depth: its config and parameters.

  The parameters are slices of the whole ones, through which gradients go back;
  the config is the same whatever they are, so that under `jax.jit` the network
  may be built of it.

  Args:
    config: of the whole network.
    params: its parameters, sorted.
    width: m, in (0, 1].
    depth: d, in (0, 1].

  Raises:
    ConfigError: there is no such width or depth, or heads cannot be told apart.
  """
  _check_share('width', width)
  units = _units(config, params)
  masks = {}
  for name, own in units.items():
    (whole,) = units[name.rpartition(':')[0] + ':head'].shape
    num_heads = max(round(whole * width), 1)
    count = max(own.shape[0] * num_heads // whole, 1)
    masks[name] = np.arange(own.shape[0]) < count
  config, params = shrink.shrink(config, params, masks)
  kept = kept_layers(config.model.num_layers, depth)
  return depth_lib.drop_layers(config, params, kept)


def kept_layers(num_layers: int, depth: float) -> tuple[int, ...]:
  """The layers of a depth, of `maps.layer_map('kept', ...)` too.

  Args:
    num_layers: L.
    depth: d, in (0, 1].

  Raises:
    ConfigError: there is no such depth.
  """
  _check_share('depth', depth)
  count = max(round(num_layers * depth), 1)
  return tuple(int(i / depth) for i in range(count))


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


def _units(config, params):
  """The units of `KINDS`, which every layer has to have."""
  found = {}
  for place, own in units_lib.of_blocks(config, params).items():
    if own['head'] is None or own['kv_group'] is not None:
      raise ConfigError(
        f'{place} has no sub-networks of fewer heads.\n'
        f'Mechanisms that have are {", ".join(units_lib.SEPARATE_HEADS)}, '
        'without alibi and split_heads, with as many heads of keys and values '
        'as of queries.'
      )
    found |= {f'{place}:{kind}': own[kind] for kind in KINDS}
  return found


def _check_share(what, value):
  if not 0 < value <= 1:
    raise ConfigError(f'a {what} is above 0 and at most 1, not {value}.')
