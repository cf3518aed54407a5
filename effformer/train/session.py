"""What one call of the program does: train, eval or dry_run.

Beside it: `prediction`, `generation`, `profile`, `efficiency`.
"""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from effformer.tasks.task import Task
from effformer.train import (
  loop,
  preemption,
  pretraining,
  records,
  result,
  runs,
  screen,
  setup,
  starting,
)


def dry_run(config: ml_collections.ConfigDict, console: screen.Screen) -> None:
  """Builds and compiles everything, trains nothing, writes no run folder."""
  task, program = runs.build(config, console)
  if start := starting.from_config(config):
    starting.check(start, program)
  if stage := pretraining.stage(config, task, program):
    console.say('the stage before it:')
    setup.compile_steps(stage.program, console, screen.Clock())
    console.say('the run:')
  setup.compile_steps(program, console, screen.Clock())
  console.say('dry run: all is well; nothing was trained, no run was written')


def train(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
  *,
  start: starting.Start | None = None,
  adapt: Callable[[Task], Task] | None = None,
) -> dict[str, Any]:
  """Trains to the end, tests once, writes and returns result.json.

  Args:
    config: the locked config.
    path: of the run folder.
    stop: the signals.
    console: what people see.
    start: parameters to begin with; None for what `model.pretrained` names.
    adapt: the task of the config -> that which is trained, for example with
      another objective; None for itself.
  """
  with runs.opened(config, path, console) as folder:
    done = result.read(folder / 'result.json')
    if done is not None:
      console.say(f'{folder} holds a finished run; its result:')
      console.say(*result.lines(done))
      return done
    task, program = runs.build(config, console, adapt)
    if start := start or starting.from_config(config):
      program = starting.begun(start, program, folder, console)
    if stage := pretraining.stage(config, task, program):
      # A start that never came to its first step binds nobody.
      runs.write_config(folder, config)
      facts = pretraining.pretrain(stage, folder, stop, console)
      program = pretraining.handed_on(stage, facts, program, folder, console)
    run, current, cost = runs.advanced(
      config, task, program, folder, stop, console
    )
    with stop.loop():
      row, params = runs.selected(run, current)
      console.say(f'testing the parameters of step {row["step"]}')
      test = loop.evaluate(run, params, 'test')
      stop.agree(config.train.num_steps)
    with console.heartbeat('measuring the floors'):
      floors = run.task.floors()
    outcome = result.make(run, current, row, test, floors, cost)
    if stage:
      outcome['pretrain'] = facts
    if start:
      outcome['start'] = starting.facts(folder)
    run.metrics.close()
    run.board.close()
    if jax.process_index() == 0:
      records.write_json(folder / 'result.json', outcome)
    console.say('', *result.lines(outcome), f'written to {folder}')
    return outcome


def evaluate(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """Scores a run folder: validation and, once it is finished, test.

  Writes eval.json; a checkpoint that proves damaged is set aside, nothing
  else is changed.
  """
  with runs.opened(config, path, console, must_exist=True) as folder:
    task, program = runs.build(config, console)
    run, current = runs.resume(
      config, task, program, folder, stop, console, is_writer=False
    )
    runs.require_evaluated(run, folder)
    run.eval_step = setup.compile_steps(
      program, console, run.clock, training=False
    ).evaluate
    # The test split is for the end of a run.
    is_finished = int(current.step) == config.train.num_steps
    splits = ('validation', 'test') if is_finished else ('validation',)
    with stop.loop():
      row, params = runs.selected(run, current)
      scores = {split: loop.evaluate(run, params, split) for split in splits}
      stop.agree(config.train.num_steps)
    outcome = {'step': row['step'], **scores}
    if is_finished:
      with console.heartbeat('measuring the floors'):
        outcome['floors'] = run.task.floors()
    if jax.process_index() == 0:
      records.write_json(folder / 'eval.json', outcome)
    score = task.score
    for split, found in scores.items():
      console.say(
        f'{split:<10} {score} {100 * found[score]:.2f} of '
        f'{found["count"]}, loss {found["loss"]:.4f}'
        + (f', {found["bits"]:.4f} bits a token' if 'bits' in found else '')
        + f' (step {row["step"]})'
      )
    for name, value in outcome.get('floors', {}).items():
      console.say(f'{"floor":<10} {score} {100 * value:.2f}  {name}')
    return outcome
