"""A trained model with narrower blocks, which learn anew.

The stream keeps its width, so that embedding, positions, outer norms and head
keep their meaning, and hidden states can be compared with those of the model
before (MobileBERT, Sun et al. 2020, 2004.02984, section 3.2). What is in a
block of another width has none, and begins as it is first made: such a model
has to be trained, with the one before as its teacher.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.traverse_util
import jax
import ml_collections
import numpy as np

from effformer import config as config_lib
from effformer import errors
from effformer.compress import tensors
from effformer.errors import ConfigError
from effformer.models import build, encoder

# The norm that makes the output of a post-LN block, without and with one.
_PLAIN_NORM, _OUTER_NORM = 'norm_mlp', 'bottleneck/norm_widen'


def narrow(
  config: ml_collections.ConfigDict,
  params: Any,
  width: int,
  initial: Callable[[ml_collections.ConfigDict], Callable[[jax.Array], Any]],
  layers: Sequence[int] | None = None,
  *,
  mlp_width: int = 0,
  seed: int = 0,
) -> tuple[ml_collections.ConfigDict, Any]:
  """The model whose blocks have a bottleneck of this width.

  Heads stay as many as they are and become narrower, where neither
  `model.qkv_width` nor a `head_width` of the layer says how wide they are. Of
  post-LN blocks the last norm, which makes the stream, stays too.

  Args:
    config, params: of the model.
    width: b.
    initial: config -> key -> parameters of such a model, as first made.
    layers: numbers of those that become narrower, from 0; None for all.
    mlp_width: F of these layers; 0 for round(F b / D) of each, at least 1,
      with D the width at which it works now.
    seed: of new parameters.

  Returns:
    Config, with `model.layers.I.bottleneck` and `mlp_width`, and parameters.

  Raises:
    ConfigError: see `narrowed`; or the mechanism cannot be so narrow.
  """
  own = build.layer_configs(config)
  chosen = sorted(set(range(len(own)) if layers is None else layers))
  config = narrowed(config, width, layers, mlp_width=mlp_width)
  with errors.refused(f'the blocks of this model cannot be {width} wide'):
    made = jax.jit(initial(config))(jax.random.key(seed))
  names = encoder.layer_names(own)
  places = tuple(f'encoder/{names[index]}/' for index in chosen)
  return config, _joined(tensors.flatten(params), tensors.flatten(made), places)


def narrowed(
  config: ml_collections.ConfigDict,
  width: int,
  layers: Sequence[int] | None = None,
  *,
  mlp_width: int = 0,
) -> ml_collections.ConfigDict:
  """The config of `narrow`.

  Raises:
    ConfigError: no such width or layer; the heads of a layer do not divide it,
      or would be of odd width and have rotary positions; a part of a share
      group; a reversible model.
  """
  own = build.layer_configs(config)
  chosen = sorted(set(range(len(own)) if layers is None else layers))
  _check(config, own, width, chosen)
  rows = {index: row.to_dict() for index, row in config.model.layers.items()}
  for index in chosen:
    before = own[index].bottleneck or config.model.width
    scaled = max(round(own[index].mlp_width * width / before), 1)
    rows[str(index)] = {
      **rows.get(str(index), {}),
      'bottleneck': width,
      'mlp_width': mlp_width or scaled,
    }
  return config_lib.changed(config, {'model.layers': rows})


def _joined(before, made, places):
  """What stands outside of these blocks as it was, the rest as it is made."""
  params = {}
  for path, x in made.items():
    source = path
    if path.startswith(places):
      source = _outer(path, before)
    params[path] = np.asarray(x) if source is None else before[source]
  return flax.traverse_util.unflatten_dict(params, sep='/')


def _outer(path, before):
  """Where the outer norm of a block was; None for what is in the block."""
  if f'/{_OUTER_NORM}/' not in path:
    return None
  if path in before:
    return path
  return path.replace(f'/{_OUTER_NORM}/', f'/{_PLAIN_NORM}/')


def _check(config, layers, width, chosen):
  model = config.model
  if not 1 <= width < model.width:
    raise ConfigError(
      f'a bottleneck is from 1 to {model.width - 1} wide in a model of width '
      f'{model.width}, not {width}.'
    )
  if model.reversible:
    raise ConfigError(
      'a reversible model has no bottlenecks: its blocks have no branches of '
      'the stream then.'
    )
  for index in chosen:
    if index not in range(len(layers)):
      raise ConfigError(
        f'there is no layer {index}: the model has layers 0 to '
        f'{len(layers) - 1}.'
      )
    share = layers[index].share
    group = [i for i, layer in enumerate(layers) if layer.share == share]
    if share and not set(group) <= set(chosen):
      raise ConfigError(
        f'layer {index} shares its parameters with layers {group}, which need '
        'one width.\nName all of them or none.'
      )
    row = model.layers.get(str(index), {})
    if not (model.qkv_width or 'head_width' in row):
      _check_heads(model, index, width, row.get('num_heads', model.num_heads))


def _check_heads(model, index, width, num_heads):
  step = num_heads * (2 if model.position == 'rotary' else 1)
  if width % step:
    near = [n * step for n in (width // step, width // step + 1)]
    fitting = [str(n) for n in near if 0 < n < model.width]
    advice = f'Use for example {" or ".join(fitting)}' if fitting else ''
    even = ' of even width' if step > num_heads else ''
    raise ConfigError(
      f'a bottleneck of width {width} is no whole number of the {num_heads} '
      f'heads{even} of layer {index}.\n'
      f'{advice or "Prune heads first"}.'
    )
