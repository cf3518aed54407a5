"""Efficiency as a law: memory of the compiled program over growing T.

Nothing is executed: the figures come from the compiler, so they are exact and
repeat. The gradient is compiled, because XLA:CPU hides the memory of a plain
softmax(q k^T) v in a library call.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens

LENGTHS = (1024, 2048, 4096)
B, D, H = 1, 16, 2
# Linear is 1, T^2 is 2.
LARGEST_EXPONENT = 1.15
ARRAY = re.compile(r'\b(?:pred|[a-z]+\d+)\[([\d,]+)\]')


def cases():
  for name, mechanism in attention.TABLE.items():
    if not mechanism.supports.linear_memory:
      continue
    if mechanism.supports.bidirectional:
      yield name, False, False
    if mechanism.supports.causal:
      yield name, True, False
    if mechanism.supports.packing:
      yield name, False, True


@functools.cache
def compiled(name, length, is_packed, **settings):
  if 'num_heads' in attention.settings(name):
    settings = {'num_heads': H, **settings}
  module = attention.build(name, **settings)
  tokens = Tokens.from_lengths(np.array([length - 3]), length)
  tokens = tokens.replace(is_packed=is_packed)
  x_BTD = jnp.zeros((B, length, D))
  variables = jax.eval_shape(
    functools.partial(module.init, tokens=tokens), jax.random.key(0), x_BTD
  )

  def loss(variables, x_BTD, tokens):
    return (module.apply(variables, x_BTD, tokens=tokens) ** 2).sum()

  step = jax.jit(jax.grad(loss, argnums=(0, 1)))
  return step.lower(variables, x_BTD, tokens).compile()


def exponent(name, is_packed, **settings):
  """Slope of log(temporary bytes) over log(T)."""
  sizes = [
    compiled(name, length, is_packed, **settings)
    .memory_analysis()
    .temp_size_in_bytes
    for length in LENGTHS
  ]
  return np.polyfit(np.log(LENGTHS), np.log(sizes), 1)[0]


def largest_array(name, is_packed, **settings):
  """Numbers in the largest array of the compiled program at the longest T."""
  text = compiled(name, LENGTHS[-1], is_packed, **settings).as_text()
  return max(
    math.prod(int(size) for size in dims.split(','))
    for dims in ARRAY.findall(text)
  )


@pytest.mark.parametrize(('name', 'is_causal', 'is_packed'), cases())
def test_memory_is_linear(name, is_causal, is_packed):
  settings = {'causal': True} if is_causal else {}
  assert exponent(name, is_packed, **settings) <= LARGEST_EXPONENT
  assert largest_array(name, is_packed, **settings) < LENGTHS[-1] ** 2 / 2


def test_dense_form_shows_what_the_law_forbids():
  assert exponent('full', False, form='dense') > 1.8
  assert largest_array('full', False, form='dense') >= LENGTHS[-1] ** 2
