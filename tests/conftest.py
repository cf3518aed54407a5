"""One setting for all tests: eight CPU devices, strict ranks, a cache."""

import os
import pathlib
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(tempfile.gettempdir()) / f'effformer-tests-{os.getuid()}'

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(scope='session')
def repository():
  return REPOSITORY
