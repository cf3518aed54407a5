"""What a program costs, counted from its jaxpr; nothing is run or compiled.

XLA's own `cost_analysis` counts the body of a loop once, whatever its length
(jax issue 18672), so a scan over the keys would make exact attention look
linear. Here a `scan` counts its length.

Counted are the operations that dominate: products (2 for each multiply-add of
`dot_general` and convolutions), FFTs (5 n log2 n), triangular solves (n^2 for
each right-hand side), sorts (n log2 n), and one for each number that an
elementwise operation or reduction makes or reads. Moving numbers (reshape,
gather, slice, scatter without addition) counts nothing.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

_FREE = frozenset(
  (
    *('broadcast_in_dim', 'reshape', 'transpose', 'squeeze', 'expand_dims'),
    *('slice', 'dynamic_slice', 'dynamic_update_slice', 'concatenate', 'pad'),
    *('gather', 'scatter', 'rev', 'iota', 'convert_element_type', 'copy'),
    *('device_put', 'optimization_barrier', 'stop_gradient', 'split'),
    *('random_bits', 'random_wrap', 'random_unwrap', 'random_fold_in'),
    *('bitcast_convert_type', 'real', 'imag', 'copy_p', 'name'),
    *('sharding_constraint', 'mesh_cast', 'random_seed', 'random_split'),
  )
)
_REDUCTIONS = ('reduce_', 'arg', 'cum')


@dataclasses.dataclass(frozen=True)
class Count:
  """Operations of a program.

  Attributes:
    products: floating point operations of matrix products and convolutions.
    others: all other counted operations.
    is_bounded: False if a loop has no static length; it counts once.
  """

  products: float
  others: float
  is_bounded: bool = True

  @property
  def total(self) -> float:
    return self.products + self.others

  def __add__(self, other: 'Count') -> 'Count':
    return Count(
      self.products + other.products,
      self.others + other.others,
      self.is_bounded and other.is_bounded,
    )

  def times(self, number: float) -> 'Count':
    return Count(number * self.products, number * self.others, self.is_bounded)


NOTHING = Count(0.0, 0.0)


def count(function: Callable, *args: Any, **kwargs: Any) -> Count:
  """Operations of one call.

  Args:
    function: traceable by jax.
    *args, **kwargs: arrays or `jax.ShapeDtypeStruct`s.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def of_traced(traced: jax.stages.Traced) -> Count:
  """`count` of what `jax.jit(...).trace(...)` gave, without tracing again."""
  return _of_jaxpr(traced.jaxpr.jaxpr)


def _of_jaxpr(jaxpr) -> Count:
  return sum((_of_equation(e) for e in jaxpr.eqns), NOTHING)


def _of_equation(equation) -> Count:
  name, params = equation.primitive.name, equation.params
  if name in _FREE:
    return NOTHING
  if name in _RULES:
    return _RULES[name](equation)
  inner = [_inner(value) for value in params.values()]
  inner = [jaxpr for jaxpr in inner if jaxpr is not None]
  if inner:
    # pjit, custom_vjp_call, checkpoint and their like: one call of one body.
    return _of_jaxpr(inner[0])
  if name.startswith(_REDUCTIONS):
    return Count(0.0, _size(equation.invars[0]))
  return Count(0.0, sum(_size(v) for v in equation.outvars))


def _dot_general(equation) -> Count:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return Count(2.0 * depth * _size(equation.outvars[0]), 0.0)


def _conv(equation) -> Count:
  kernel = equation.invars[1].aval.shape
  out_axis = equation.params['dimension_numbers'].rhs_spec[0]
  depth = math.prod(kernel) / kernel[out_axis]
  return Count(2.0 * depth * _size(equation.outvars[0]), 0.0)


def _fft(equation) -> Count:
  length = math.prod(equation.params['fft_lengths'])
  size = max(_size(equation.invars[0]), _size(equation.outvars[0]))
  return Count(0.0, 5.0 * size * math.log2(max(length, 2)))


def _solve(equation) -> Count:
  matrix, right = (v.aval.shape for v in equation.invars)
  return Count(float(matrix[-1]) * math.prod(right), 0.0)


def _sort(equation) -> Count:
  length = equation.invars[0].aval.shape[equation.params['dimension']]
  size = _size(equation.invars[0])
  return Count(0.0, size * math.log2(max(length, 2)))


def _scan(equation) -> Count:
  body = _of_jaxpr(equation.params['jaxpr'].jaxpr)
  return body.times(equation.params['length'])


def _while(equation) -> Count:
  body = _of_jaxpr(equation.params['body_jaxpr'].jaxpr)
  return dataclasses.replace(body, is_bounded=False)


def _cond(equation) -> Count:
  branches = [_of_jaxpr(b.jaxpr) for b in equation.params['branches']]
  return max(branches, key=lambda branch: branch.total)


_RULES = {
  'dot_general': _dot_general,
  'conv_general_dilated': _conv,
  'fft': _fft,
  'triangular_solve': _solve,
  'sort': _sort,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
}


def _inner(value):
  """The jaxpr in a parameter of an equation, if it is one."""
  jaxpr = getattr(value, 'jaxpr', value)
  return jaxpr if hasattr(jaxpr, 'eqns') else None


def _size(variable) -> float:
  return float(math.prod(getattr(variable.aval, 'shape', ())))
