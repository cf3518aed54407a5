"""A model whose parameters are codes, run as it is.

    y = running.apply(model.module, model.params, ids_BT, lengths_B)

The calls of dense layers and embeddings whose kernels are `QTensor`s are
answered here, from the codes: the arguments of the compiled program, and what
lies in memory between calls, are codes.

With `activations=None` a kernel is decoded at each call, and multiplied as
numbers. That makes a model small; it makes it no faster, since decoding comes
on top. With rounded activations integers are multiplied, see `int8`. Of a sum
of two matrices (`halves`) both are decoded and added, and multiplied once;
integers are multiplied twice.
"""

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from effformer.compress import halves, int8, tensors
from effformer.compress.tensors import QTensor
from effformer.errors import ConfigError
from effformer.models.predictor import Predictor
from effformer.shapes import Array

# Parameters that modules do not ask for by a call, and so are decoded first.
_READ_AT_ONCE = ('positions', 'extra_tokens')


@flax.struct.dataclass
class _Static:
  """A tensor of codes, and the scale of its inputs."""

  tensor: QTensor
  scale: jax.Array

  @property
  def shape(self):
    """Of the parameter, which mechanisms ask for."""
    return self.tensor.shape


@flax.struct.dataclass
class _Sum:
  """Two halves of a matrix."""

  parts: tuple[QTensor | _Static, QTensor | _Static]

  @property
  def shape(self):
    """Of the parameter."""
    return self.parts[0].shape


_Codes = QTensor | _Static | _Sum


def apply(
  module: nn.Module,
  params: Any,
  *args: Any,
  activations: str | Mapping[str, Array] | None = None,
  **kwargs: Any,
) -> Any:
  """`module.apply`, with parameters some of which are codes.

  Pure; under `jax.jit` the module is static, and so is a name of activations.

  Args:
    module: the network.
    params: numbers and `QTensor`s, some of them halves. Layers that are alike
      are compiled once where their grids are equal too.
    *args: of the module.
    activations: None for inputs of dense layers as they are; 'dynamic' for 8
      bits with a scale for each token; or static scales by paths of kernels,
      see `int8.static_scales`, one for both halves. Kernels that are not named
      have their inputs as they are; in a stream, name those of all layers or of
      none.
    **kwargs: of the module, and of `module.apply`, such as `method`.

  Raises:
    ConfigError: no such name, scales of what is no tensor of codes, or rounded
      inputs of what is codes of a codebook.
    ValueError: see `int8.product`.
  """
  is_dynamic = isinstance(activations, str)
  if is_dynamic and activations != 'dynamic':
    raise ConfigError(
      f"activations has to be None, 'dynamic' or scales, got {activations!r}."
    )
  ready = _ready(params, {} if is_dynamic else activations or {})

  def answer(call, arguments, keywords, context):
    own, method = context.module, context.method_name
    if isinstance(own, nn.Dense | nn.DenseGeneral) and method == '__call__':
      leaf = own.get_variable('params', 'kernel')
      if isinstance(leaf, _Codes):
        return _dense(own, leaf, arguments[0], is_dynamic)
    elif isinstance(own, nn.Embed) and method in ('setup', '__call__'):
      leaf = own.get_variable('params', 'embedding')
      if isinstance(leaf, _Codes):
        # The set-up would ask for an array.
        return None if method == 'setup' else _rows(own, leaf, arguments[0])
    elif isinstance(own, Predictor) and method == 'tied_logits':
      leaf = own.get_variable('params', 'embedding')['embedding']
      if isinstance(leaf, _Codes):
        return _over_last(leaf, arguments[0], is_dynamic)
    elif isinstance(own, Predictor) and method == 'narrowed':
      leaf = (own.get_variable('params', 'embedding_out') or {}).get('kernel')
      if isinstance(leaf, _Codes):
        return _over_outputs(leaf, arguments[0])
    return call(*arguments, **keywords)

  with nn.intercept_methods(answer):
    return module.apply({'params': ready}, *args, **kwargs)


def _ready(params, scales):
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  for path in scales:
    is_called = path.rpartition('/')[2] not in _READ_AT_ONCE
    is_whole = not halves.is_other(path)
    if not (isinstance(flat.get(path), QTensor) and is_called and is_whole):
      raise ConfigError(
        f'activations has a scale for {path}, which is no dense layer that is '
        'kept as codes.\nLeave it out.'
      )
  ready = {}
  for path, x in flat.items():
    if halves.place(path) in scales:
      scale = scales[halves.place(path)]
      x = _Static(x, jnp.asarray(scale, jnp.float32))
    elif isinstance(x, QTensor) and path.rpartition('/')[2] in _READ_AT_ONCE:
      x = tensors.dequantised(x)
    ready[path] = x
  return halves.joined(
    flax.traverse_util.unflatten_dict(ready, sep='/'),
    lambda a, b: _Sum((a, b)) if isinstance(a, _Codes) else a + b,
  )


def _dense(dense, leaf, x, is_dynamic):
  """What `nn.Dense` and `nn.DenseGeneral` give."""
  axis = getattr(dense, 'axis', -1)
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  kept = x.ndim - len(axes)
  inputs = math.prod(x.shape[kept:])
  codes = _tensor(_parts(leaf)[0]).codes
  is_last = sorted(a % x.ndim for a in axes) == list(range(kept, x.ndim))
  if not is_last or inputs != codes.shape[0]:
    raise ValueError(
      f'{"/".join(dense.path)} takes axes {axes} of {x.shape}, and its codes '
      f'are {codes.shape}'
    )
  dtype = dense.dtype or jnp.result_type(x, jnp.float32)
  x = x.reshape(*x.shape[:kept], inputs).astype(dtype)
  y = _over_last(leaf, x, is_dynamic, dense.precision)
  y = y.reshape(*y.shape[:-1], *leaf.shape[len(axes) :])
  if not dense.use_bias:
    return y
  bias = dense.get_variable('params', 'bias').astype(dtype)
  return y + bias.reshape((1,) * kept + bias.shape)


def _over_last(leaf, x, is_dynamic, precision=None):
  """The product with the last axis of x, in its type."""
  x_LK, parts = x.reshape(-1, x.shape[-1]), _parts(leaf)
  if is_dynamic or isinstance(parts[0], _Static):
    y_LN = _added(_product(x_LK, own) for own in parts)
  else:
    w_KN = _decoded(leaf).astype(x.dtype)
    y_LN = jnp.matmul(x_LK, w_KN, precision=precision)
  return y_LN.reshape(*x.shape[:-1], -1).astype(x.dtype)


def _product(x_LK, part):
  scale = part.scale if isinstance(part, _Static) else None
  return int8.product(x_LK, _tensor(part), scale)


def _over_outputs(leaf, x):
  """The product with the transpose, of inputs as they are.

  Its scales are of what is summed over, so that integers cannot be multiplied.
  """
  return x @ _decoded(leaf).astype(x.dtype).T


def _rows(embed, leaf, ids):
  """What `nn.Embed` gives; of the table only these rows are decoded."""
  return _added(_rows_of(embed, own, ids) for own in _parts(leaf))


def _rows_of(embed, part, ids):
  table = _tensor(part)
  number = table.shape[0]
  if number == 1:
    # It has this row for all ids.
    ids = jnp.zeros_like(ids)
  flat_L = ids.ravel()
  scale, zero = table.scale, table.zero
  if table.grid.group != 'tensor':
    scale, zero = (jnp.take(x, flat_L, axis=1) for x in (scale, zero))
  rows = table.replace(
    codes=jnp.take(table.codes, flat_L, axis=1), scale=scale, zero=zero
  )
  x_LD = tensors.decoded(rows).T
  # Codes have no NaN for an id that is not there.
  is_there_L = (flat_L >= -number) & (flat_L < number)
  x_LD = jnp.where(is_there_L[:, None], x_LD, jnp.nan)
  return x_LD.reshape(*ids.shape, -1).astype(embed.dtype or jnp.float32)


def _parts(leaf):
  """The matrices that a leaf is the sum of: two halves, or one."""
  return leaf.parts if isinstance(leaf, _Sum) else (leaf,)


def _added(parts):
  return functools.reduce(operator.add, parts)


def _decoded(leaf):
  return _added(tensors.decoded(_tensor(own)) for own in _parts(leaf))


def _tensor(part):
  return part.tensor if isinstance(part, _Static) else part
