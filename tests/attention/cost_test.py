"""Efficiency as a law: memory and operations over growing T.

Nothing is executed: memory comes from the compiler, operations are counted from
the jaxpr, so the figures are exact and repeat. The gradient is taken, because
XLA:CPU hides the memory of a plain softmax(q k^T) v in a library call.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention, cost
from effformer.shapes import Tokens
from tests.attention.cases import DEFINITIONS

LENGTHS = (1024, 2048, 4096, 8192)
# Compiling takes longer than counting.
MEMORY_LENGTHS = (1024, 4096)
B, D, H = 1, 16, 2
# Linear is 1, T^2 is 2.
LARGEST_EXPONENT = 1.15
QUADRATIC = 1.8
ARRAY = re.compile(r'\b(?:pred|[a-z]+\d+)\[([\d,]+)\]')


def variants():
  for name, mechanism in attention.TABLE.items():
    if mechanism.supports.bidirectional:
      yield name, False, False
    if mechanism.supports.causal:
      yield name, True, False
    if mechanism.supports.packing:
      yield name, not mechanism.supports.bidirectional, True


def marked(name, is_causal, is_packed):
  is_main = not is_packed and (
    is_causal != attention.TABLE[name].supports.bidirectional
  )
  marks = () if is_main else pytest.mark.slow
  return pytest.param(name, is_causal, is_packed, marks=marks)


VARIANTS = pytest.mark.parametrize(
  ('name', 'is_causal', 'is_packed'), [marked(*row) for row in variants()]
)


def settings_of(name, is_causal):
  # A definition may name settings that show the growth within these lengths,
  # where the defaults would not.
  settings = dict(getattr(DEFINITIONS[name], 'COST', {}))
  if is_causal:
    settings['causal'] = True
  if 'num_heads' in attention.settings(name):
    settings['num_heads'] = H
  return settings


def gradient_of(name, length, is_packed, settings):
  """The gradient function and shapes of its inputs."""
  module = attention.build(name, **settings)
  tokens = Tokens.from_lengths(np.array([length - 3]), length)
  tokens = tokens.replace(is_packed=is_packed)
  x_BTD = jax.ShapeDtypeStruct((B, length, D), jnp.float32)
  variables = jax.eval_shape(
    functools.partial(module.init, tokens=tokens), jax.random.key(0), x_BTD
  )

  def loss(variables, x_BTD, tokens):
    return (module.apply(variables, x_BTD, tokens=tokens) ** 2).sum()

  return jax.grad(loss, argnums=(0, 1)), (variables, x_BTD, tokens)


@functools.cache
def measured(name, length, is_packed, **settings):
  """Temporary bytes, and numbers in the largest array, of the gradient."""
  gradient, inputs = gradient_of(name, length, is_packed, settings)
  compiled = jax.jit(gradient).lower(*inputs).compile()
  sizes = (
    math.prod(int(size) for size in dims.split(','))
    for dims in ARRAY.findall(compiled.as_text())
  )
  return compiled.memory_analysis().temp_size_in_bytes, max(sizes)


def memory_exponent(name, is_packed, **settings):
  """Slope of log(temporary bytes) over log(T)."""
  sizes = [
    measured(name, length, is_packed, **settings)[0]
    for length in MEMORY_LENGTHS
  ]
  return np.polyfit(np.log(MEMORY_LENGTHS), np.log(sizes), 1)[0]


def time_exponent(name, is_packed, **settings):
  """Slope of log(operations) over log(T)."""
  totals = []
  for length in LENGTHS:
    gradient, inputs = gradient_of(name, length, is_packed, settings)
    count = cost.count(gradient, *inputs)
    assert count.is_bounded
    totals.append(count.total)
  return np.polyfit(np.log(LENGTHS), np.log(totals), 1)[0]


def largest_array(name, is_packed, **settings):
  """Numbers in the largest array of the program at the longest T."""
  return measured(name, MEMORY_LENGTHS[-1], is_packed, **settings)[1]


@pytest.mark.optimised
@VARIANTS
def test_memory_is_linear_where_declared(name, is_causal, is_packed):
  settings = settings_of(name, is_causal)
  exponent = memory_exponent(name, is_packed, **settings)
  if not attention.TABLE[name].supports.linear_memory:
    assert exponent > LARGEST_EXPONENT
    return
  assert exponent <= LARGEST_EXPONENT
  largest = largest_array(name, is_packed, **settings)
  assert largest < MEMORY_LENGTHS[-1] ** 2 / 2


@VARIANTS
@pytest.mark.slow
def test_operations_are_linear_where_declared(name, is_causal, is_packed):
  exponent = time_exponent(name, is_packed, **settings_of(name, is_causal))
  if attention.TABLE[name].supports.linear_time:
    assert exponent <= LARGEST_EXPONENT
  else:
    assert exponent > LARGEST_EXPONENT


def test_dense_form_shows_what_the_law_forbids():
  settings = {'num_heads': H, 'form': 'dense'}
  assert memory_exponent('full', False, **settings) > QUADRATIC
  assert time_exponent('full', False, **settings) > QUADRATIC
  largest = largest_array('full', False, **settings)
  assert largest >= MEMORY_LENGTHS[-1] ** 2


@pytest.mark.optimised
def test_causal_performer_never_stores_the_features_of_all_tokens():
  settings = {'num_heads': H, 'num_features': 64, 'causal': True}
  largest = largest_array('performer', False, **settings)
  assert largest < MEMORY_LENGTHS[-1] * settings['num_features']
