"""Simpler activations and norms in place of those that were trained.

Layer norm is the RMS norm of the input less its mean over the channels,

    LN(x) = RMS(x - mean(x)) + bias

and in a pre-LN model all that enters a norm is a sum of what embeddings and the
last layers of blocks add to the residual stream. Without their own means over
the channels the sum has none, and a norm that takes none off gives the same
(SliceGPT, Ashkboos et al. 2024, 2401.15024, section 3.1); its bias goes into
those of the layers that read it. `inexact` says where that cannot be.

Other swaps are beginnings: the model has to be trained again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import ml_collections
import numpy as np

from effformer import config as config_lib
from effformer.compress import affine, fold, tensors
from effformer.errors import ConfigError
from effformer.models import build, encoder, layers
from effformer.shapes import Array

# What a model adds to its residual stream before the blocks, and in a block.
_ENTRIES = (
  *('types/embedding', 'positions', 'mask', 'cls', 'values/kernel'),
  *('values/bias', 'encoder/extra_tokens'),
)
_EXITS = (
  *('mixer/out/kernel', 'mixer/out/bias', 'mlp/out/kernel', 'mlp/out/bias'),
)


def swap_activation(
  config: ml_collections.ConfigDict,
  params: Any,
  name: str,
  layers: Iterable[int] | None = None,
) -> tuple[ml_collections.ConfigDict, Any]:
  """The model with another activation in its feed-forward parts.

  Another function: to be trained again.

  Args:
    config: of the model.
    params: of the model; they stay.
    name: key of `models.layers.ACTIVATIONS`.
    layers: numbers of those that change; None for all, and for the head of
      token_head 'transformed', which has the model's activation.

  Raises:
    ConfigError: no such activation or layer, or a part of a share group.
  """
  _check_activation(name)
  rows = {index: row.to_dict() for index, row in config.model.layers.items()}
  if layers is None:
    for row in rows.values():
      row.pop('activation', None)
    rows = {index: row for index, row in rows.items() if row}
    changes = {'model.activation': name, 'model.layers': rows}
    return config_lib.changed(config, changes), params
  chosen = set(layers)
  own = build.layer_configs(config)
  for index in sorted(chosen):
    if index not in range(len(own)):
      raise ConfigError(
        f'there is no layer {index}: the model has 0 to {len(own) - 1}.'
      )
    share = own[index].share
    group = {i for i, layer in enumerate(own) if layer.share == share}
    if share and not group <= chosen:
      raise ConfigError(
        f'layer {index} shares its parameters with layers {sorted(group)}, '
        'which need one activation.\nName all of them or none.'
      )
    rows[str(index)] = {**rows.get(str(index), {}), 'activation': name}
  return config_lib.changed(config, {'model.layers': rows}), params


def swap_norm(
  config: ml_collections.ConfigDict,
  params: Any,
  name: str,
  lines: Mapping[str, affine.Line] | None = None,
) -> tuple[ml_collections.ConfigDict, Any]:
  """The model with other norms; those within mixers stay.

  'rms' has the scales of the layer norms. Where `inexact` is empty it is the
  same function, but for rows without a token; else the residual stream stays as
  it is, biases go where they can and are lost elsewhere, and the model has to
  be trained again.

  'affine' has the line nearest to each norm, channel by channel. A model
  without statistics has to be trained again, the more the deeper it is.

  Args:
    config: of the model.
    params: of the model, numbers.
    name: 'rms' in place of 'layer', or 'affine' in place of either.
    lines: for 'affine', see `affine.fit`.

  Raises:
    ConfigError: there is no such swap, or lines are missing or not used.
    ValueError: there is no line for one of the norms.
  """
  before = config.model.norm
  if (before, name) not in (
    ('layer', 'rms'), ('layer', 'affine'), ('rms', 'affine'),
  ):  # fmt: skip
    raise ConfigError(
      f'norms {before!r} cannot become {name!r}.\n'
      "'layer' can become 'rms' or 'affine', and 'rms' 'affine'."
    )
  if (name == 'affine') != (lines is not None):
    raise ConfigError(
      "norms 'affine' need lines, from affine.fit on calibration texts, and "
      "'rms' has none."
    )
  flat = dict(tensors.flatten(params))
  if name == 'affine':
    for path in _norms(flat):
      if path not in lines:
        raise ValueError(f'there is no line for {path}')
      flat[f'{path}/scale'], flat[f'{path}/bias'] = lines[path]
  else:
    if not _uncentred(config, flat):
      for path in _sources(flat):
        x = np.asarray(flat[path], np.float64)
        flat[path] = (x - x.mean(-1, keepdims=True)).astype(np.float32)
    for path in _norms(flat):
      for target, shift in (_moved(config, flat, path) or {}).items():
        flat[target] = np.asarray(flat[target]) + shift
      del flat[f'{path}/bias']
  config = config_lib.changed(config, {'model.norm': name})
  return config, flax.traverse_util.unflatten_dict(flat, sep='/')


def inexact(config: ml_collections.ConfigDict, params: Any) -> list[str]:
  """Why RMS norms would make another function of a model of layer norms.

  Args:
    config: of the model.
    params: of the model, numbers.

  Returns:
    A reason each; none where `swap_norm` changes nothing.
  """
  flat = tensors.flatten(params)
  lost = [path for path in _norms(flat) if _moved(config, flat, path) is None]
  return _uncentred(config, flat) + [
    f'nothing takes in the bias of {path}' for path in lost
  ]


def _check_activation(name):
  if name not in layers.ACTIVATIONS:
    raise ConfigError(
      f'no activation {name!r}; there are {", ".join(layers.ACTIVATIONS)}.'
    )


def _norms(flat) -> list[str]:
  """Places of the norms that are the model's."""
  ends = ('norm_in', 'norm_out', 'norm_mixer', 'norm_mlp', 'head_norm')
  ends += ('norm_narrow', 'norm_widen')
  places = [path.rpartition('/') for path in flat]
  return [
    place for place, _, part in places
    if part == 'scale' and place.rpartition('/')[2] in ends
  ]  # fmt: skip


def _sources(flat) -> list[str]:
  """What is added to the residual stream, channels last."""
  table = 'embedding_out/kernel'
  if table not in flat:
    table = 'embedding/embedding'
  return [
    path for path in flat
    if path in (table, *_ENTRIES)
    or (path.startswith('encoder/') and path.split('/', 2)[-1] in _EXITS)
  ]  # fmt: skip


def _uncentred(config, flat) -> list[str]:
  """Why what enters norms has a mean that nothing can take off before."""
  model = config.model
  if model.norm_order != 'pre':
    return ['norms of post-LN blocks read what a norm has given']
  reasons = []
  if model.embedding_norm:
    reasons.append('blocks read what the norm of the embedding has given')
  if model.position == 'sinusoidal':
    reasons.append('sinusoidal positions have a mean')
  if model.conv_width:
    reasons.append('convolutions give each channel a weight of its own')
  if model.token_head != 'dense' and 'head_out/kernel' not in flat:
    reasons.append('the embedding is the head too, and has to stay as it is')
  blocks = build.layer_configs(config)
  if any(layer.bottleneck for layer in blocks):
    reasons.append('bottlenecks read the stream as it is, its mean with it')
  mixers = {layer.mixer for layer in blocks}
  others = sorted(mixers - set(fold.READERS))
  reasons += [f'what {name} gives has a mean' for name in others]
  if 'head_norm/scale' in flat:
    reasons.append('the norm of the head reads an activation')
  return reasons


def _moved(config, flat, place) -> dict[str, Array] | None:
  """What biases take over from that of a norm; None where it is lost."""
  bias_D = np.asarray(flat[f'{place}/bias'], np.float64)
  if not bias_D.any():
    return {}
  block, _, name = place.rpartition('/')
  if name == 'head_norm':
    if 'embedding_out/kernel' in flat:
      bias_D = bias_D @ np.asarray(flat['embedding_out/kernel']).T
    shift_Y = np.asarray(flat['embedding/embedding']) @ bias_D
    return {'head_bias': shift_Y.astype(np.float32)}
  if name == 'norm_out':
    return _into_head(flat, bias_D)
  if config.model.norm_order != 'pre' or name == 'norm_in':
    return None
  if name == 'norm_mlp':
    if f'{block}/mlp/in_low/kernel' in flat:
      bias_D = bias_D @ np.asarray(flat[f'{block}/mlp/in_low/kernel'])
    return _into(flat, bias_D, [f'{block}/mlp/in'])
  all_layers = build.layer_configs(config)
  names = encoder.layer_names(all_layers)
  mixer = all_layers[names.index(block.removeprefix('encoder/'))].mixer
  readers = [f'{block}/mixer/{name}' for name in fold.READERS.get(mixer, ())]
  return _into(flat, bias_D, [x for x in readers if f'{x}/kernel' in flat])


def _into_head(flat, bias_D):
  heads = ('head_tokens', 'head_in', 'head_out')
  head = next((x for x in heads if f'{x}/kernel' in flat), None)
  if head is None:
    return None
  # Of a pair it has both texts, or products of the two.
  times, rest = divmod(len(flat[f'{head}/kernel']), len(bias_D))
  if rest or times > 2:
    return None
  return _into(flat, np.tile(bias_D, times), [head])


def _into(flat, bias_K, readers):
  if not readers or not all(f'{path}/bias' in flat for path in readers):
    return None
  shifts = {}
  for path in readers:
    w_KN = tensors.matrix(f'{path}/kernel', np.asarray(flat[f'{path}/kernel']))
    shape = np.shape(flat[f'{path}/bias'])
    shifts[f'{path}/bias'] = (bias_K @ w_KN).reshape(shape).astype(np.float32)
  return shifts
