"""Factors of the inputs of dense layers, and where they can be hidden.

A matrix W and its inputs x may be scaled against each other,

    x W = (x / s) (diag(s) W)          s_K > 0, one factor for each input

and x / s costs nothing where what makes x can be divided by s instead:

- the norm before a mixer or a feed-forward part, where nothing else reads it.
  That is so in pre-LN blocks; in post-LN blocks what it gives is the residual
  stream too (Xiao et al. 2022, 2211.10438, section 4, fold into pre-LN).
- the projection of values before that of outputs, where a mechanism is linear
  in each channel of the values. With grouped queries the heads of a group have
  the same values, and so need the same factors.
- the first layer of the feed-forward part before the second, where the
  activation is positively homogeneous, f(x / s) = f(x) / s: relu. Of a product
  of two matrices the first before the second, always.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import ml_collections

from effformer.compress import tensors
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.shapes import Array

# Paths of kernels to s_K.
Factors = Mapping[str, Array]

_QKV = ('query', 'key', 'value')
_RECURRENT = (*_QKV, 'gate')
# Kernels that read the input of a mechanism, where nothing else reads it.
READERS = {
  'full': _QKV,
  'linear': _QKV,
  'local': _QKV,
  'linformer': (*_QKV, 'shares'),
  'longformer': (*_QKV, 'query_global', 'key_global', 'value_global'),
  'bigbird': _QKV,
  'sparse': _QKV,
  'performer': _QKV,
  'nystromformer': _QKV,
  'synthesizer': (*_QKV, 'hidden'),
  'reformer': ('query_key', 'value'),
  'sinkhorn': _QKV,
  'nsa': (
    *_QKV,
    *('compress_key', 'compress_value', 'window_key', 'window_value', 'gate'),
  ),
  'retnet': _RECURRENT,
  'gla': (*_RECURRENT, 'decay_low'),
  'gated_deltanet': (*_RECURRENT, 'rate', 'step'),
  'mamba2': (*_RECURRENT, 'step'),
}
# Kernels whose outputs enter `out` linearly, channel by channel.
VALUES = {
  **{
    name: ('value',)
    for name in (
      *('full', 'linear', 'local', 'linformer', 'bigbird', 'sparse'),
      *('performer', 'nystromformer', 'synthesizer', 'reformer', 'sinkhorn'),
    )
  },
  'longformer': ('value', 'value_global'),
}
HOMOGENEOUS = ('relu',)


class Place(NamedTuple):
  """Kernels that share their input.

  Attributes:
    kernels: paths.
    before: paths of what can be divided along its last axes instead of the
      input; () where there is none.
    axes: (H', G, V) with k = H' G V: what stands before has the inputs that
      differ in the second only as one.
  """

  kernels: tuple[str, ...]
  before: tuple[str, ...]
  axes: tuple[int, int, int]


def places(config: ml_collections.ConfigDict, params: Any) -> list[Place]:
  """Of all kernels of the encoder.

  Args:
    config: describes the model.
    params: numbers.
  """
  flat = tensors.flatten(params)
  layers = build.layer_configs(config)
  names = encoder.layer_names(layers)
  found = []
  # Layers of a share group are one.
  for name, layer in dict(zip(names, layers, strict=True)).items():
    found += _of_layer(f'encoder/{name}', layer, config.model.norm_order, flat)
  return found


def fold(
  config: ml_collections.ConfigDict, params: Any, factors: Factors
) -> tuple[Any, dict[str, Array]]:
  """The same function with scaled kernels, and the factors without a place.

  Where there is a place, kernels are multiplied by their factors, also those
  of the place that are not named, and what stands before is divided. Kernels
  of factors without a place stay as they are; `tensors.quantise` takes those
  factors.

  Args:
    config: describes the model.
    params: numbers.
    factors: by paths of kernels, s_K above 0.

  Returns:
    Parameters, and the factors that are left.

  Raises:
    ConfigError: factors of what is not there, or is not rounded.
    ValueError: factors of another shape, not above 0, or such that are to be
      folded into one place and differ.
  """
  flat, left = tensors.flatten(params), {}
  for path, s_K in factors.items():
    if path not in flat or not tensors.is_rounded(path, flat[path]):
      raise ConfigError(
        f'there are factors for the inputs of {path}, which is no matrix of '
        'this model.\nLeave them out.'
      )
    inputs, _ = tensors.matrix(path, flat[path]).shape
    left[path] = tensors.checked_factor(path, s_K, inputs)
  for place in places(config, params):
    own = [path for path in place.kernels if path in left]
    if not own or not place.before:
      continue
    s_K = left[own[0]]
    if not all(jnp.array_equal(s_K, left[path]) for path in own):
      raise ValueError(
        f'{", ".join(own)} share their input and need the same factors'
      )
    if not jnp.array_equal(s_K, tied(s_K, place, jnp.max)):
      continue
    for path in place.kernels:
      w_KN = tensors.matrix(path, flat[path]) * s_K[:, None]
      flat[path] = tensors.from_matrix(w_KN, flat[path].shape, is_table=False)
      left.pop(path, None)
    before_K = s_K.reshape(place.axes)[:, 0].ravel()
    for path in place.before:
      x = flat[path]
      flat[path] = (x.reshape(-1, before_K.size) / before_K[None]).reshape(
        x.shape
      )
  return flax.traverse_util.unflatten_dict(flat, sep='/'), left


def tied(x_K: Array, place: Place, reduce: Any) -> Array:
  """`x_K` with one value, `reduce` of them, for inputs that are made as one."""
  x_HGV = x_K.reshape(place.axes)
  one_H1V = reduce(x_HGV, axis=1, keepdims=True)
  return jnp.broadcast_to(one_H1V, place.axes).ravel()


def _of_layer(path, layer, norm_order, flat):
  """The places of one layer; a kernel of no table is a place of its own."""
  found = []

  def add(kernels, before, axes=None):
    kernels = tuple(f'{path}/{name}/kernel' for name in kernels)
    kernels = tuple(name for name in kernels if name in flat)
    before = tuple(f'{path}/{name}' for name in before)
    before = tuple(name for name in before if name in flat)
    if kernels:
      inputs, _ = tensors.matrix(kernels[0], flat[kernels[0]]).shape
      found.append(Place(kernels, before, axes or (1, 1, inputs)))

  def norm(name):
    is_alone = norm_order == 'pre'
    return (f'{name}/scale', f'{name}/bias') if is_alone else ()

  add(
    [f'mixer/{name}' for name in READERS.get(layer.mixer, ())],
    norm('norm_mixer'),
  )
  values = [f'mixer/{name}' for name in VALUES.get(layer.mixer, ())]
  before = [f'{name}/{part}' for name in values for part in ('kernel', 'bias')]
  axes = None
  if values:
    _, groups, width = flat[f'{path}/{values[0]}/kernel'].shape
    heads = flat[f'{path}/mixer/out/kernel'].shape[0]
    axes = groups, heads // groups, width
  add(['mixer/out'], before, axes)
  first, second = 'mlp/in', 'mlp/out'
  if layer.mlp_rank:
    first, second = 'mlp/in_low', 'mlp/out_low'
    for name in ('in', 'out'):
      add([f'mlp/{name}'], [f'mlp/{name}_low/kernel'])
  add([first], norm('norm_mlp'))
  before = ('mlp/in/kernel', 'mlp/in/bias')
  add([second], before if layer.activation in HOMOGENEOUS else ())
  seen = {kernel for place in found for kernel in place.kernels}
  for name, x in flat.items():
    is_other = name.startswith(f'{path}/') and name not in seen
    if is_other and name.endswith('/kernel') and tensors.is_rounded(name, x):
      add([name.removeprefix(f'{path}/').removesuffix('/kernel')], ())
  return found
