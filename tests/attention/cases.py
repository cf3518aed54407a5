"""The table as test cases: modules, parameters and compiled calls, made once.

A new mechanism needs a file `definitions/NAME.py`: its dense definition, and
SMALL, the settings to try, small enough for blocks to matter within 7 tokens.
"""

import dataclasses
import functools
import importlib

import jax
import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.sizes import LONGER, B, D, H, K, T

__all__ = ['LONGER', 'B', 'D', 'H', 'K', 'T']

# Sums of 7 to 12 terms of size one in float32; gradients have larger terms.
TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 2e-5
BF16_TOLERANCE = 3e-2

# Several segments, and padding between them.
PACKED = [[1, 1, 1, 2, 2, 2, 2], [1, 1, 0, 2, 2, 3, 0]]

DEFINITIONS = {
  name: importlib.import_module(f'tests.attention.definitions.{name}')
  for name in attention.TABLE
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A mechanism with settings; `extra` are sorted pairs."""

  name: str
  extra: tuple = ()

  def __str__(self):
    words = [f'{key}={value}' for key, value in self.extra]
    return ' '.join([self.name, *words])

  def having(self, **settings):
    return Case(self.name, tuple(sorted((dict(self.extra) | settings).items())))

  @property
  def settings(self):
    return dict(self.extra)

  @property
  def supports(self):
    return attention.TABLE[self.name].supports

  @property
  def is_causal(self):
    return self.settings.get('causal', False)

  def tokens(self, segment_BT):
    """Packed tokens; without packing as many, in one segment a row."""
    segment_BT = np.array(segment_BT)
    if self.supports.packing:
      return Tokens.from_segments(segment_BT)
    return Tokens.from_lengths((segment_BT > 0).sum(1), segment_BT.shape[1])


def plain(name, **settings):
  """The mechanism with small settings; H heads, where it has heads."""
  if 'num_heads' in attention.settings(name):
    settings = {'num_heads': H, **settings}
  return Case(name).having(**settings)


def variants(name):
  supports = attention.TABLE[name].supports
  for number, small in enumerate(DEFINITIONS[name].SMALL):
    case = plain(name, **small)
    if supports.bidirectional:
      yield case
    if supports.causal and (number == 0 or not supports.bidirectional):
      yield case.having(causal=True)
    if supports.rotary and number == 0:
      yield case.having(causal=supports.causal, rotary=True)
    if supports.relative_bias and number == 0:
      yield case.having(causal=supports.causal, relative_bias='t5')


CASES = [case for name in attention.TABLE for case in variants(name)]
# One of each mechanism, bidirectional where it can be.
PLAIN = [next(variants(name)) for name in attention.TABLE]
# What the definitions are compared with beyond CASES.
MORE = [
  case.having(causal=False, **settings)
  for case in PLAIN
  for settings in (
    {'rotary': True},
    {'relative_bias': 'alibi'},
    {'relative_bias': 't5'},
  )
  if case.supports.bidirectional
  and all(getattr(case.supports, key) for key in settings)
]


def each(cases, *, quick=None, **needs):
  """Parametrises over the cases that declare or set what is needed.

  All but the main form of each mechanism are slow tests: there are many. Where
  causal cases are asked for, the main form is that. Of laws that take long to
  compile the first `quick` mechanisms are left to the quick tests.
  """
  core = PLAIN
  if needs.get('is_causal'):
    core = [case.having(causal=True) for case in PLAIN]
  chosen = [
    case
    for case in cases
    if all(
      getattr(case, key) == value
      if key == 'is_causal'
      else getattr(case.supports, key) == value
      for key, value in needs.items()
    )
  ]
  first = [case for case in chosen if case in core][:quick]
  marked = [
    case if case in first else pytest.param(case, marks=pytest.mark.slow)
    for case in chosen
  ]
  return pytest.mark.parametrize('case', marked, ids=str)


@functools.cache
def module_of(case):
  return attention.build(case.name, **case.settings)


@functools.cache
def variables_of(case):
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.full(B, T), T)
  init = jax.jit(functools.partial(module_of(case).init, tokens=tokens))
  return init(jax.random.key(5), x_BTD)


@functools.cache
def call_of(case):
  return jax.jit(
    lambda variables, x_BTD, tokens: module_of(case).apply(
      variables, x_BTD, tokens=tokens
    )
  )


@functools.cache
def cross_of(case):
  def cross(variables, x_BTD, context_BSD, tokens, context_tokens):
    return module_of(case).apply(
      variables, x_BTD, context_BSD, tokens=tokens,
      context_tokens=context_tokens,
    )  # fmt: skip

  return jax.jit(cross)


@functools.cache
def extend_of(case):
  return jax.jit(
    lambda variables, x_BTD, state, tokens: module_of(case).apply(
      variables, x_BTD, state, tokens=tokens, method='extend'
    )
  )


def start_of(case, max_length=T):
  return module_of(case).apply(
    variables_of(case), B, max_length, method='init_state'
  )


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def run(case, x_BTD, tokens):
  return np.asarray(call_of(case)(variables_of(case), x_BTD, tokens))


def assert_close(actual, expected, tolerance=TOLERANCE):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
