"""The cubic schedule."""

import jax
import numpy as np
import pytest

from effformer.compress.prune import schedule
from effformer.errors import ConfigError

KEYS = {'warmup_steps': 3, 'final_steps': 2}


def test_cubic_by_hand():
  expected = [0.0] * 4
  expected += [0.8 * (1 - (1 - t / 5) ** 3) for t in range(1, 6)]
  expected += [0.8] * 4
  cubic = jax.jit(lambda step: schedule.cubic(step, 10, 0.8, **KEYS))
  found = [cubic(step) for step in range(13)]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
  # The last of the final steps is the last of the training.
  assert found[10 - KEYS['final_steps']] == pytest.approx(0.8)


def test_growth_slows_down():
  steps = np.array([schedule.cubic(step, 20, 0.9) for step in range(21)])
  growth = np.diff(steps)
  assert steps[0] == 0
  assert (growth > 0).all()
  assert (np.diff(growth) < 1e-6).all()


@pytest.mark.parametrize(
  ('arguments', 'keys'),
  [
    ((5, 0.5), {'warmup_steps': 3, 'final_steps': 2}),
    ((5, 0.5), {'warmup_steps': -1}),
    ((5, 0.5), {'final_steps': -1}),
    ((5, 1.5), {}),
    ((5, -0.5), {}),
  ],
)
def test_what_cannot_grow(arguments, keys):
  with pytest.raises(ConfigError, match='cannot grow'):
    schedule.cubic(0, *arguments, **keys)
