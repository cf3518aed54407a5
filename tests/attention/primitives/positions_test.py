"""Slopes and buckets against their definitions, far beyond the law suite."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import positions


def defined_bucket(ahead, causal, num_buckets=32, max_distance=128):
  """T5, section 2.1 and its published code, for one distance."""
  offset = 0
  if causal:
    distance = max(-ahead, 0)
  else:
    num_buckets //= 2
    offset = num_buckets if ahead > 0 else 0
    distance = abs(ahead)
  exact = num_buckets // 2
  if distance < exact:
    return offset + distance
  share = math.log(distance / exact) / math.log(max_distance / exact)
  # Powers come out a rounding error below the whole number.
  number = exact + int(share * (num_buckets - exact) + 1e-9)
  return offset + min(number, num_buckets - 1)


@pytest.mark.parametrize('causal', [False, True])
def test_buckets_are_those_of_t5(causal):
  ahead = np.arange(-400, 401)
  rule = positions.Rule('t5', causal)
  actual = np.asarray(positions.bucket(rule, jnp.asarray(ahead)))
  expected = [defined_bucket(int(a), causal) for a in ahead]
  np.testing.assert_array_equal(actual, expected)
  assert actual.max() == 31


def test_slopes_are_those_of_alibi():
  np.testing.assert_array_equal(positions.slopes(8), 2.0 ** -np.arange(1.0, 9))
  np.testing.assert_array_equal(positions.slopes(4), 4.0 ** -np.arange(1.0, 5))
  six = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
  np.testing.assert_array_equal(positions.slopes(6), six)
  np.testing.assert_allclose(positions.slopes(16)[0], 2**-0.5)
