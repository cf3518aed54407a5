"""Path-X: rows of 16,384 tokens, in the memory of a laptop."""

import jax
import pytest

from effformer import config as config_lib
from effformer import tasks
from effformer.train import setup


@pytest.mark.slow
@pytest.mark.parametrize('mechanism', ['linear', 's5'])
def test_a_training_step_of_the_whole_batch_fits_4_gb(repository, mechanism):
  config, _ = config_lib.load(
    f'{repository}/configs/lra_pathfinder128.py:{mechanism}'
  )
  assert (config.data.max_length, config.train.batch_size) == (16_384, 32)
  task = tasks.without_data(config)
  program = setup.build(config, task, jax.local_devices()[:1])
  analysis = program.trace_train_step().lower().compile().memory_analysis()
  # The process takes 0.8 GB beside it (experiments/path_x.py).
  assert analysis.temp_size_in_bytes + analysis.argument_size_in_bytes < 3.2e9
