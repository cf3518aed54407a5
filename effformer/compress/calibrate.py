"""What enters each dense layer of an encoder, on calibration texts.

Padding is not counted.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import attention
from effformer.compress import inside
from effformer.errors import ConfigError
from effformer.models import encoder
from effformer.models.trunk import Trunk
from effformer.shapes import Array


class Moments(NamedTuple):
  """Of the inputs x of one dense layer, over real tokens.

  Attributes:
    gram_KK: sum of x x^T, float32.
    largest_K: greatest |x| of each input.
    absolute_K: sum of |x|.
    count: number of tokens.
  """

  gram_KK: Array
  largest_K: Array
  absolute_K: Array
  count: Array


Batch = tuple[Array, Array] | tuple[Array, Array, Array]


def collect(
  module: Trunk, params: Any, batches: Iterable[Batch]
) -> dict[str, Moments]:
  """Moments of the inputs of all dense layers of the encoder.

  Args:
    module: the model, on a `Trunk`.
    params: numbers.
    batches: (ids_BT, lengths_B) or (ids_BT, lengths_B, types_BT).

  Returns:
    By the path of the kernel, 'encoder/layer_0/mlp/in/kernel'. Layers of one
    share group are one kernel.

  Raises:
    ConfigError: see `check`.
    ValueError: there are no batches.
  """
  check(module)
  found: dict[str, Moments] = {}
  for batch in batches:
    found = _joined(found, _seen(module, params, *batch))
  if not found:
    raise ValueError('calibration needs at least one batch')
  return found


def check(module: Trunk) -> None:
  """Refuses a model whose inputs of dense layers cannot be collected.

  Raises:
    ConfigError: layers cannot be looked at (`inside.check`), or what enters a
      dense layer is no token (global tokens, mixtures of tokens).
  """
  inside.check(module)
  for index, layer in enumerate(module.layers):
    mixer = attention.build(layer.mixer, **dict(layer.settings))
    if not mixer.projects_tokens():
      raise ConfigError(
        f'layer {index} is {layer.mixer}, which projects a choice or mixtures '
        'of the tokens, and calibration needs one input for each token.\n'
        "Use what needs no calibration, such as method='nearest', or another "
        'attention.'
      )


@functools.partial(jax.jit, static_argnums=0)
def _seen(module, params, ids_BT, lengths_B, types_BT=None):
  names, found = encoder.layer_names(module.layers), {}

  def see(call):
    nonlocal found
    is_dense = isinstance(call.module, nn.Dense | nn.DenseGeneral)
    if is_dense and call.method == '__call__':
      keep_BT = call.tokens.keep_BT
      # Of the output projection, heads and their widths are one axis.
      path = '/'.join(call.module.path)
      if call.arguments[0].shape[:2] != keep_BT.shape:
        raise ValueError(
          f'calibration needs one input for each token, but {path} has '
          f'{call.arguments[0].shape} for tokens {keep_BT.shape}'
        )
      x_BTK = call.arguments[0].reshape(*keep_BT.shape, -1)
      path = '/'.join(('encoder', names[call.layer], path))
      own = _moments(x_BTK.astype(jnp.float32), keep_BT)
      found = _joined(found, {f'{path}/kernel': own})

  inside.apply(
    module, params, see, ids_BT, lengths_B, types_BT=types_BT, method='vectors'
  )
  return found


def _moments(x_BTK, keep_BT):
  x_LK = jnp.where(keep_BT[..., None], x_BTK, 0.0).reshape(-1, x_BTK.shape[-1])
  absolute_LK = jnp.abs(x_LK)
  return Moments(
    x_LK.T @ x_LK,
    absolute_LK.max(axis=0),
    absolute_LK.sum(axis=0),
    keep_BT.sum(),
  )


def _joined(a, b):
  """Moments of both; those of a kernel that is in both are added."""
  return {**a, **b} | {path: _sum(a[path], b[path]) for path in a if path in b}


def _sum(a, b):
  return Moments(
    a.gram_KK + b.gram_KK,
    jnp.maximum(a.largest_K, b.largest_K),
    a.absolute_K + b.absolute_K,
    a.count + b.count,
  )
