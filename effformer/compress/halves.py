"""A model whose matrices are sums of two, which are rounded one by one.

    W' = u' + v'

u stands where the matrix stood, and v at the same path under `OTHER`:

    encoder/layer_0/mlp/in/kernel
    other_half/encoder/layer_0/mlp/in/kernel

so that all that goes by paths (plans, codes, files, weight decay) takes both.
A network asks for the sum, `joined`: the two halves of a dense layer of
BinaryBERT (Bai et al. 2021, 2012.15701), whose outputs are added, are the layer
of u' + v'. Half of the bias twice is the bias, which stays one vector here.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from effformer.compress import split, tensors
from effformer.compress.tensors import Plan, QTensor
from effformer.tasks.task import Task

OTHER = 'other_half'
_BEFORE = f'{OTHER}/'
_FUNCTIONS = ('objective', 'measure', 'predict', 'embed')


def of(params: Any, plan: Plan) -> Any:
  """The parameters, those that a plan makes ternary as halves (`split.split`).

  Rounded by the same plan with `split.binary` of their grids, halves add up to
  the ternary values; as they are, to the parameters.

  Args:
    params: numbers, none of them halves.
    plan: of other rules, too, which stay whole.

  Raises:
    ConfigError: see `tensors.quantise`.
  """
  ternary = {path: own for path, own in plan.items() if own.rule == 'ternary'}
  other = {}

  def first(path, w_KN, grid):
    found = split.split(w_KN, grid)
    other[path] = found.second_KN
    return found.first_KN

  whole = tensors.mapped(params, ternary, first)
  flat = tensors.flatten(whole)
  second = {
    path: tensors.from_matrix(w_KN, flat[path].shape, tensors.is_table(path))
    for path, w_KN in other.items()
  }
  made = {**whole, OTHER: flax.traverse_util.unflatten_dict(second, sep='/')}
  return jax.device_get(made)


def joined(
  params: Any, add: Callable[[Any, Any], Any] = operator.add
) -> dict[str, Any]:
  """The parameters that a network asks for; those of no halves as they are.

  Args:
    params: numbers, or what `add` takes.
    add: both halves -> what stands for their sum.
  """
  if OTHER not in params:
    return params
  flat = tensors.flatten(params)
  whole = {path: x for path, x in flat.items() if not is_other(path)}
  for path, x in flat.items():
    if is_other(path):
      whole[place(path)] = add(whole[place(path)], x)
  return flax.traverse_util.unflatten_dict(whole, sep='/')


def is_other(path: str) -> bool:
  """Whether a path is that of a second half."""
  return path.startswith(_BEFORE)


def place(path: str) -> str:
  """Where the network has the matrix that a path is a half of, or is."""
  return path.removeprefix(_BEFORE)


def doubled(task: Task, params: Any) -> Task:
  """The task of a model that has these halves; without any, the task itself.

  Its parameters are halves from `init` on, and its network has their sum.
  """
  if OTHER not in params:
    return task
  paths = [path for path in tensors.flatten(params) if is_other(path)]

  def init(key):
    flat = dict(tensors.flatten(task.init(key)))
    flat |= {path: jnp.zeros_like(flat[place(path)]) for path in paths}
    return flax.traverse_util.unflatten_dict(flat, sep='/')

  def of_sums(function):
    return lambda params, *rest: function(joined(params), *rest)

  functions = {name: getattr(task, name) for name in _FUNCTIONS}
  return dataclasses.replace(
    task,
    init=init,
    **{name: of_sums(own) for name, own in functions.items() if own},
  )


def check(params: Any) -> None:
  """Raises a ValueError where a second half has no first one like it."""
  flat = tensors.flatten(params)
  for path, x in flat.items():
    first = flat.get(place(path))
    if first is None:
      raise ValueError(f'there is {path} without the half {place(path)}')
    if np.shape(first) != np.shape(x):
      raise ValueError(
        f'{path} is {np.shape(x)}, and its half {place(path)} {np.shape(first)}'
      )
    if isinstance(first, QTensor) != isinstance(x, QTensor):
      raise ValueError(f'of {place(path)} one half is codes, the other is not')
