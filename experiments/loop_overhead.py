"""How much slower is the loop than the bare compiled step, on every task?

  python -m experiments.loop_overhead \
    --csv=experiments/results/loop_overhead.csv

In one process, in turns: a block of bare calls of the compiled training step
on one batch, then a block of the same length of the whole loop (data, metrics,
records, screen, signals), on the quick configs. Reported are for each task the
medians over rounds, the median ratio loop rate / bare rate of neighbouring
blocks (the bar is 0.95) and the share of the loop's time that it waited for
data (at most 0.05). Saving and evaluating are left out of both. About three
minutes a task on two cores; data that are not prepared are stand-ins.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax

from effformer import config as config_lib
from effformer import data, errors, tasks
from effformer.train import loop, result, runs, screen, setup, sharding
from experiments import table

ROOT = pathlib.Path(__file__).resolve().parent.parent


class StopAt:
  """Lets the loop run to a given step and no further."""

  def __init__(self):
    self.step = 0
    self.requested = False

  def agree(self, step: int) -> bool:
    return step >= self.step


def bare_rate(compiled, state, batch, steps: int):
  """Steps per second of the compiled step alone, and the state after it."""
  start = time.perf_counter()
  for _ in range(steps):
    state, metrics = compiled(state, batch)
  jax.block_until_ready((state, metrics))
  return steps / (time.perf_counter() - start), state


def loop_rate(run, state, stop, steps: int):
  """Steps per second of the loop, saving and evaluating left out."""
  stop.step = int(state.step) + steps
  run.clock.train, run.clock.steps, run.clock.waiting = 0.0, 0, 0.0
  with contextlib.suppress(errors.Preempted):
    loop.train(run, state)
  return run.clock.steps_per_second()


def measure(task_name: str, options) -> dict:
  """The figures of one task."""
  config, _ = config_lib.load(
    f'{ROOT}/configs/lra_{task_name}.py:{options.mechanism},quick'
  )
  never = config.train.num_steps
  config.train.eval_every_steps = config.train.checkpoint_every_steps = never
  task = tasks.make(config)
  program = setup.build(config, task)
  console = screen.Screen()
  compiled = setup.compile_steps(program, console, screen.Clock()).train
  size = config.train.batch_size
  rows = data.batch_at(
    task.dataset.splits['train'],
    task.encode,
    0,
    seed=config.seed,
    batch_size=size,
    max_length=config.data.max_length,
  )
  batch = sharding.to_devices(program.mesh, rows, size)
  bare_state, stop, rates = program.first_state(), StopAt(), []
  for number in range(options.rounds + 1):
    # A new folder each: no round goes on from the one before it.
    with tempfile.TemporaryDirectory() as name:
      run, state = runs.resume(
        config, task, program, pathlib.Path(name), stop, console
      )
      run.train_step = compiled
      bare, bare_state = bare_rate(compiled, bare_state, batch, options.steps)
      whole = loop_rate(run, state, stop, options.steps)
    # The first round warms both up.
    if number:
      rates.append((bare, whole, run.clock.waiting_share()))
      print(
        f'{task_name}: bare {bare:.2f}  loop {whole:.2f} steps/s', flush=True
      )
  bare_R, loop_R, waiting_R = zip(*rates, strict=True)
  return {
    'task': task_name,
    'mechanism': options.mechanism,
    'bare_steps_per_second': round(statistics.median(bare_R), 3),
    'loop_steps_per_second': round(statistics.median(loop_R), 3),
    'median_ratio': round(statistics.median(b / a for a, b, _ in rates), 4),
    'waiting_share': round(statistics.median(waiting_R), 4),
    'rounds': options.rounds,
    'steps_in_a_block': options.steps,
    'stand_in': task.dataset.stand_in,
    'device': result.device(),
    'commit': result.commit(),
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--tasks', default='text,listops,image,pathfinder32,retrieval'
  )
  parser.add_argument('--mechanism', default='linear')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--steps', type=int, default=30, help='in a block')
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  options = parser.parse_args()
  is_good = True
  for task_name in options.tasks.split(','):
    figures = measure(task_name, options)
    print(json.dumps(figures, indent=2))
    table.merge(options.csv, [figures], 'task', 'mechanism')
    is_good &= figures['median_ratio'] >= 0.95
    is_good &= figures['waiting_share'] <= 0.05
  return int(not is_good)


if __name__ == '__main__':
  sys.exit(main())
