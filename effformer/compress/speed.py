"""How fast models are, and what they compute: compiled programs in turns.

Layers are not scanned, which would copy their parameters at each call.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from effformer import cost, errors
from effformer.compress import latency, running
from effformer.compress.artefact import Compressed

PARENT = 'parent'
# XLA's count and ours differ by more than this: one of them is wrong.
TOLERANCE = 0.1


class Shape(NamedTuple):
  """Rows and their length in ids."""

  batch: int
  length: int

  def __str__(self) -> str:
    return f'{self.batch} x {self.length}'


def shape(word: str) -> Shape:
  """'8x128' as in `compress.shapes`."""
  return Shape(*map(int, word.split('x')))


class Program(NamedTuple):
  """A compiled forward pass.

  Attributes:
    run: () -> its output.
    facts: multiply_adds from the shapes of its products, xla_flops from XLA,
      temporary_bytes and argument_bytes of the compiled program; None where
      XLA does not say.
  """

  run: Callable[[], Any]
  facts: dict[str, float | None]


def program(model: Compressed, where: Shape) -> Program:
  """The forward pass of a model on full rows of this shape.

  Raises:
    ConfigError: the model does not take rows of this length.
  """
  module = dataclasses.replace(model.module, unrolled=True)
  activations = model.activations or None

  def forward(params, *inputs):
    return running.apply(module, params, *inputs, activations=activations)

  inputs = _inputs(model, where)
  try:
    traced = jax.jit(forward).trace(model.params, *inputs)
  except ValueError as error:
    first = str(error).splitlines()[0]
    raise errors.ConfigError(
      f'the model cannot be timed on rows of {where.length} ids: {first}\n'
      f'Use --config.compress.shapes=1x{model.config.data.max_length}.'
    ) from error
  compiled = traced.lower().compile()
  counted, memory = cost.of_traced(traced), compiled.memory_analysis()
  facts = {
    'multiply_adds': counted.products / 2,
    'xla_flops': _xla_flops(compiled),
    'temporary_bytes': memory and memory.temp_size_in_bytes,
    'argument_bytes': memory and memory.argument_size_in_bytes,
  }
  placed = jax.device_put((model.params, *inputs))
  return Program(functools.partial(compiled, *placed), facts)


def _inputs(model, where):
  random = np.random.default_rng(0)
  high = max(model.vocabulary_size, 3)
  ids_BT = random.integers(2, high, tuple(where)).astype(np.int32)
  rows = (jnp.asarray(ids_BT), jnp.full(where.batch, where.length, jnp.int32))
  return rows * (1 + (model.kind == 'pair_classifier'))


def _xla_flops(compiled):
  found = compiled.cost_analysis()
  # Older versions give one for each device.
  found = found[0] if isinstance(found, list) else found
  return found.get('flops') if found else None


def compare(
  models: Mapping[str, Compressed],
  shapes: Sequence[Shape],
  after_shape: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
  """A row for each shape and model, the control among them.

  Args:
    models: name -> model, `PARENT` among them.
    shapes: of rows.
    after_shape: called after each shape; may raise, to stop.

  Returns:
    model, batch, length, what `latency.compare` gives, rows_per_second, and
    the facts of `Program`; `counts_agree` says whether XLA's operations are
    those counted from shapes, within a tenth.
  """
  rows = []
  for where in shapes:
    programs = {name: program(model, where) for name, model in models.items()}
    found = latency.compare(
      {name: own.run for name, own in programs.items()}, PARENT
    )
    for name, times in found.items():
      own = PARENT if name == latency.CONTROL else name
      facts = programs[own].facts
      rows.append(
        {
          'model': name,
          **where._asdict(),
          **times,
          'rows_per_second': 1000 * where.batch / times['p50_ms'],
          **facts,
          'counts_agree': _agree(facts),
        }
      )
    after_shape()
  return rows


def _agree(facts):
  flops = facts['xla_flops']
  if not flops:
    return None
  return bool(abs(flops / (2 * facts['multiply_adds']) - 1) <= TOLERANCE)
