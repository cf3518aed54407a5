"""What enters each dense layer of an encoder, on calibration texts.

Layers are run one after the other and not scanned, so that inputs can be
looked at; padding is not counted.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.models import encoder
from effformer.models.block import Block
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
    ValueError: there are no batches, or layers cannot be run one by one.
  """
  if module.reversible or module.extra_tokens:
    raise ValueError(
      'calibration needs an encoder with one stream and no extra tokens, got '
      f'reversible={module.reversible} and extra_tokens={module.extra_tokens}'
    )
  found: dict[str, Moments] = {}
  for batch in batches:
    x_BTD, tokens = _embedded(module, params, *batch)
    names = encoder.names_of(module.layers)
    for name, layer in zip(names, module.layers, strict=True):
      block = Block(
        layer,
        norm_order=module.norm_order,
        norm_epsilon=module.norm_epsilon,
        dtype=module.dtype,
        parent=None,
      )
      x_BTD, own = _watched(block, params['encoder'][name], x_BTD, tokens)
      for path, moments in own.items():
        path = f'encoder/{name}/{path}/kernel'
        before = found.get(path)
        found[path] = moments if before is None else _sum(before, moments)
  if not found:
    raise ValueError('calibration needs at least one batch')
  return found


@functools.partial(jax.jit, static_argnums=0)
def _embedded(module, params, *batch):
  return module.apply({'params': params}, *batch, method='embedded')


@functools.partial(jax.jit, static_argnums=0)
def _watched(block, params, x_BTD, tokens):
  seen = {}

  def watch(call, arguments, keywords, context):
    is_dense = isinstance(context.module, nn.Dense | nn.DenseGeneral)
    if is_dense and context.method_name == '__call__':
      # Of the output projection, heads and their widths are one axis.
      x_BTK = arguments[0].reshape(*x_BTD.shape[:2], -1)
      path = '/'.join(context.module.path)
      seen[path] = _moments(x_BTK.astype(jnp.float32), tokens.keep_BT)
    return call(*arguments, **keywords)

  with nn.intercept_methods(watch):
    y_BTD, _ = block.apply(
      {'params': params}, x_BTD, tokens=tokens, deterministic=True
    )
  return y_BTD, seen


def _moments(x_BTK, keep_BT):
  x_LK = jnp.where(keep_BT[..., None], x_BTK, 0.0).reshape(-1, x_BTK.shape[-1])
  absolute_LK = jnp.abs(x_LK)
  return Moments(
    x_LK.T @ x_LK,
    absolute_LK.max(axis=0),
    absolute_LK.sum(axis=0),
    keep_BT.sum(),
  )


def _sum(a, b):
  return Moments(
    a.gram_KK + b.gram_KK,
    jnp.maximum(a.largest_K, b.largest_K),
    a.absolute_K + b.absolute_K,
    a.count + b.count,
  )
