"""A grid of runs: tasks x mechanisms x seeds, that survives being killed.

  python -m experiments.run_lra --tasks=text,listops --mechanisms=linear,full \
    --quick --data=FOLDER --csv=experiments/results/quick_text.csv
  python -m experiments.run_lra --tasks=all --mechanisms=all --preset=modern

Each run is one process and one folder below --workdir, made by
`python -m effformer.main`; the same command goes on where it stopped, and what
is finished is not run again. One process at a time, or with --devices=N one on
each of N GPUs. SIGTERM and Ctrl-C reach the runs, which save; the exit code is
then 143. A grid that is killed outright leaves the run under way: the next one
waits for its end. A run that fails is named at the end (exit code 1) and the
others go on. All runs of a seed come first, so a grid that is cut short is
still fair.

FOLDER holds real data under the names of `FILES`; without it the prepared data
of each task are used. Rows that the table holds of other runs stay. --matched
sets `model.mlp_width` so that every mechanism has as many parameters as `full`
(see `matching`).
`python -m effformer.report WORKDIR` makes tables and plots of the folders.
"""

import argparse
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from effformer.errors import ConfigError
from effformer.train import workdir
from experiments import matching, table

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
TASKS = tuple(
  sorted(path.stem.removeprefix('lra_') for path in CONFIGS.glob('lra_*.py'))
)
# Keys of the config -> file of the folder that --data names.
FILES = {
  'text': {'train': 'imdb_train.jsonl.gz', 'test': 'imdb_test.jsonl.gz'},
  'image': {'train': 'cifar10_gray.npz'},
  # Of abstracts: whole in fewer tokens than full texts, and more of them.
  'retrieval': {
    'documents': 'aan_abstract_docs.jsonl.gz',
    'train': 'aan_abstract_pairs_train.tsv.gz',
    'validation': 'aan_abstract_pairs_validation.tsv.gz',
    'test': 'aan_abstract_pairs_test.tsv.gz',
  },
}
# `train_seconds`: of all steps at the rate of the last start.
COLUMNS = (
  *('task', 'mechanism', 'preset', 'quick', 'seed', 'steps', 'batch_size'),
  *('max_length', 'num_params', 'products_per_step', 'test_accuracy'),
  *('test_count', 'validation_accuracy', 'floor_name', 'floor'),
  *('points_above_floor', 'majority', 'stand_in', 'steps_per_second'),
  *('train_seconds', 'waiting_share', 'device', 'commit', 'command', 'variant'),
)
# Switches of this script that make other runs of the same name.
VARIANTS = ('pretrain', 'matched')
PREEMPTED = 143
_POLL_SECONDS = 0.2


class Cell(NamedTuple):
  """One run of the grid.

  Attributes:
    name: of its folder.
    arguments: of python.
    workdir: its folder.
  """

  name: str
  arguments: tuple[str, ...]
  workdir: pathlib.Path


def grid(options, refused: list[tuple[str, int]]) -> list[Cell]:
  """The cells, seed by seed; what cannot be run goes to `refused`."""
  cells = []
  for seed, task, mechanism in itertools.product(
    options.seeds, options.tasks, options.mechanisms
  ):
    name = '-'.join([task, mechanism, *variant(options), str(seed)])
    workdir = options.workdir / name
    switches = [
      word for word in ('quick', 'pretrain') if getattr(options, word)
    ]
    argument = ','.join([mechanism, f'preset={options.preset}', *switches])
    sizes = []
    if options.matched:
      path = str(CONFIGS / f'lra_{task}.py')
      try:
        width = matching.mlp_width(path, argument, tuple(options.set))
      except ConfigError as error:
        print(f'{name}: error: {error}', file=sys.stderr)
        refused.append((name, ConfigError.exit_code))
        continue
      sizes = [f'--config.model.mlp_width={width}']
    own = [
      f'--config.data.{key}={options.data}/{file}'
      for key, file in FILES.get(task, {}).items()
      if options.data
    ]
    arguments = (
      *('-m', 'effformer.main', f'--config=configs/lra_{task}.py:{argument}'),
      *(f'--workdir={workdir}', f'--config.seed={seed}', *own, *options.set),
      *sizes,
    )
    cells.append(Cell(name, arguments, workdir))
  return cells


def variant(options) -> list[str]:
  """Which of VARIANTS are asked for."""
  return [name for name in VARIANTS if getattr(options, name)]


class Signals:
  """Passes signals on to the processes under way, and remembers them."""

  def __init__(self):
    self.came = False
    self.processes: list[subprocess.Popen] = []

  def __enter__(self):
    self._before = {
      number: signal.signal(number, self._pass_on)
      for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _pass_on(self, number, frame):
    del number, frame
    self.came = True
    for process in self.processes:
      if process.poll() is None:
        process.terminate()


def run_all(
  cells: Sequence[Cell],
  num_slots: int,
  signals: Signals,
  done: Callable[[Cell, int], None],
  environment: Callable[[int], dict[str, str]],
) -> None:
  """Runs the cells in order, `num_slots` at a time, until a signal came.

  Args:
    cells: what to run.
    num_slots: how many processes at once.
    signals: entered.
    done: called with a cell and its exit code, as they end.
    environment: of the processes in a slot.
  """
  waiting, slots = list(cells), {}
  while slots or (waiting and not signals.came):
    for slot in range(num_slots):
      if slot not in slots and waiting and not signals.came:
        cell = waiting.pop(0)
        print(f'{cell.name}: begins', flush=True)
        # A group of its own: the terminal's Ctrl-C reaches it through us, once.
        process = subprocess.Popen(
          [sys.executable, *cell.arguments],
          cwd=ROOT, env=environment(slot), start_new_session=True,
        )  # fmt: skip
        slots[slot] = cell, process
        signals.processes.append(process)
        if signals.came:
          process.terminate()
    for slot, (cell, process) in list(slots.items()):
      if process.poll() is not None:
        del slots[slot]
        signals.processes.remove(process)
        done(cell, process.returncode)
    time.sleep(_POLL_SECONDS)


def wait_for_others(cells: Sequence[Cell], signals: Signals) -> None:
  """Waits for runs that a killed grid left behind, until a signal came."""
  for cell in cells:
    told = ''
    while not signals.came and (who := workdir.holder(ROOT / cell.workdir)):
      if who != told:
        print(f'{cell.name}: waiting for {who}, which runs it', flush=True)
        told = who
      time.sleep(_POLL_SECONDS)


def _environment(options) -> Callable[[int], dict[str, str]]:
  def of_slot(slot: int) -> dict[str, str]:
    own = {'CUDA_VISIBLE_DEVICES': str(slot)} if options.devices else {}
    return {**os.environ, **own}

  return of_slot


def _without_path(word: str) -> str:
  """Paths of one machine do not belong into a table."""
  flag, _, value = word.partition('=')
  path = pathlib.Path(value)
  if flag.startswith('--config.data.') and '/' in value:
    return f'{flag}=FOLDER/{path.name}'
  if flag == '--workdir' and path.is_absolute():
    return f'{flag}=runs/{path.name}'
  return word


def row_of(result: dict, arguments: Sequence[str], variant: str) -> dict:
  """One line of the table; the floor is the highest trivial model."""
  name, floor = max(result['floors'].items(), key=lambda item: item[1])
  accuracy = result['test']['accuracy']
  seconds = result['seconds_of_last_start']
  share = seconds['waiting_for_data'] / (seconds['train'] or 1.0)
  words = [_without_path(word) for word in arguments]
  row = {
    **result,
    'products_per_step': result['cost']['products_per_step'],
    'test_accuracy': round(100 * accuracy, 2),
    'test_count': result['test']['count'],
    'validation_accuracy': round(100 * result['validation']['accuracy'], 2),
    'floor_name': name,
    'floor': round(100 * floor, 2),
    'points_above_floor': round(100 * (accuracy - floor), 2),
    'majority': round(100 * result['floors']['majority'], 2),
    'train_seconds': result['steps_per_second']
    and round(result['steps'] / result['steps_per_second'], 2),
    'waiting_share': round(share, 4),
    'command': ' '.join(['python', *words]),
    'variant': variant,
  }
  return {column: row[column] for column in COLUMNS}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--tasks', default='text', help='all, or a,b,...')
  parser.add_argument(
    '--mechanisms', default='linear,full', help='all, or a,b+c,...'
  )
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument(
    '--preset', default='modern', choices=('modern', 'repo', 'paper')
  )
  parser.add_argument('--quick', action='store_true')
  parser.add_argument(
    '--pretrain', action='store_true', help='self-pretraining before each run'
  )
  parser.add_argument(
    '--matched', action='store_true', help='as many parameters as full'
  )
  parser.add_argument('--data', help='folder of real data')
  parser.add_argument(
    '--set', action='append', default=[], metavar='--config.KEY=VALUE',
    help='further flags of every run',
  )  # fmt: skip
  parser.add_argument(
    '--devices', type=int, default=0, help='GPUs, one run on each at a time'
  )
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/lra')
  parser.add_argument('--csv', type=pathlib.Path, help='write the table')
  options = parser.parse_args(words)
  options.tasks = _names(parser, options.tasks, TASKS)
  try:
    options.seeds = [int(seed) for seed in options.seeds.split(',')]
  except ValueError:
    parser.error(f'--seeds={options.seeds}: numbers are needed, as in 0,1,2')
  if options.mechanisms == 'all':
    from effformer import attention

    options.mechanisms = [
      name
      for name, mechanism in attention.TABLE.items()
      if mechanism.supports.bidirectional
    ]
  else:
    options.mechanisms = options.mechanisms.split(',')
  return options


def _names(parser, words, known):
  names = list(known) if words == 'all' else words.split(',')
  for name in names:
    if name not in known:
      parser.error(f'no task {name!r}; there are {", ".join(known)}')
  return names


def main(words: Sequence[str] | None = None) -> int:
  options = arguments(words)
  failed = []

  def done(cell: Cell, code: int) -> None:
    print(f'{cell.name}: exit code {code}', flush=True)
    if code:
      failed.append((cell.name, code))
      return
    result = json.loads((ROOT / cell.workdir / 'result.json').read_text())
    row = row_of(result, cell.arguments, '+'.join(variant(options)))
    keys = ('task', 'mechanism', 'preset', 'quick', 'variant', 'seed')
    table.merge(options.csv, [row], *keys)
    print(
      f'{cell.name}: {row["test_accuracy"]} percent; floor {row["floor"]} '
      f'({row["floor_name"]})',
      flush=True,
    )

  if options.matched:
    # The accelerators are for the runs.
    jax.config.update('jax_platforms', 'cpu')
  cells = grid(options, failed)
  with Signals() as signals:
    wait_for_others(cells, signals)
    run_all(
      cells, max(options.devices, 1), signals, done,
      _environment(options),
    )  # fmt: skip
  if signals.came:
    print('stopped; the same command goes on')
    return PREEMPTED
  for name, code in failed:
    print(f'{name} failed with exit code {code}')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
