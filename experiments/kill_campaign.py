"""R2: kill a run at random times until it is done; same bytes at the end?

  python -m experiments.kill_campaign --kills=100 --workdir=runs/kills \
    --csv=experiments/results/kill_campaign.csv

One run is left alone. Then runs with the same config are started and killed
by SIGKILL after a time drawn uniformly from the wall time of a whole run (so
imports, compilation, steps, saves and evaluations are all hit), and started
again until they finish. Compared are `state_sha256`, the test scores and the
bytes of metrics.jsonl; every training step must stand there exactly once. With
--pretrain the runs have a stage of self-pretraining before them, whose metrics
and parameters are compared as well. About eight seconds a kill on two cores.
Exit code 1 if anything differs.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

from effformer.train.workdir import PRETRAIN
from experiments import table, tiny

NUM_STEPS = 300
PRETRAIN_STEPS = 200
SAVE_EVERY = 25


def command(
  workdir: pathlib.Path, data: pathlib.Path, pretrain_steps: int
) -> list[str]:
  return tiny.command(
    workdir,
    data,
    train__num_steps=NUM_STEPS,
    train__eval_every_steps=50,
    train__checkpoint_every_steps=SAVE_EVERY,
    pretrain__num_steps=pretrain_steps,
    pretrain__warmup_steps=10,
  )


def run_once(arguments: list[str], kill_after: float | None) -> int:
  """Starts the run and kills it after so many seconds; its exit code."""
  process = tiny.start(arguments)
  try:
    output, _ = process.communicate(timeout=kill_after)
  except subprocess.TimeoutExpired:
    process.kill()
    process.communicate()
    return -signal.SIGKILL
  if process.returncode:
    print(output[-2000:])
  return process.returncode


def outcome(workdir: pathlib.Path) -> dict:
  result = tiny.result(workdir)
  stage = workdir / PRETRAIN
  return {
    'state_sha256': result['state_sha256'],
    'test': result['test'],
    'metrics': (workdir / 'metrics.jsonl').read_bytes(),
    'pretrain': result.get('pretrain'),
    'pretrain_metrics': (
      (stage / 'metrics.jsonl').read_bytes() if stage.exists() else None
    ),
  }


def steps_once(workdir: pathlib.Path, pretrain_steps: int) -> bool:
  """Whether each step, of the stage as well, stands in the metrics once."""
  stages = {workdir: NUM_STEPS}
  if pretrain_steps:
    stages[workdir / PRETRAIN] = pretrain_steps
  return all(
    [row['step'] for row in tiny.rows(folder, 'train')]
    == list(range(1, count + 1))
    for folder, count in stages.items()
  )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--pretrain', action='store_true')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/kills')
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  options = parser.parse_args()
  workdir = options.workdir.resolve()
  data = workdir / 'data'
  stage = PRETRAIN_STEPS if options.pretrain else 0
  tiny.write_data(data)
  generator = random.Random(options.seed)
  # Twice: the first start compiles, the second finds the programs cached, as
  # the restarts will.
  for name in ('warm', 'alone'):
    start = time.monotonic()
    code = run_once(command(workdir / name, data, stage), None)
    wall = time.monotonic() - start
    if code:
      print(f'the run that was left alone exited {code}')
      return 1
  alone = outcome(workdir / 'alone')
  kills, runs, differing, failures = 0, 0, 0, 0
  once = steps_once(workdir / 'alone', stage)
  print(f'a whole run takes {wall:.1f} s; {options.kills} kills to go')
  while kills < options.kills:
    folder = workdir / f'killed-{runs}'
    while True:
      limit = generator.uniform(0, wall) if kills < options.kills else None
      code = run_once(command(folder, data, stage), limit)
      if code != -signal.SIGKILL:
        break
      kills += 1
      print(f'run {runs}: killed after {limit:.1f} s ({kills})', flush=True)
    runs += 1
    if code:
      failures += 1
      print(f'run {runs - 1} exited {code} by itself')
      continue
    once = once and steps_once(folder, stage)
    same = outcome(folder) == alone
    differing += not same
    print(f'run {runs - 1}: {"same bytes" if same else "DIFFERENT"}')
  facts = tiny.result(workdir / 'alone')
  figures = {
    'kills': kills,
    'runs': runs,
    'divergences': differing,
    'failures': failures,
    'steps_exactly_once': once,
    'wall_seconds_of_a_run': round(wall, 1),
    'steps': NUM_STEPS,
    'pretrain_steps': stage,
    'checkpoint_every_steps': SAVE_EVERY,
    'seed': options.seed,
    'commit': facts['commit'],
    'device': facts['device'],
  }
  print(json.dumps(figures, indent=2))
  table.merge(options.csv, [figures], 'pretrain_steps')
  return int(bool(differing or failures or not figures['steps_exactly_once']))


if __name__ == '__main__':
  sys.exit(main())
