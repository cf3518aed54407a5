"""The only training loop of the project.

What can differ between runs (task, loss, optimiser, schedule) enters as a
value. The order of one round is: evaluate if due, save if due, stop if asked,
step. Each part is left out where the run folder shows that it was done, so a
run that was killed anywhere repeats exactly what is missing.
"""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from effformer import data, errors
from effformer.tasks.task import Task
from effformer.train import (
  checkpoint,
  evaluation,
  identity,
  preemption,
  records,
  screen,
  sharding,
  state,
)

# Steps sent to the device before the first of them is read back: enough to
# keep it busy, few enough that a bad step is seen at once.
RUN_AHEAD = 2
MAX_ROLLBACKS = 10
MAX_SKIPS_IN_A_ROW = 10


@dataclasses.dataclass
class Run:
  """Everything that one run holds; `setup.prepare` builds it.

  Attributes:
    config: the locked config.
    task: data, model and measures.
    mesh: the devices.
    abstract: shapes and shardings of the state.
    first_state: () -> the state before the first step.
    train_step: compiled (state, batch, *frozen) -> (state, metrics).
    eval_step: compiled (params, batch) -> sums.
    last, best: checkpoints of the whole state, of the best parameters.
    metrics: the rows of metrics.jsonl.
    board: the same for TensorBoard.
    stop: the signals.
    screen: what people see.
    clock: where the time went.
    frozen: what the training step takes behind state and batch.
  """

  config: ml_collections.ConfigDict
  task: Task
  mesh: jax.sharding.Mesh
  abstract: state.TrainState
  first_state: Callable[[], state.TrainState]
  train_step: Callable
  eval_step: Callable
  last: checkpoint.Checkpoints
  best: checkpoint.Checkpoints
  metrics: records.Metrics
  board: records.TensorBoard
  stop: preemption.Stop
  screen: screen.Screen
  clock: screen.Clock
  frozen: tuple[Any, ...] = ()


class _RollBack(Exception):
  """A step was not finite, and `train.nonfinite` is 'rollback'."""

  def __init__(self, step: int):
    super().__init__(step)
    self.step = step


def best_row(run: Run) -> dict[str, Any] | None:
  """The validation row that names the best step so far; ties to the first."""
  rows = run.metrics.rows('validation')
  best = records.best(
    rows, run.task.select, is_lower_better=run.task.is_lower_better
  )
  # Where no row has a number, the first of them.
  return best or next(iter(rows), None)


def evaluate(run: Run, params: Any, split: str) -> dict[str, float | int]:
  """Exact means over a split.

  Raises:
    Preempted: asked to stop.
  """
  train = run.config.train
  source, size = run.task.dataset.splits[split], train.eval_batch_size
  done = 0

  def after_batch() -> None:
    nonlocal done
    done = min(done + size, len(source))
    run.screen.tick(f'evaluating {split}: {done:,} of {len(source):,}')
    if run.stop.agree(train.num_steps):
      raise errors.Preempted(f'stopped while evaluating {split}')

  start = time.monotonic()
  batches = data.eval_batches(
    source,
    run.task.encode,
    batch_size=size,
    max_length=run.config.data.max_length,
    num_threads=run.config.data.num_threads,
    prefetch=run.config.data.prefetch,
    rows=sharding.local_rows(run.mesh, size),
    drop_remainder=run.config.data.drop_remainder,
    encode_pair=run.task.encode_pair,
  )
  with batches:
    result = evaluation.evaluate(
      run.eval_step,
      params,
      (sharding.to_devices(run.mesh, rows, size) for rows in batches),
      after_batch,
    )
  run.clock.evaluation += time.monotonic() - start
  run.clock.evaluated += result['count']
  return run.task.summarise(result)


def train(run: Run, current: state.TrainState) -> state.TrainState:
  """Runs from the given state to `train.num_steps`.

  Raises:
    Preempted: asked to stop; the state is saved.
    NonFiniteError: see `train.nonfinite`.
    CheckpointError: a checkpoint or record could not be written.
  """
  num_steps = run.config.train.num_steps
  with run.screen.progress(int(current.step), num_steps):
    while True:
      try:
        return _advance(run, current)
      except _RollBack as bad:
        current = _rolled_back(run, bad.step)


def _advance(run: Run, current: state.TrainState) -> state.TrainState:
  """Rounds until the last step, a stop, or a step that was not finite."""
  config = run.config.train
  position = int(current.step)
  pending: collections.deque = collections.deque()
  batches = batches_after(run.config, run.task, run.mesh, position)
  try:
    while True:
      is_last = position == config.num_steps
      stop = _stop_now(run, position)
      evaluation_due = _due(position, config.eval_every_steps, is_last)
      save_due = _due(position, config.checkpoint_every_steps, is_last)
      if evaluation_due or save_due or stop:
        start = time.monotonic()
        _settle(run, pending, allowed=0)
        run.clock.train += time.monotonic() - start
      if evaluation_due:
        _evaluate_once(run, current, position)
      if save_due or stop:
        save(run, current, position)
      if is_last:
        return current
      if stop:
        raise errors.Preempted(f'stopped and saved at step {position}')
      start = time.monotonic()
      rows = next(batches)
      # Not the transfer: it waits for the step under way, not for data.
      run.clock.waiting += time.monotonic() - start
      batch = sharding.to_devices(run.mesh, rows, config.batch_size)
      current, metrics = run.train_step(current, batch, *run.frozen)
      position += 1
      pending.append((position, metrics))
      if not run.clock.steps:
        with run.screen.heartbeat('the first step', _at_least(run, position)):
          jax.block_until_ready(metrics)
      run.clock.train += time.monotonic() - start
      run.clock.steps += 1
      run.clock.trained += config.batch_size
      start = time.monotonic()
      _settle(run, pending, allowed=RUN_AHEAD if run.clock.steps > 1 else 0)
      run.clock.train += time.monotonic() - start
  finally:
    batches.close()


def _at_least(run: Run, position: int) -> Callable[[float], str]:
  """What the time that the first step has taken so far says of the rest."""
  steps = run.config.train.num_steps - position + 1
  return lambda seconds: f'ETA at least {screen.duration(steps * seconds)}'


def _stop_now(run: Run, position: int) -> bool:
  """Whether to stop here; the same answer in every process."""
  # Several processes have to talk about it: not at every step.
  if jax.process_count() > 1 and position % run.config.train.log_every_steps:
    return False
  return run.stop.agree(position)


def _due(position: int, every: int, is_last: bool) -> bool:
  return is_last or (position > 0 and position % every == 0)


def batches_after(
  config: ml_collections.ConfigDict,
  task: Task,
  mesh: jax.sharding.Mesh,
  position: int,
) -> data.Batches:
  """This process's rows of the batches of the steps after `position`."""
  size = config.train.batch_size
  return data.train_batches(
    task.dataset.splits['train'],
    task.encode,
    seed=config.seed,
    batch_size=size,
    max_length=config.data.max_length,
    start_step=position,
    num_steps=config.train.num_steps,
    num_threads=config.data.num_threads,
    prefetch=config.data.prefetch,
    rows=sharding.local_rows(mesh, size),
    encode_pair=task.encode_pair,
  )


def _settle(run: Run, pending: collections.deque, allowed: int) -> None:
  """Reads back all but the newest `allowed` steps, and records them."""
  config = run.config.train
  policy = config.nonfinite
  while len(pending) > allowed:
    position, metrics = pending.popleft()
    values = jax.device_get(metrics)
    finite = bool(values.pop('finite'))
    row = {name: float(value) for name, value in values.items()}
    if not finite:
      _not_finite(run, policy, position, row)
    elif position % config.log_every_steps == 0:
      _record(run, position, 'train', row)
    steps_left = config.num_steps - position
    examples_left = _evaluated_after(run, position)
    eta = run.clock.remaining(steps_left, examples_left)
    run.screen.step(position, config.num_steps, row, run.clock, eta)


def _record(run: Run, step: int, split: str, values: dict[str, Any]) -> None:
  run.metrics.append({'step': step, 'split': split, **values})
  run.board.write(step, {f'{split}/{k}': float(v) for k, v in values.items()})


def _evaluated_after(run: Run, position: int) -> int:
  """Examples that evaluations will still read, the test split among them."""
  train_config, splits = run.config.train, run.task.dataset.splits
  every, total = train_config.eval_every_steps, train_config.num_steps
  times = -(-total // every) - position // every
  return times * len(splits['validation']) + len(splits['test'])


def _not_finite(
  run: Run, policy: str, position: int, row: dict[str, float]
) -> None:
  """Obeys `train.nonfinite` after a step whose update was left out."""
  if policy == 'abort':
    raise errors.NonFiniteError(
      f'loss {row["loss"]} or gradient norm {row["grad_norm"]} is not finite '
      f'at step {position}.\n'
      f'Its training examples: {_example_ids(run, position)}.\n'
      'Go on with --config.train.nonfinite=skip or rollback, or lower '
      'train.learning_rate in another --workdir.'
    )
  if policy == 'rollback':
    raise _RollBack(position)
  _record(run, position, 'train', {**row, 'skipped': True})
  run.screen.say(
    f'step {position} left out: loss {row["loss"]}, gradient norm '
    f'{row["grad_norm"]}; examples {_example_ids(run, position)}'
  )
  skipped = {r['step'] for r in run.metrics.rows('train') if 'skipped' in r}
  last_ones = range(position - MAX_SKIPS_IN_A_ROW + 1, position + 1)
  if skipped.issuperset(last_ones):
    raise errors.NonFiniteError(
      f'{MAX_SKIPS_IN_A_ROW} steps in a row were not finite, the last of '
      f'them {position}.\nLower train.learning_rate or set train.clip_norm, '
      'in another --workdir.'
    )


def _example_ids(run: Run, position: int) -> str:
  """The first ids of the examples behind a step, for people."""
  config, source = run.config, run.task.dataset.splits['train']
  size = config.train.batch_size
  rows_B = data.example_indices(
    len(source), (position - 1) * size + np.arange(size), seed=config.seed
  )
  ids = [source[int(row)]['id'] for row in rows_B]
  more = f' and {len(ids) - 5} more' if len(ids) > 5 else ''
  return ', '.join(ids[:5]) + more


def _rolled_back(run: Run, bad: int) -> state.TrainState:
  """The state of the last regular checkpoint, set to go on after `bad`.

  All updates since that checkpoint are left out. Only checkpoints at multiples
  of `checkpoint_every_steps` count: one that a signal left behind must not
  change how the run ends.
  """
  every = run.config.train.checkpoint_every_steps
  events = [r for r in run.metrics.rows('train') if 'rolled_back_to' in r]
  if len(events) == MAX_ROLLBACKS:
    raise errors.NonFiniteError(
      f'step {bad} is not finite after {MAX_ROLLBACKS} rollbacks.\n'
      'Lower train.learning_rate or set train.clip_norm, in another --workdir.'
    )
  target = (bad - 1) // every * every
  if target:
    restored = run.last.restore(target, run.abstract).state
  else:
    restored = run.first_state()
  run.screen.say(
    f'step {bad} is not finite: back to the state of step {target}, on with '
    f'the batch after step {bad}; left out: {_example_ids(run, bad)}'
  )
  _record(run, bad, 'train', {'rolled_back_to': target})
  step = jax.device_put(
    jax.numpy.asarray(bad, restored.step.dtype), run.abstract.step.sharding
  )
  return restored.replace(step=step)


def _evaluate_once(run: Run, current: state.TrainState, position: int) -> None:
  """Validation at this step, unless its row stands already."""
  if any(row['step'] == position for row in run.metrics.rows('validation')):
    # A kill may have come between the row and its parameters.
    if best_row(run)['step'] == position:
      run.best.save(position, current.params)
    return
  try:
    result = evaluate(run, current.params, 'validation')
  except errors.Preempted:
    save(run, current, position)
    raise
  _record(run, position, 'validation', result)
  is_best = best_row(run)['step'] == position
  score = run.task.score
  run.screen.say(
    f'step {position}  validation loss {result["loss"]:.4f}  {score} '
    f'{result[score]:.4f} of {result["count"]}'
    + (f', {result["bits"]:.4f} bits a token' if 'bits' in result else '')
    + ('  (best so far)' if is_best else '')
  )
  if is_best:
    run.best.save(position, current.params)


def save(run: Run, current: state.TrainState, position: int) -> None:
  """Commits the state, with the metrics that lead to it, once per step."""
  run.metrics.flush()
  if position in run.last.steps():
    return
  start = time.monotonic()
  run.last.save(position, current, {'versions': identity.versions()})
  every = run.config.train.checkpoint_every_steps
  run.last.prune(keep_also=(position // every * every,))
  best = best_row(run)
  # Only now: an older best is what a restart from an older state needs.
  run.best.prune(keep_also=(best['step'],) if best else ())
  run.clock.saving += time.monotonic() - start
