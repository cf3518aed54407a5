"""The quick runs on real data: three seeds, beside their floors.

  python -m experiments.quick_scores --task=text --mechanisms=linear,full \
    --data=FOLDER --csv=experiments/results/quick_text.csv
  python -m experiments.quick_scores --task=listops --mechanisms=linear,full \
    --csv=experiments/results/quick_listops.csv

FOLDER holds imdb_train.jsonl.gz and imdb_test.jsonl.gz, rows of `text` (the
review) and `label` (1 positive); without it the official archive is used.
Each run is one process and one run folder below --workdir; what is finished
is not run again, so a killed grid goes on. Rows that the table holds of other
mechanisms and seeds stay. Some minutes a run on two cores.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys

from experiments import table

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS = (
  *('task', 'mechanism', 'preset', 'quick', 'seed', 'steps', 'batch_size'),
  *('max_length', 'num_params', 'test_accuracy', 'test_count'),
  *('validation_accuracy', 'floor_name', 'floor', 'points_above_floor'),
  *('majority', 'stand_in', 'steps_per_second', 'train_seconds'),
  *('waiting_share', 'device', 'commit', 'command'),
)


def command(options, mechanism: str, seed: int, workdir) -> list[str]:
  own = []
  if options.data:
    own = [
      f'--config.data.train={options.data}/imdb_train.jsonl.gz',
      f'--config.data.test={options.data}/imdb_test.jsonl.gz',
    ]
  return [
    '-m',
    'effformer.main',
    f'--config=configs/lra_{options.task}.py:{mechanism},quick',
    f'--workdir={workdir}',
    f'--config.seed={seed}',
    *own,
  ]


def _without_path(word: str) -> str:
  """Paths of one machine do not belong into a table."""
  flag, _, value = word.partition('=')
  path = pathlib.Path(value)
  if flag.startswith('--config.data.'):
    return f'{flag}=FOLDER/{path.name}'
  if flag == '--workdir' and path.is_absolute():
    return f'{flag}=runs/quick/{path.name}'
  return word


def row_of(result: dict, arguments: list[str]) -> dict:
  """One line of the table; the floor is the highest trivial model."""
  name, floor = max(result['floors'].items(), key=lambda item: item[1])
  accuracy = result['test']['accuracy']
  seconds = result['seconds_of_last_start']
  share = seconds['waiting_for_data'] / (seconds['train'] or 1.0)
  words = [_without_path(word) for word in arguments]
  row = {
    **result,
    'test_accuracy': round(100 * accuracy, 2),
    'test_count': result['test']['count'],
    'validation_accuracy': round(100 * result['validation']['accuracy'], 2),
    'floor_name': name,
    'floor': round(100 * floor, 2),
    'points_above_floor': round(100 * (accuracy - floor), 2),
    'majority': round(100 * result['floors']['majority'], 2),
    'train_seconds': seconds['train'],
    'waiting_share': round(share, 4),
    'command': ' '.join(['python', *words]),
  }
  return {column: row[column] for column in COLUMNS}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--task', default='text', choices=('text', 'listops'))
  parser.add_argument('--mechanisms', default='linear,full')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--data', help='folder of real data')
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/quick')
  parser.add_argument('--csv', type=pathlib.Path, help='write the table')
  options = parser.parse_args()
  rows = []
  # All mechanisms of a seed first: a grid that is cut short is still fair.
  for seed, mechanism in itertools.product(
    map(int, options.seeds.split(',')), options.mechanisms.split(',')
  ):
    name = f'{options.task}-{mechanism}-{seed}'
    workdir = options.workdir / name
    arguments = command(options, mechanism, seed, workdir)
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode
    if code:
      print(f'{name} exited {code}')
      return code
    result = json.loads((ROOT / workdir / 'result.json').read_text())
    rows.append(row_of(result, arguments))
    table.merge(options.csv, rows, 'task', 'mechanism', 'seed')
  for mechanism in options.mechanisms.split(','):
    own = [row for row in rows if row['mechanism'] == mechanism]
    scores = [row['test_accuracy'] for row in own]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    print(
      f'{mechanism}: {statistics.mean(scores):.2f} ± {spread:.2f} over '
      f'{len(scores)} seeds; floor {own[0]["floor"]} ({own[0]["floor_name"]})'
    )
  return 0


if __name__ == '__main__':
  sys.exit(main())
