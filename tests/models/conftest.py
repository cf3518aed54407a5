"""What these tests compile runs for microseconds: little is optimised."""

import jax
import pytest


@pytest.fixture(scope='package', autouse=True)
def _compiled_fast():
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
