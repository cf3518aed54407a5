"""Training of a model that is going to be rounded.

The loss is that of the rounded parameters, and gradients go straight through
the rounding to those that are kept as float32:

    loss(fake(params, plan))

With Quant-Noise (Fan et al. 2020, 2004.07320) only a random share of the
weights is rounded in a step, and the rest has an exact gradient. Afterwards
`tensors.quantise(params, plan)` has the very numbers of `fake`; where steps
were learned (`lsq`), `tensors.quantise(params, plan, found=scales(steps))`. On
another kind of device the last bits may differ.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from effformer.compress import grid as grids
from effformer.compress import lsq, tensors
from effformer.compress.grid import Scales
from effformer.compress.tensors import Plan
from effformer.errors import ConfigError
from effformer.shapes import Array
from effformer.tasks.task import Task

# By the path of the parameter.
Steps = Mapping[str, Array]


def fake(params: Any, plan: Plan, steps: Steps | None = None) -> Any:
  """The parameters, those of the plan rounded, with gradients.

  Args:
    params: numbers.
    plan: what is rounded.
    steps: see `initial_steps`; of some paths of the plan or of all. The others
      are rounded by the rule of their grid.

  Raises:
    ConfigError: see `tensors.quantise`.
    ValueError: there are steps of what the plan lacks.
  """
  rounded = _rounding(plan, steps)
  return tensors.mapped(params, plan, rounded)


def noisy(
  params: Any,
  plan: Plan,
  key: Array,
  share: float | Array,
  *,
  block: tuple[int, int] = (1, 1),
  steps: Steps | None = None,
) -> Any:
  """The parameters, a random share of those of the plan rounded.

  Each block is rounded with probability `share`. What is not has the gradient
  1. Scales are those of the whole group, whatever part of it is rounded.

  Args:
    params: numbers.
    plan: what may be rounded.
    key: another in each step. What is drawn for a parameter depends on this and
      its path alone.
    share: 0 to 1.
    block: inputs and outputs of a matrix [k, n] that are drawn together, 0 for
      all of them; those at the ends may be smaller.
    steps: see `fake`.

  Raises:
    ConfigError, ValueError: see `fake`.
    ValueError: a share or block that is none.
  """
  if isinstance(share, int | float) and not 0 <= share <= 1:
    raise ValueError(f'share has to be 0 to 1, got {share}')
  if min(block) < 0:
    raise ValueError(f'block has to be 0 or more, got {block}')
  rounded = _rounding(plan, steps)

  def mixed(path, w_KN, grid):
    own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    drawn_KN = _drawn(own_key, share, w_KN.shape, block)
    return jnp.where(drawn_KN, rounded(path, w_KN, grid), w_KN)

  return tensors.mapped(params, plan, mixed)


def rounded(task: Task, plan: Plan) -> Task:
  """The task of parameters that are rounded: its loss and its measures.

  What is trained stays float32; `tensors.quantise(params, plan)` of it is what
  was measured.
  """

  def objective(params, *rest):
    return task.objective(fake(params, plan), *rest)

  def measure(params, batch):
    return task.measure(fake(params, plan), batch)

  return dataclasses.replace(task, objective=objective, measure=measure)


def initial_steps(params: Any, plan: Plan) -> dict[str, Array]:
  """Steps of LSQ for the parameters of a plan, to be trained with them.

  They are scales: weight decay is not for them.

  Raises:
    ConfigError: see `tensors.quantise`; or no step can be learned for a grid.
  """
  steps = {}

  def start(path, w_KN, grid):
    # Weights have both signs, and learned steps no zero point.
    has_none = not grid.symmetric or grid.keep
    if has_none or grid.rule in ('ternary', 'sign', 'kmeans'):
      raise ConfigError(
        f'no step can be learned for {path} on {grid}.\nGive it a symmetric '
        "grid of rule 'extremes', without a pattern."
      )
    steps[path] = lsq.initial_step(w_KN, grid)
    return w_KN

  tensors.mapped(params, plan, start)
  return steps


def scales(steps: Steps) -> dict[str, Scales]:
  """What learned steps are to `tensors.quantise`."""
  return {path: lsq.scales(step_GN) for path, step_GN in steps.items()}


def _rounding(plan, steps):
  steps = dict(steps or {})
  tensors.check_known(steps, plan)

  def rounded(path, w_KN, grid):
    if path in steps:
      return lsq.lsq(w_KN, steps[path], grid)
    return grids.fake_quantise(w_KN, grid)

  return rounded


def _drawn(key, share, shape, block):
  """Of each weight whether it is drawn, bool [k, n]."""
  own = [size or axis for size, axis in zip(block, shape, strict=True)]
  counts = [-(-axis // size) for size, axis in zip(own, shape, strict=True)]
  drawn = jax.random.bernoulli(key, jnp.float32(share), counts)
  for axis, size in enumerate(own):
    drawn = jnp.repeat(drawn, size, axis=axis)
  return drawn[: shape[0], : shape[1]]
