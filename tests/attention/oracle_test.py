"""Laws L5 and L6: each mechanism against its O(T^2) definition.

The definitions stand in `definitions/`, one file a mechanism.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import one_by_one
from effformer.shapes import Tokens
from tests.attention.cases import (
  CASES,
  DEFINITIONS,
  GRADIENT_TOLERANCE,
  MORE,
  PACKED,
  PLAIN,
  B,
  Case,
  D,
  H,
  T,
  assert_close,
  call_of,
  each,
  module_of,
  normal,
  run,
  variables_of,
)

# L5: the dense definition of the same mechanism, outputs and gradients.


@each(CASES + MORE)
def test_equals_dense_definition(case):
  compare_with_definition(case)


@each([case for case in CASES if 'num_heads' in case.settings], quick=3)
def test_heads_one_by_one_equal_dense_definition(monkeypatch, case):
  monkeypatch.setattr(one_by_one, 'is_faster', lambda *shape: True)
  # As the encoder traces a layer: the function first, its gradient later.
  y_BTD = compare_with_definition(case, jax.checkpoint)
  if case in PLAIN:
    compare_with_definition(case)
  # Outputs alone are computed in another way than with their gradient.
  tokens = case.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  apply = jax.jit(module_of(case).apply)
  z_BTD = apply(variables_of(case), normal(B, T, D), tokens=tokens)
  assert_close(z_BTD[keep_BT], y_BTD[keep_BT])


def compare_with_definition(case, trace=lambda function: function):
  def ours(variables, x_BTD, tokens):
    return module_of(case).apply(variables, x_BTD, tokens=tokens)

  y_BTD, gradients = with_gradients(case, trace(ours))
  expected_BTD, expected_gradients = by_definition(case)
  assert_close(y_BTD, expected_BTD)
  jax.tree.map(assert_gradients_close, gradients, expected_gradients)
  return y_BTD


@functools.cache
def by_definition(case):
  definition = functools.partial(DEFINITIONS[case.name].definition, case)
  return with_gradients(case, definition)


def with_gradients(case, apply):
  """Outputs, and gradients of a sum of them, which sees no padding."""
  tokens = case.tokens(PACKED)
  keep_BT1 = tokens.keep_BT[..., None]
  sample_BTD = normal(B, T, D, seed=2)

  def loss(variables, x_BTD):
    y_BTD = jnp.where(keep_BT1, apply(variables, x_BTD, tokens), 0.0)
    return (y_BTD * sample_BTD).sum(), y_BTD

  both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  (_, y_BTD), gradients = both(variables_of(case), normal(B, T, D))
  return y_BTD, gradients


def assert_gradients_close(actual, expected):
  # A small sum may have large terms: the error is one of the largest.
  scale = max(1.0, np.abs(expected).max(initial=0.0))
  assert_close(actual / scale, expected / scale, GRADIENT_TOLERANCE)


# L6: the setting in which a mechanism is softmax attention.


@pytest.mark.parametrize('is_causal', [False, True])
def test_local_with_a_wide_window_is_full(is_causal):
  full = Case('full').having(num_heads=H, form='dense', causal=is_causal)
  x_BTD, tokens = normal(B, T, D), full.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = run(full, x_BTD, tokens)
  local = full.having(window=T)
  local = Case('local', tuple(p for p in local.extra if p[0] != 'form'))
  variables = variables_of(full)
  z_BTD = np.asarray(call_of(local)(variables, x_BTD, tokens))
  assert_close(z_BTD[keep_BT], y_BTD[keep_BT])


def test_linformer_with_a_permutation_is_full():
  full = Case('full').having(num_heads=H, form='dense')
  linformer = Case('linformer').having(num_heads=H, rank=T)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.full(B, T), T)
  permutation = jnp.eye(T)[np.random.default_rng(3).permutation(T)]
  params = variables_of(full)['params'] | {'mix_keys': permutation}
  z_BTD = call_of(linformer)({'params': params}, x_BTD, tokens)
  assert_close(z_BTD, run(full, x_BTD, tokens))
