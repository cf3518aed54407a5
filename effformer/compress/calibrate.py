"""What enters each dense layer of an encoder, on calibration texts.

Padding is not counted.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.compress import inside
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
    ValueError: there are no batches, layers cannot be looked at, or what enters
      a dense layer is no token (global tokens, mixtures of tokens).
  """
  found: dict[str, Moments] = {}
  for batch in batches:
    found = _joined(found, _seen(module, params, *batch))
  if not found:
    raise ValueError('calibration needs at least one batch')
  return found


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
