"""jit, batch rows, bfloat16 and dropout of every mechanism."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import (
  BF16_TOLERANCE,
  CASES,
  PLAIN,
  B,
  D,
  H,
  K,
  T,
  assert_close,
  call_of,
  each,
  module_of,
  normal,
  run,
  variables_of,
)

# Numerics of the whole module.

QKV = ('query', 'key', 'value')


@pytest.mark.slow
@each(PLAIN)
def test_jit_equals_eager(case):
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  y_BTD = module_of(case).apply(variables_of(case), x_BTD, tokens=tokens)
  keep_BT = np.asarray(tokens.keep_BT)
  assert_close(y_BTD[keep_BT], run(case, x_BTD, tokens)[keep_BT])


@each(CASES)
def test_examples_are_independent(case):
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  other_BTD = x_BTD.copy()
  other_BTD[1] = 1e4 * normal(T, D)
  y_BTD = run(case, x_BTD, tokens)
  np.testing.assert_array_equal(run(case, other_BTD, tokens)[0], y_BTD[0])


@each(PLAIN, quick=5)
def test_bfloat16_is_close_to_float32(case):
  half = case.having(dtype=jnp.bfloat16)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = call_of(half)(variables_of(case), x_BTD, tokens)
  assert y_BTD.dtype == jnp.bfloat16
  parameters = jax.tree.leaves(variables_of(half))
  assert all(leaf.dtype == jnp.float32 for leaf in parameters)
  y_BTD = np.asarray(y_BTD.astype(jnp.float32))
  assert_close(
    y_BTD[keep_BT], run(case, x_BTD, tokens)[keep_BT], BF16_TOLERANCE
  )


@each(PLAIN, causal=True, permutation=True)
def test_sums_are_float32_in_bfloat16(case):
  # Adding ones in bfloat16 stops at 256. Weights are equal here, and values
  # are 0 in the first half and 1 in the second.
  one_by_one = {'chunk': 1} if 'chunk' in case.settings else {}
  large = {'block': 0} if 'block' in case.settings else {}
  case = case.having(causal=True, **one_by_one, **large)
  length = 1000
  x_BTD = np.zeros((1, length, D), 'f4')
  x_BTD[:, length // 2 :, 0] = 1.0
  params = dict(variables_of(case)['params'])
  params |= {name: {'kernel': np.zeros((D, H, K), 'f4')} for name in QKV}
  params['value']['kernel'][0] = 1.0
  tokens = Tokens.from_lengths(np.array([length]), length)
  half = case.having(dtype=jnp.bfloat16)
  y_BTD = call_of(half)({'params': params}, x_BTD, tokens)
  expected_D = 0.5 * np.asarray(params['out']['kernel']).sum((0, 1))
  assert_close(np.asarray(y_BTD[0, -1], 'f4'), expected_D, BF16_TOLERANCE)


@each([c for c in PLAIN if 'dropout' in attention.settings(c.name)], quick=5)
def test_dropout_acts_and_keeps_the_mean(case):
  dropping = case.having(dropout=0.4)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, T]), T)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, None, 0))
  def sample(variables, x_BTD, rng):
    return module_of(dropping).apply(
      variables, x_BTD, tokens=tokens, deterministic=False,
      rngs={'dropout': rng},
    )  # fmt: skip

  keys = jax.random.split(jax.random.key(0), 400)
  y_NBTD = np.asarray(sample(variables_of(case), x_BTD, keys))
  error_BTD = y_NBTD.std(0) / len(keys) ** 0.5
  y_BTD = run(case, x_BTD, tokens)
  assert error_BTD.min() > 0
  # 168 outputs: beyond 4.5 standard errors once in 1,000 seeds.
  error = (np.abs(y_NBTD.mean(0) - y_BTD) / error_BTD).max()
  assert (error < 4.5) == case.supports.dropout_mean
  np.testing.assert_array_equal(run(dropping, x_BTD, tokens), y_BTD)
