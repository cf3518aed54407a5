"""R24: every mechanism, stopped and resumed, ends in the same bytes.

In bfloat16, so that this is also the step in it that each mechanism trains.
"""

import dataclasses

import jax
import numpy as np
import pytest

from effformer import attention, errors
from effformer.train import loop, runs, setup, state
from tests.train.tiny_run import StopAt, quiet_screen, tiny_config, tiny_task

STEPS = {
  'train__num_steps': 4,
  'train__eval_every_steps': 2,
  'train__checkpoint_every_steps': 4,
}


@pytest.mark.slow
@pytest.mark.parametrize('name', attention.TABLE)
def test_stopped_and_resumed_ends_in_the_same_bytes(name, tmp_path):
  config = tiny_config(name, model__dtype='bfloat16', **STEPS)
  task = tiny_task(config)
  program = setup.build(config, task, jax.devices()[:1])
  steps = {
    'train_step': program.trace_train_step().lower().compile(),
    'eval_step': program.lower_eval_step().compile(),
  }

  def go(folder, stop):
    folder.mkdir(exist_ok=True)
    run, current = runs.resume(
      config, task, program, folder, stop, quiet_screen()
    )
    run = dataclasses.replace(run, **steps)
    return run, loop.train(run, current)

  run, alone = go(tmp_path / 'alone', StopAt())
  with pytest.raises(errors.Preempted, match='saved at step 3'):
    go(tmp_path / 'stopped', StopAt(3))
  again, resumed = go(tmp_path / 'stopped', StopAt())
  assert state.digest(resumed) == state.digest(alone)
  rows = run.metrics.rows('train')
  assert again.metrics.rows('train') == rows
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  assert all(np.isfinite(row['loss']) for row in rows)
  assert all(row['grad_norm'] > 0 for row in rows)
