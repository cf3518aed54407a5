"""From config and task to everything a run needs: mesh, state, programs."""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from effformer import cost
from effformer.tasks.task import Task
from effformer.train import (
  evaluation,
  optimiser,
  screen,
  sharding,
  state,
  step,
)


class Program(NamedTuple):
  """The compiled and jitted parts of a run, and what they were made from.

  Attributes:
    mesh: the devices.
    abstract: shapes and shardings of the state.
    first_state: () -> the state before the first step.
    trace_train_step: () -> the traced step.
    lower_eval_step: () -> the lowered step.
    frozen: () -> what the training step takes behind state and batch, on the
      devices.
  """

  mesh: jax.sharding.Mesh
  abstract: state.TrainState
  first_state: Any
  trace_train_step: Any
  lower_eval_step: Any
  frozen: Any


class Steps(NamedTuple):
  """The compiled steps.

  Attributes:
    train: (state, batch, *frozen) -> (state, metrics); None where nothing is
      trained.
    evaluate: (params, batch) -> sums.
    cost: of a training step, as result.json has it; None as above.
  """

  train: jax.stages.Compiled | None
  evaluate: jax.stages.Compiled
  cost: dict[str, float | int | None] | None


def check_devices(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """The mesh, once it is sure that the batches divide over it.

  Raises:
    ConfigError: mesh or batch sizes do not fit the devices.
  """
  train = config.train
  mesh = sharding.make_mesh(config.mesh, devices)
  sharding.check_batch(
    'train.batch_size', train.batch_size, mesh.size * train.accumulate_steps
  )
  sharding.check_batch(
    'train.eval_batch_size', train.eval_batch_size, mesh.size
  )
  return mesh


def build(
  config: ml_collections.ConfigDict,
  task: Task,
  devices: Sequence[jax.Device] | None = None,
) -> Program:
  """Shapes and programs of a run; nothing is computed or compiled yet.

  Args:
    config: the locked config.
    task: data, model and measures.
    devices: what the mesh is made of; None for all there are.

  Raises:
    ConfigError: mesh or batch sizes do not fit the devices.
  """
  train = config.train
  mesh = check_devices(config, devices)
  transform = optimiser.build(train)
  make_state = functools.partial(
    state.initial, task.init, transform, config.seed
  )
  shapes = jax.eval_shape(make_state)
  shardings = sharding.state(mesh, shapes)
  abstract = jax.tree.map(
    lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
    shapes,
    shardings,
  )
  train_step = jax.jit(
    step.make_train_step(
      task.objective,
      transform,
      optimiser.learning_rate(train),
      seed=config.seed,
      accumulate_steps=train.accumulate_steps,
    ),
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  eval_step = jax.jit(
    evaluation.make_eval_step(task.measure),
    out_shardings=sharding.replicated(mesh),
  )
  length = config.data.max_length
  batch, eval_batch = (
    abstract_batch(mesh, size, length, task.inputs)
    for size in (train.batch_size, train.eval_batch_size)
  )
  everywhere = sharding.replicated(mesh)
  frozen = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    task.frozen,
  )
  return Program(
    mesh,
    abstract,
    functools.partial(_first_state, jax.jit(make_state), mesh, abstract),
    lambda: train_step.trace(abstract, batch, *frozen),
    lambda: eval_step.lower(abstract.params, eval_batch),
    lambda: sharding.placed(task.frozen, frozen),
  )


def _first_state(make_state, mesh, abstract):
  """Made on one device and then spread over all.

  How a program is split may change the last bits of what it computes, and the
  same seed is to mean the same parameters on any mesh. So the state has to fit
  one device, once.
  """
  with jax.default_device(mesh.local_devices[0]):
    made = jax.device_get(make_state())
  return sharding.placed(made, abstract)


def abstract_batch(
  mesh: jax.sharding.Mesh,
  batch_size: int,
  max_length: int,
  inputs: Sequence[str],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and shardings of a training batch on the devices.

  `inputs` are names of whole numbers, of which those in BT have T a row.
  """
  where = sharding.batch(mesh)
  # index_B is int64 on the host; jax holds it in 32 bits.
  index_dtype = jax.dtypes.canonicalize_dtype(jnp.int64)
  kinds = {
    **{
      name: ((batch_size, max_length)[: 1 + name.endswith('BT')], jnp.int32)
      for name in inputs
    },
    'label_B': ((batch_size,), jnp.int32),
    'weight_B': ((batch_size,), jnp.float32),
    'index_B': ((batch_size,), index_dtype),
  }
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    for name, (shape, dtype) in kinds.items()
  }


def compile_steps(
  program: Program,
  console: screen.Screen,
  clock: screen.Clock,
  *,
  training: bool = True,
) -> Steps:
  """Compiles the training step and the evaluation step, with signs of life."""
  start = time.monotonic()
  train_step, costs, what = None, None, 'the evaluation step'
  if training:
    what = 'the training and the evaluation step'
  with console.heartbeat(f'compiling {what}'):
    if training:
      traced = program.trace_train_step()
      train_step = traced.lower().compile()
      costs = _cost(traced, train_step)
    eval_step = program.lower_eval_step().compile()
  clock.compilation += time.monotonic() - start
  console.say(
    f'compiled in {screen.duration(clock.compilation)}; memory on each '
    f'device {memory(train_step or eval_step)}'
  )
  return Steps(train_step, eval_step, costs)


def _cost(traced, train_step):
  counted, analysis = cost.of_traced(traced), train_step.memory_analysis()
  return {
    # A loop without a length hides how much there is.
    'products_per_step': counted.products if counted.is_bounded else None,
    'operations_per_step': counted.total if counted.is_bounded else None,
    'state_and_batch_bytes': analysis and analysis.argument_size_in_bytes,
    'temporary_bytes': analysis and analysis.temp_size_in_bytes,
  }


def memory(compiled: jax.stages.Compiled) -> str:
  """State, batch and temporary bytes of a compiled step, for people."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return 'unknown'
  mebi = 2**20
  return (
    f'{analysis.argument_size_in_bytes / mebi:.1f} MiB state and batch + '
    f'{analysis.temp_size_in_bytes / mebi:.1f} MiB temporary'
  )
