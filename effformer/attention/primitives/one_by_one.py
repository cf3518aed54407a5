"""Rows, the heads of all examples: together under `vmap`, or one by one.

One row at a time fills the cache of a CPU, and needs the memory of one row; all
together fill an accelerator. The two differ in the last bits.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

# Numbers in an array of a row from which a CPU takes rows one by one.
FROM = 1 << 16
# Numbers in work at once: what stays in the cache of a CPU, of a row that is
# alone and of all rows together, and what fills an accelerator.
ALONE, TOGETHER, ACCELERATOR = 1 << 17, 1 << 19, 1 << 24


def is_faster(*shape: int) -> bool:
  """Whether this is a place to take rows with arrays of this shape one by one.

  Never on several devices, over which a loop over rows cannot be spread.
  """
  is_one_cpu = jax.default_backend() == 'cpu' and jax.device_count() == 1
  return is_one_cpu and math.prod(shape) >= FROM


def numbers(num_rows: int, is_alone: bool = False) -> int:
  """How many numbers of a row a primitive should work on at once.

  Args:
    num_rows: rows that `vmap` takes together.
    is_alone: whether rows are taken one by one all the same.
  """
  if is_alone:
    return ALONE
  on_cpu = jax.default_backend() == 'cpu'
  return (TOGETHER if on_cpu else ACCELERATOR) // num_rows


def rows(function: Callable, is_so: bool = True) -> Callable:
  """`function`, of which `vmap` makes a loop; not to be differentiated."""
  return jax.custom_batching.sequential_vmap(function) if is_so else function


def forward_rows(function: Callable) -> Callable:
  """`rows`, but where a gradient is asked for they are taken together.

  What is kept for the gradient would be copied out of the loop. There is no
  derivative in forward mode.
  """

  @jax.custom_vjp
  def call(*inputs):
    return jax.tree.map(_leading, rows(function)(*inputs))

  def forward(*inputs):
    output, pull = jax.vjp(function, *inputs)
    return jax.tree.map(_leading, output), pull

  call.defvjp(forward, lambda pull, cotangent: pull(cotangent))
  return call


@jax.custom_batching.custom_vmap
def _leading(x):
  """x, in which the axis of a `vmap` comes first.

  `vmap` of a custom gradient takes for granted that the function and its
  forward pass leave that axis in the same place, and mixes up axes if not.
  """
  return x


@_leading.def_vmap
def _leading_rows(axis_size, in_batched, x):
  del axis_size
  return _leading(x), in_batched[0]


def recomputed_rows(
  function: Callable, inputs: Any, constants: Any, is_so: bool
) -> Any:
  """`rows` of `function(inputs, constants)`, with a gradient of the inputs.

  Nothing but these is kept for it, so `function` should be cheap.
  """

  @jax.custom_vjp
  def call(inputs, constants):
    return rows(function, is_so)(inputs, constants)

  def forward(*arguments):
    return call(*arguments), arguments

  def backward(arguments, cotangent):
    def pull(inputs, constants, cotangent):
      return jax.vjp(lambda x: function(x, constants), inputs)[1](cotangent)[0]

    return rows(pull, is_so)(*arguments, cotangent), None

  call.defvjp(forward, backward)
  return call(inputs, constants)
