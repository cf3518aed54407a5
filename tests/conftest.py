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
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def pytest_addoption(parser):
  parser.addoption(
    '--optimised',
    action='store_true',
    help='compile as users do; compiling is most of the time of the tests',
  )


def pytest_configure(config):
  if not config.option.optimised:
    jax.config.update('jax_disable_most_optimizations', True)
    if (0, 10) <= jax.__version_info__ < (0, 11):
      # Halves the time of the compiler; other versions refuse the name. Read
      # when the first program is compiled, and by processes that tests start.
      flags = os.environ.get('XLA_FLAGS', '')
      os.environ['XLA_FLAGS'] = (
        f'{flags} --xla_cpu_use_fusion_emitters=false'.strip()
      )


# Of the 65,530 mappings that Linux allows a process; every compiled program
# takes a few, and beyond the limit the compiler crashes.
MOST_MAPPINGS = 30_000
_tests_so_far = 0


@pytest.fixture(autouse=True)
def _forgets_compiled_programs():
  global _tests_so_far
  yield
  _tests_so_far += 1
  mappings = pathlib.Path('/proc/self/maps')
  if _tests_so_far % 50 or not mappings.exists():
    return
  if mappings.read_bytes().count(b'\n') > MOST_MAPPINGS:
    jax.clear_caches()


@pytest.fixture(scope='session')
def repository():
  return REPOSITORY
