"""Training steps of Path-X, 16,384 tokens a row, on one machine.

  python -m experiments.path_x --csv=experiments/results/path_x.csv

Each mechanism in a process of its own: the step of `lra_pathfinder128.py`,
preset modern, whole batch, on random tokens. Reported are the temporary memory
of the compiled program, the peak of resident memory of the process, and the
seconds of a step (the median; the first one is left out). The bar is 4 GB for a
mechanism of linear memory.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import jax

from effformer import config as config_lib
from effformer import tasks
from effformer.train import efficiency, result, setup
from experiments import table

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs' / 'lra_pathfinder128.py'
BAR = 4e9


def measure(mechanism: str, steps: int) -> dict:
  """The figures of one mechanism; peak memory is that of this process."""
  config, _ = config_lib.load(f'{CONFIG}:{mechanism}')
  task = tasks.without_data(config)
  program = setup.build(config, task)
  compiled = program.trace_train_step().lower().compile()
  size = config.train.batch_size
  batch = efficiency.random_batch(config, task, program.mesh, size)
  state, seconds = program.first_state(), []
  for _ in range(steps + 1):
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, batch))
    seconds.append(time.perf_counter() - start)
  if not float(metrics['loss']) < float('inf'):
    raise SystemExit(f'{mechanism}: the loss is {metrics["loss"]}')
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    'mechanism': mechanism,
    'preset': config.preset,
    'tokens': config.data.max_length,
    'batch_size': size,
    'accumulate_steps': config.train.accumulate_steps,
    'num_params': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    'temporary_mb': round(compiled.memory_analysis().temp_size_in_bytes / 1e6),
    'peak_resident_mb': round(peak / 1e6),
    'seconds_per_step': round(statistics.median(seconds[1:]), 2),
    'device': result.device(),
    'commit': result.commit(),
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--mechanisms', default='linear,local,s5')
  parser.add_argument('--steps', type=int, default=2)
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  parser.add_argument('--one', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.one:
    print(json.dumps(measure(options.one, options.steps)))
    return 0
  is_good = True
  for mechanism in options.mechanisms.split(','):
    words = (f'--one={mechanism}', f'--steps={options.steps}')
    made = subprocess.run(
      [sys.executable, '-m', 'experiments.path_x', *words],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    figures = json.loads(made.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=2), flush=True)
    table.merge(options.csv, [figures], 'mechanism', 'preset')
    is_good &= 1e6 * figures['peak_resident_mb'] < BAR
  return int(not is_good)


if __name__ == '__main__':
  sys.exit(main())
