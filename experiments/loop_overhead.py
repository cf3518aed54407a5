"""How much slower is the loop than the bare compiled step?

  python -m experiments.loop_overhead \
    --csv=experiments/results/loop_overhead.csv

In one process, in turns: a block of bare calls of the compiled training step
on one batch, then a block of the same length of the whole loop (data, metrics,
records, screen, signals), on the quick text config. Reported are the medians
over rounds and the median ratio loop rate / bare rate of neighbouring blocks;
the bar is 0.95. Saving and evaluating are left out of both. About three
minutes on two cores.
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
from effformer.train import loop, result, screen, session, setup, sharding
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
  run.clock.train, run.clock.steps = 0.0, 0
  with contextlib.suppress(errors.Preempted):
    loop.train(run, state)
  return run.clock.steps_per_second()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--mechanism', default='linear')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--steps', type=int, default=30, help='in a block')
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  options = parser.parse_args()
  config, _ = config_lib.load(
    f'{ROOT}/configs/lra_text.py:{options.mechanism},quick'
  )
  never = config.train.num_steps
  config.train.eval_every_steps = config.train.checkpoint_every_steps = never
  task = tasks.make(config)
  program = setup.build(config, task)
  console = screen.Screen()
  compiled = setup.compile_steps(program, console, screen.Clock()).train
  stop, rates = StopAt(), []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    bare_state = program.first_state()
    batch = None
    for number in range(options.rounds + 1):
      run, state = session.resume(config, task, program, folder, stop, console)
      run.train_step = compiled
      if batch is None:
        size = config.train.batch_size
        rows = data.batch_at(
          task.dataset.splits['train'],
          task.encode,
          0,
          seed=config.seed,
          batch_size=size,
          max_length=config.data.max_length,
        )
        batch = sharding.to_devices(run.mesh, rows, size)
      bare, bare_state = bare_rate(compiled, bare_state, batch, options.steps)
      whole = loop_rate(run, state, stop, options.steps)
      # The first round warms both up.
      if number:
        rates.append((bare, whole))
        print(f'bare {bare:.2f}  loop {whole:.2f} steps/s', flush=True)
  figures = {
    'mechanism': options.mechanism,
    'bare_steps_per_second': round(statistics.median(r[0] for r in rates), 3),
    'loop_steps_per_second': round(statistics.median(r[1] for r in rates), 3),
    'median_ratio': round(statistics.median(b / a for a, b in rates), 4),
    'rounds': options.rounds,
    'steps_in_a_block': options.steps,
    'stand_in': task.dataset.stand_in,
    'device': result.device(),
    'commit': result.commit(),
  }
  print(json.dumps(figures, indent=2))
  table.write(options.csv, [figures])
  return int(figures['median_ratio'] < 0.95)


if __name__ == '__main__':
  sys.exit(main())
