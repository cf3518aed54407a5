"""The loop: stopping anywhere, bad steps, what is recorded and kept."""

import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import errors
from effformer.train import loop, runs, setup, state
from tests.train.tiny_run import StopAt, quiet_screen, tiny_config, tiny_task


def finish(start, folder):
  run, current = start(folder)
  return run, loop.train(run, current)


def result_of(run, final):
  return (
    state.digest(final),
    state.digest(run.best.restore(*best(run)).state),
    run.metrics.path.read_bytes(),
  )


def best(run):
  return loop.best_row(run)['step'], run.abstract.params


@pytest.fixture(scope='module')
def alone(tiny, tmp_path_factory):
  """What an uninterrupted run ends with."""
  run, current = runs.resume(
    tiny.config,
    tiny.task,
    tiny.program,
    tmp_path_factory.mktemp('alone'),
    StopAt(),
    quiet_screen(),
  )
  run = dataclasses.replace(
    run, train_step=tiny.compiled, eval_step=tiny.compiled_eval
  )
  return result_of(run, loop.train(run, current))


def test_r1_stopped_at_any_step_ends_in_the_same_bytes(start, tmp_path, alone):
  for step in range(12):
    folder = tmp_path / str(step)
    run, current = start(folder, StopAt(step))
    with pytest.raises(errors.Preempted, match=f'saved at step {step}'):
      loop.train(run, current)
    assert run.last.steps()[-1] == step
    assert result_of(*finish(start, folder)) == alone


def test_r1_stopped_at_every_step_ends_in_the_same_bytes(
  start, tmp_path, alone
):
  for step in range(12):
    run, current = start(tmp_path, StopAt(step))
    assert int(current.step) == max(step - 1, 0)
    with pytest.raises(errors.Preempted):
      loop.train(run, current)
  assert result_of(*finish(start, tmp_path)) == alone


def test_stopped_in_an_evaluation_saves_and_evaluates_again(
  start, tmp_path, alone
):
  class StopInEvaluation(StopAt):
    calls = 0

    def agree(self, step):
      # The loop asks with its position, an evaluation with the last step.
      self.calls += step == 12
      return self.calls == 2

  run, current = start(tmp_path, StopInEvaluation())
  with pytest.raises(errors.Preempted, match='evaluating validation'):
    loop.train(run, current)
  assert run.last.steps()[-1] == 4
  assert not run.metrics.rows('validation')
  assert result_of(*finish(start, tmp_path)) == alone


def test_killed_between_validation_row_and_best_parameters(
  start, tmp_path, alone, monkeypatch
):
  """A stop in the evaluation saves the step; the next start is killed later."""

  class StopInEvaluation(StopAt):
    calls = 0

    def agree(self, step):
      self.calls += step == 12
      return self.calls == 2

  run, current = start(tmp_path, StopInEvaluation())
  with pytest.raises(errors.Preempted):
    loop.train(run, current)
  run, current = start(tmp_path)

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(run.best, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
      loop.train(run, current)
  assert [row['step'] for row in run.metrics.rows('validation')] == [4]
  assert result_of(*finish(start, tmp_path)) == alone


@pytest.mark.slow
def test_killed_between_saves_ends_in_the_same_bytes(start, tmp_path, alone):
  for call in range(1, 13):
    folder = tmp_path / str(call)
    run, current = start(folder)
    calls = itertools.count(1)

    def dying_step(*arguments, step=run.train_step, calls=calls, last=call):
      if next(calls) == last:
        raise KeyboardInterrupt
      return step(*arguments)

    with pytest.raises(KeyboardInterrupt):
      loop.train(dataclasses.replace(run, train_step=dying_step), current)
    assert result_of(*finish(start, folder)) == alone


def test_a_damaged_checkpoint_costs_steps_but_no_bytes(start, tmp_path, alone):
  run, current = start(tmp_path, StopAt(7))
  with pytest.raises(errors.Preempted):
    loop.train(run, current)
  newest = run.last.directory / f'{run.last.steps()[-1]:08d}'
  victim = max(
    newest.rglob('*'), key=lambda p: p.is_file() and p.stat().st_size
  )
  victim.write_bytes(victim.read_bytes()[:-1])
  run, current = start(tmp_path)
  assert int(current.step) == 6
  assert result_of(run, loop.train(run, current)) == alone


def test_each_step_stands_once_and_without_times(alone):
  rows = [json.loads(line) for line in alone[2].splitlines()]
  train = [row for row in rows if row['split'] == 'train']
  assert [row['step'] for row in train] == list(range(1, 13))
  assert set(train[0]) == {
    *('step', 'split', 'loss', 'accuracy', 'grad_norm', 'learning_rate')
  }
  validation = [row for row in rows if row['split'] == 'validation']
  assert [row['step'] for row in validation] == [4, 8, 12]
  assert {row['count'] for row in validation} == {10}


def test_r13_threads_and_prefetch_change_no_byte(tiny, start, tmp_path, alone):
  for index, (threads, prefetch) in enumerate([(1, 1), (2, 3), (0, 0)]):
    config = tiny_config(data__num_threads=threads, data__prefetch=prefetch)
    run, current = start(tmp_path / str(index), config=config)
    assert result_of(run, loop.train(run, current)) == alone


def test_old_checkpoints_go_and_the_best_stays(start, tmp_path):
  run, _ = finish(start, tmp_path)
  assert run.last.steps() == [9, 12]
  assert run.best.steps() == [best(run)[0]]


def poisoned(tiny, bad_steps, **keys):
  """A compiled step whose loss is NaN after so many steps, and its config."""
  config = tiny_config(**keys)
  task = tiny_task(config)

  def objective(params, batch, key, step):
    loss, values = task.objective(params, batch, key, step)
    # The key of a step is fold_in(seed, step): it says which step this is.
    bad_keys = jnp.stack(
      [
        jax.random.key_data(
          jax.random.fold_in(jax.random.key(config.seed), step - 1)
        )
        for step in bad_steps
      ]
    )
    here = jax.random.key_data(key)[None]
    is_bad = (bad_keys == here).all(axis=-1).any()
    return jnp.where(is_bad, jnp.nan, loss), values

  program = setup.build(
    config, dataclasses.replace(task, objective=objective), jax.devices()[:1]
  )
  return config, program.trace_train_step().lower().compile()


def run_poisoned(start, folder, parts, stop=None):
  config, compiled = parts
  run, current = start(folder, stop, config=config)
  run = dataclasses.replace(run, train_step=compiled)
  return run, lambda: loop.train(run, current)


def test_r9_abort_names_step_and_examples_and_saves_nothing_bad(
  tiny, start, tmp_path
):
  parts = poisoned(tiny, [8])
  run, go = run_poisoned(start, tmp_path, parts)
  with pytest.raises(errors.NonFiniteError) as caught:
    go()
  assert caught.value.exit_code == 5
  message = str(caught.value)
  assert 'step 8' in message
  assert 'nan' in message
  assert '0:' in message
  assert len(message.splitlines()) <= 5
  assert run.last.steps() == [3, 6]
  restored = run.last.restore(6, run.abstract).state
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(restored.params))


def test_r9_skip_leaves_the_update_out(tiny, start, tmp_path):
  parts = poisoned(tiny, [8], train__nonfinite='skip')
  run, go = run_poisoned(start, tmp_path / 'whole', parts)
  final = go()
  rows = run.metrics.rows('train')
  assert [r['step'] for r in rows if 'skipped' in r] == [8]
  assert [r['step'] for r in rows] == list(range(1, 13))
  before, go = run_poisoned(start, tmp_path / 'before', parts, StopAt(7))
  with pytest.raises(errors.Preempted):
    go()
  _, go = run_poisoned(start, tmp_path / 'after', parts, StopAt(8))
  with pytest.raises(errors.Preempted):
    go()
  at_7 = before.last.restore(7, run.abstract).state
  after, _ = start(tmp_path / 'after')
  at_8 = after.last.restore(8, run.abstract).state
  assert state.digest(at_7.params) == state.digest(at_8.params)
  assert state.digest(at_7.opt_state) == state.digest(at_8.opt_state)
  _, go = run_poisoned(start, tmp_path / 'after', parts)
  assert state.digest(go()) == state.digest(final)


def test_r9_rollback_goes_back_and_past_the_batches(tiny, start, tmp_path):
  parts = poisoned(tiny, [8], train__nonfinite='rollback')
  run, go = run_poisoned(start, tmp_path / 'alone', parts)
  final = go()
  rows = run.metrics.rows('train')
  assert [(r['step'], r['rolled_back_to']) for r in rows if len(r) == 3] == [
    (8, 6)
  ]
  assert int(final.step) == 12
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(final.params))
  for step in (7, 8, 9):
    folder = tmp_path / str(step)
    _, go = run_poisoned(start, folder, parts, StopAt(step))
    with pytest.raises(errors.Preempted):
      go()
    other, go = run_poisoned(start, folder, parts)
    assert state.digest(go()) == state.digest(final)
    assert other.metrics.path.read_bytes() == run.metrics.path.read_bytes()


def test_r9_rollback_before_the_first_checkpoint(tiny, start, tmp_path):
  parts = poisoned(tiny, [2], train__nonfinite='rollback')
  run, go = run_poisoned(start, tmp_path, parts)
  go()
  events = [r for r in run.metrics.rows('train') if len(r) == 3]
  assert [(r['step'], r['rolled_back_to']) for r in events] == [(2, 0)]


@pytest.mark.parametrize('policy', ['skip', 'rollback'])
def test_r9_a_run_that_cannot_recover_ends(tiny, start, tmp_path, policy):
  parts = poisoned(tiny, range(1, 13), train__nonfinite=policy)
  _, go = run_poisoned(start, tmp_path, parts)
  with pytest.raises(errors.NonFiniteError):
    go()


def test_without_any_number_the_first_row_is_the_best(start, tmp_path):
  run, _ = start(tmp_path / 'run')
  rows = [{'step': step, 'accuracy': float('nan')} for step in (4, 8)]
  run = dataclasses.replace(
    run, metrics=types.SimpleNamespace(rows=lambda split: rows)
  )
  assert loop.best_row(run) is rows[0]
