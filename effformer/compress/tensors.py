"""Parameters as codes: which are rounded, as which matrix, by which plan.

Every parameter that multiplies is a matrix [k, n] of k inputs and n outputs:
a dense kernel; the projections of queries, keys and values [D, H, K] with
n = H K; their output [H, K, D] with k = H K. A table of vectors (embedding,
positions, types) has the vectors as outputs, so that a channel is a row of it.
Vectors (biases, norms) stay as they are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from effformer.compress import grid as grids
from effformer.compress import packing, patterns
from effformer.compress.grid import Grid, scales_shape
from effformer.errors import ConfigError

# Paths of parameters to grids; what is not in it stays float32.
Plan = Mapping[str, Grid]
_TABLES = ('embedding', 'positions', 'extra_tokens')


@flax.struct.dataclass
class QTensor:
  """A parameter as codes.

  Attributes:
    codes: int8 or uint8 [k, n]; those that a pattern leaves out are 0 here,
      and only in memory.
    scale, zero: see `grid.Scales`.
    grid: what it is rounded to.
    shape: of the parameter.
    is_table: whether its rows are the outputs.
    inputs: s_K, where codes are of diag(s) W and the inputs x / s; empty for 1.
  """

  codes: jax.Array
  scale: jax.Array
  zero: jax.Array
  grid: Grid = flax.struct.field(pytree_node=False)
  shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
  is_table: bool = flax.struct.field(pytree_node=False)
  inputs: jax.Array = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.float32)
  )

  @property
  def packed_bytes(self) -> int:
    """Bytes of codes, places, scales and zero points as they are stored."""
    count, grid = self.codes.size, self.grid
    total = 0
    if grid.keep:
      inputs, outputs = self.codes.shape
      count = patterns.num_stay(inputs, grid.keep, grid.of) * outputs
      total = packing.num_bytes(count, patterns.place_bits(grid.of))
    total += packing.num_bytes(count, grid.bits)
    total += 4 * (self.scale.size + self.inputs.size)
    return total + (0 if self.grid.symmetric else self.zero.size)


def is_rounded(path: str, x: Any) -> bool:
  """Whether a parameter can be rounded: one that multiplies."""
  name = path.rpartition('/')[2]
  return np.ndim(x) >= 2 and (name == 'kernel' or name in _TABLES)


def is_table(path: str) -> bool:
  """Whether a parameter is a table of vectors."""
  return path.rpartition('/')[2] in _TABLES


def code_type(grid: Grid) -> jnp.dtype:
  """What codes in memory are."""
  return jnp.dtype(jnp.int8 if grid.low < 0 else jnp.uint8)


def uniform_plan(
  params: Any, grid: Grid, *, tables: Grid | None = None
) -> dict[str, Grid]:
  """The same grid for all that can be rounded.

  Args:
    params: of a model.
    grid: of kernels.
    tables: of tables of vectors; None for `grid`.
  """
  return {
    path: (tables or grid) if is_table(path) else grid
    for path, x in flatten(params).items()
    if is_rounded(path, x)
  }


def quantise(
  params: Any,
  plan: Plan,
  *,
  found: Mapping[str, grids.Scales] | None = None,
  factors: Mapping[str, jax.Array] | None = None,
) -> Any:
  """The parameters, those of the plan as `QTensor`.

  Args:
    params: of a model.
    plan: what is rounded.
    found: scales that were found in another way than by the rule of the grid,
      such as learned ones; of some paths of the plan or of all.
    factors: s_K of some matrices W of the plan: diag(s) W is rounded, and s is
      kept beside its codes, so that what they stand for is near W.

  Raises:
    ConfigError: the plan names what is not there or cannot be rounded, or
      factors are of what is not in it.
    ValueError: there are scales of what the plan lacks, or of another shape.
  """
  found, factors = dict(found or {}), dict(factors or {})
  check_known(found, plan)
  for path in factors:
    if path not in plan:
      raise ConfigError(
        f'there are factors for the inputs of {path}, which the plan does not '
        'round.\nLeave them out: such a matrix needs none.'
      )
  return _changed(
    params,
    plan,
    lambda path, x, grid: _quantised(
      path, x, grid, found.get(path), factors.get(path)
    ),
  )


def mapped(
  params: Any, plan: Plan, function: Callable[[str, jax.Array, Grid], jax.Array]
) -> Any:
  """The parameters, those of the plan changed as matrices.

  Args:
    params: of a model.
    plan: what is changed.
    function: of path, matrix [k, n] and grid: the new matrix.

  Raises:
    ConfigError: see `quantise`.
  """

  def change(path, x, grid):
    w_KN = function(path, matrix(path, jnp.asarray(x)), grid)
    return from_matrix(w_KN, tuple(x.shape), is_table(path))

  return _changed(params, plan, change)


def check_known(paths: Mapping[str, Any], plan: Plan) -> None:
  """Raises a ValueError if one of the paths is not in the plan."""
  for path in paths:
    if path not in plan:
      raise ValueError(f'there are scales of {path}, which the plan lacks')


def dequantise(params: Any) -> Any:
  """The parameters as numbers, float32."""
  return jax.tree.map(
    lambda x: dequantised(x) if isinstance(x, QTensor) else x,
    params,
    is_leaf=lambda x: isinstance(x, QTensor),
  )


def dequantised(x: QTensor) -> jax.Array:
  """What one tensor of codes stands for."""
  return from_matrix(decoded(x), x.shape, x.is_table)


def decoded(x: QTensor) -> jax.Array:
  """What one tensor of codes stands for, as w_KN."""
  w_KN = grids.decode(x.codes, grids.Scales(x.scale, x.zero), x.grid)
  return w_KN / x.inputs[:, None] if x.inputs.size else w_KN


def matrix(path: str, x: jax.Array) -> jax.Array:
  """A parameter as [k, n]; see the module."""
  return x.T if is_table(path) else x.reshape(matrix_shape(path, x.shape))


def matrix_shape(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
  """(k, n) of a parameter of this shape."""
  if is_table(path):
    return math.prod(shape[1:]), shape[0]
  # Queries, keys and values have several axes of outputs, what joins the
  # heads has several of inputs.
  is_joining = path.endswith('/mixer/out/kernel')
  k = math.prod(shape[:-1]) if is_joining else shape[0]
  return k, math.prod(shape) // k


def checked_factor(path: str, s_K: jax.Array, inputs: int) -> jax.Array:
  """Factors of the inputs of a matrix, float32 [k].

  Raises:
    ValueError: they are of another shape, or not above 0.
  """
  s_K = jnp.asarray(s_K, jnp.float32)
  if s_K.shape != (inputs,) or not bool(jnp.all((s_K > 0) & (s_K < jnp.inf))):
    raise ValueError(
      f'{path} has {inputs} inputs, each of which needs a factor above 0; got '
      f'{s_K.shape} from {s_K.min()} to {s_K.max()}'
    )
  return s_K


def from_matrix(
  w_KN: jax.Array, shape: tuple[int, ...], is_table: bool
) -> jax.Array:
  """The parameter of a matrix; the inverse of `matrix`."""
  return w_KN.T if is_table else w_KN.reshape(shape)


def _changed(params, plan, change):
  flat = flatten(params)
  for path in plan:
    if path not in flat:
      raise ConfigError(
        f'the plan names {path}, which the model does not have.'
      )
    if not is_rounded(path, flat[path]):
      raise ConfigError(
        f'the plan names {path} {np.shape(flat[path])}, which is no matrix and '
        'is not rounded.\nLeave it out.'
      )
  return flax.traverse_util.unflatten_dict(
    {
      path: change(path, x, plan[path]) if path in plan else x
      for path, x in flat.items()
    },
    sep='/',
  )


def _quantised(path, x, grid, found, s_K):
  w_KN, more = matrix(path, jnp.asarray(x)), {}
  groups = scales_shape(w_KN.shape, grid)
  if found is not None and found.scale.shape != groups:
    raise ValueError(
      f'the scales of {path} have to be {groups}, got {found.scale.shape}'
    )
  if s_K is not None:
    s_K = checked_factor(path, s_K, w_KN.shape[0])
    w_KN, more = w_KN * s_K[:, None], {'inputs': s_K}
  codes, scale, zero = _encoded(w_KN, found, grid)
  is_rows = is_table(path)
  return QTensor(codes, scale, zero, grid, tuple(x.shape), is_rows, **more)


@functools.partial(jax.jit, static_argnames='grid')
def _encoded(w_KN, found, grid):
  found = grids.scales(w_KN, grid) if found is None else found
  codes_KN = grids.encode(w_KN, found, grid)
  return codes_KN.astype(code_type(grid)), found.scale, found.zero


def flatten(params: Any) -> dict[str, Any]:
  """Parameters by path, 'encoder/layer_0/mlp/in/kernel'."""
  return flax.traverse_util.flatten_dict(params, sep='/')
