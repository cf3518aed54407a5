"""The line nearest to each norm, channel by channel, on calibration texts.

Of what a norm makes of x, y, over all real tokens

    scale = cov(x, y) / var(x)          bias = mean(y) - scale mean(x)

has the least sum of squares (scale x + bias - y)^2 in each channel. A norm that
were the same for all tokens would be this line.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effformer.compress import inside
from effformer.compress.calibrate import Batch
from effformer.models import encoder
from effformer.models.predictor import Predictor
from effformer.models.trunk import Trunk
from effformer.shapes import Array

_IN_BLOCKS = (
  *(('norm_mixer',), ('norm_mlp',)),
  *(('bottleneck', 'norm_narrow'), ('bottleneck', 'norm_widen')),
)
# Relative to its mean, the deviation of a channel that is constant.
_SAME = 1e-6
_OUTSIDE = (('norm_in',), ('encoder', 'norm_out'), ('head_norm',))


class Line(NamedTuple):
  """`scale * x + bias`, float32."""

  scale_D: np.ndarray
  bias_D: np.ndarray


class _Sums(NamedTuple):
  """Of inputs x and outputs y of a norm: means, and sums about them."""

  count: Array
  mean_x_D: Array
  mean_y_D: Array
  xx_D: Array
  xy_D: Array


def fit(
  module: Trunk, params: Any, batches: Iterable[Batch]
) -> dict[str, Line]:
  """The line of each norm of a model as it is now.

  Args:
    module: the model; a predictor also for the norm of its head.
    params: numbers.
    batches: (ids_BT, lengths_B) or (ids_BT, lengths_B, types_BT).

  Returns:
    By the place of the norm, 'encoder/layer_0/norm_mlp'. A channel that is the
    same at all tokens has scale 0.

  Raises:
    ConfigError: layers cannot be looked at, see `inside.check`.
    ValueError: there are no batches.
  """
  found: dict[str, _Sums] = {}
  for batch in batches:
    seen = _seen(module, params, *batch)
    seen = jax.tree.map(lambda x: np.asarray(x, np.float64), seen)
    found = _joined(found, seen)
  if not found:
    raise ValueError('calibration needs at least one batch')
  return {place: _line(sums) for place, sums in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _seen(module, params, ids_BT, lengths_B, types_BT=None):
  names, found = encoder.layer_names(module.layers), {}
  _, tokens = module.apply(
    {'params': params}, ids_BT, lengths_B, types_BT, method='embedded'
  )

  def note(place, x_BTD, y_BTD):
    nonlocal found
    own = _sums(
      x_BTD.astype(jnp.float32), y_BTD.astype(jnp.float32), tokens.keep_BT
    )
    found = _joined(found, {place: own})

  def see(call):
    if call.module.path in _IN_BLOCKS and call.method == '__call__':
      place = ('encoder', names[call.layer], *call.module.path)
      note('/'.join(place), call.arguments[0], call.output)

  def watch(call, arguments, keywords, context):
    output = call(*arguments, **keywords)
    if context.module.path in _OUTSIDE and context.method_name == '__call__':
      note('/'.join(context.module.path), arguments[0], output)
    return output

  # What stands on the trunk of another model has no norm.
  method = None if isinstance(module, Predictor) else 'vectors'
  with nn.intercept_methods(watch):
    inside.apply(
      module, params, see, ids_BT, lengths_B, types_BT=types_BT, method=method
    )
  return found


def _sums(x_BTD, y_BTD, keep_BT):
  keep_BT1 = keep_BT[..., None]
  count = keep_BT.sum()

  def total(z_BTD):
    return jnp.where(keep_BT1, z_BTD, 0.0).sum(axis=(0, 1))

  mean_x_D, mean_y_D = (
    total(z_BTD) / jnp.maximum(count, 1) for z_BTD in (x_BTD, y_BTD)
  )
  off_BTD = x_BTD - mean_x_D[None, None]
  return _Sums(
    count,
    mean_x_D,
    mean_y_D,
    total(off_BTD**2),
    total(off_BTD * (y_BTD - mean_y_D[None, None])),
  )


def _joined(a, b):
  """Sums of both; those of a norm that is in both are put together."""
  return {**a, **b} | {path: _both(a[path], b[path]) for path in a if path in b}


def _both(a, b):
  """Chan, Golub & LeVeque 1983, equation 2.1: no large numbers cancel."""
  count = a.count + b.count
  part = b.count / (count + (count == 0))
  x_D, y_D = b.mean_x_D - a.mean_x_D, b.mean_y_D - a.mean_y_D
  return _Sums(
    count,
    a.mean_x_D + part * x_D,
    a.mean_y_D + part * y_D,
    a.xx_D + b.xx_D + a.count * part * x_D**2,
    a.xy_D + b.xy_D + a.count * part * x_D * y_D,
  )


def _line(sums):
  # What is left of a constant are the last bits of its mean.
  rest_D = sums.count * (_SAME * sums.mean_x_D) ** 2
  scale_D = np.divide(
    sums.xy_D, sums.xx_D, out=np.zeros_like(sums.xy_D), where=sums.xx_D > rest_D
  )
  bias_D = sums.mean_y_D - scale_D * sums.mean_x_D
  return Line(scale_D.astype(np.float32), bias_D.astype(np.float32))
