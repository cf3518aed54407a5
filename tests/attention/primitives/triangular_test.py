"""Unit lower triangular systems against NumPy, in value and derivative."""

import functools

import jax
import numpy as np
import pytest

from effformer import attention, shapes
from effformer.attention.primitives import triangular

V = 3


def system(length, seed=0):
  """A with something above the diagonal, which must not matter, and B."""
  rng = np.random.default_rng(seed)
  a_CC = rng.normal(size=(length, length)).astype(np.float32)
  return a_CC, rng.normal(size=(length, V)).astype(np.float32)


def exact(a_CC, b_CV):
  lower_CC = np.tril(a_CC.astype(np.float64), -1)
  return np.linalg.solve(np.eye(len(a_CC)) + lower_CC, b_CV)


@pytest.mark.parametrize('length', [1, 2, 5, 8, 11])
def test_solves_systems_of_any_length(length):
  a_CC, b_CV = system(length)
  x_CV = jax.jit(triangular.solve)(a_CC, b_CV)
  expected_CV = exact(a_CC, b_CV)
  scale = np.abs(expected_CV).max()
  np.testing.assert_allclose(x_CV, expected_CV, atol=1e-5 * scale)


def test_equal_tokens_lose_no_digits():
  # The powers of A reach 10^18 here.
  a_CC = np.ones((64, 64), np.float32)
  inverse_CC = np.asarray(triangular.inverse(a_CC))
  np.testing.assert_array_equal(inverse_CC, np.eye(64) - np.eye(64, k=-1))


def test_derivatives_both_ways():
  a_CC, b_CV = system(6)
  da_CC, db_CV = system(6, seed=1)
  step = 1e-6

  def at(t):
    a = a_CC.astype(np.float64) + t * da_CC
    return exact(a, b_CV.astype(np.float64) + t * db_CV)

  expected_CV = (at(step) - at(-step)) / (2 * step)
  jvp = jax.jit(functools.partial(jax.jvp, triangular.solve))
  _, dx_CV = jvp((a_CC, b_CV), (da_CC, db_CV))
  scale = np.abs(expected_CV).max()
  np.testing.assert_allclose(dx_CV, expected_CV, atol=2e-5 * scale)
  # <w, dx> = <gradient, d>, with no gradient where A is not read.
  w_CV = system(6, seed=2)[1]
  ga_CC, gb_CV = jax.jit(
    jax.grad(lambda a, b: (w_CV * triangular.solve(a, b)).sum(), (0, 1))
  )(a_CC, b_CV)
  np.testing.assert_array_equal(np.triu(ga_CC), 0)
  np.testing.assert_allclose(
    (ga_CC * da_CC).sum() + (gb_CV * db_CV).sum(),
    (w_CV * expected_CV).sum(),
    rtol=1e-4,
  )


def test_the_delta_rule_asks_lapack_for_nothing():
  # Two solves at a time may wait for ever on a CPU of two cores (jaxlib 0.10).
  module = attention.build('gated_deltanet', num_heads=2, head_width=4)
  x_BTD = np.ones((1, 7, 6), np.float32)
  tokens = shapes.Tokens.from_lengths(np.array([7]), 7)

  def loss(x_BTD):
    (o_BTD, _) = module.init_with_output(
      jax.random.key(0), x_BTD, tokens=tokens
    )
    return o_BTD.sum()

  text = str(jax.make_jaxpr(jax.grad(loss))(x_BTD))
  assert 'dot_general' in text
  assert 'triangular_solve' not in text
