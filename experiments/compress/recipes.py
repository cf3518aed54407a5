"""Recipes of --mode=compress on real tasks, over seeds, as one table.

  python -m experiments.compress.recipes --data=FOLDER --workdir=FOLDER \
    --recipes=ternary-kd,binary-kd --tasks=sst2 --seeds=0,1,2

FOLDER of the data holds files of GLUE as tsv (also .gz): glue_sst2_*, mrpc_*,
stsb_* with train, validation and test, and imdb_* as jsonl. The parent of a
task is the run of its config with `quick`, seed 0 (of stsb the encoder as it
is), and all recipes and seeds are of this parent; seeds are of the training and
the choices of a recipe. Interrupted, it goes on where it was. A row is a model
of a compression: the parent, after each step, and the controls. Rows of other
recipes, tasks and seeds stay in the table.
"""

import argparse
import pathlib
import sys
from typing import NamedTuple

from effformer import config as config_lib
from effformer import errors
from effformer.compress import command
from effformer.train import preemption, screen, session
from experiments import table

_ALL = {'data.test_examples': 0, 'data.validation_examples': 0}


class Setup(NamedTuple):
  """How a task is run.

  Attributes:
    config: file of configs/, and word of compress_minilm.
    files: what names of its files begin with.
    settings: of its runs.
    steps: of a training in a recipe.
  """

  config: str
  files: str
  settings: dict[str, object]
  steps: int


TASKS = {
  'sst2': Setup(
    'sentence',
    'glue_sst2',
    {**_ALL, 'data.max_length': 48, 'train.num_steps': 600},
    300,
  ),
  'mrpc': Setup('pair', 'mrpc', {**_ALL, 'train.num_steps': 400}, 200),
  'stsb': Setup(
    'similarity',
    'stsb',
    {**_ALL, 'train.num_steps': 0, 'train.warmup_steps': 0},
    300,
  ),
  # Long texts, of which the first 512 subwords are read.
  'imdb': Setup(
    'sentence',
    'imdb',
    {
      'data.max_length': 512,
      'data.test_examples': 1000,
      'data.validation_examples': 500,
      'train.batch_size': 8,
      'train.eval_batch_size': 16,
      'train.num_steps': 300,
      'train.eval_every_steps': 150,
    },
    150,
  ),
}
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_QUALITY = (
  *('score', 'low', 'high', 'change', 'change_low', 'change_high'),
  *('agreement', 'kl', 'cosine_mean', 'cosine_min', 'nearest'),
)


def keys(folder: pathlib.Path, task: str) -> dict[str, object]:
  """The files of a task and what else its runs have."""
  found = dict(TASKS[task].settings)
  for split in ('train', 'validation', 'test'):
    paths = sorted(folder.glob(f'{TASKS[task].files}_{split}.*'))
    if paths:
      found[f'data.{split}'] = str(paths[0])
  return found


def compress(
  options: argparse.Namespace,
  task: str,
  recipe: str,
  seed: int,
  parent: pathlib.Path,
  stop: preemption.Stop,
) -> list[dict]:
  """The rows of one compression."""
  setup = TASKS[task]
  path = f'{_ROOT}/configs/compress_minilm.py:{recipe},{setup.config},quick'
  steps = config_lib.load(path, {})[0].compress.steps
  more = {
    **{
      f'compress.steps.{number}.steps': options.steps or setup.steps
      for number, row in steps.items()
      if row.do == 'train'
    },
    'compress.parent': str(parent),
    'compress.seed': seed,
    # Quality here; speeds are of `structure` and of single runs.
    'compress.shapes': ('1x32',),
    **dict(pair.split('=', 1) for pair in options.set),
  }
  config, _ = config_lib.load(path, {**keys(options.data, task), **more})
  place = options.workdir / f'{task}_{recipe}_{seed}'
  found = command.compress(config, str(place), stop, screen.Screen())
  return [_row(found, model, task, recipe, seed) for model in found['models']]


def _row(found, model, task, recipe, seed):
  quality = model['quality']
  return {
    'task': task,
    'recipe': recipe,
    'seed': seed,
    'model': model['model'],
    'is_final': model['model'] == found['final'],
    'bytes': model['disk_bytes'],
    'parameters': model['parameters'],
    'steps': sum(row.get('steps', 0) for row in found['steps']),
    'measure': quality['name'],
    **{
      name: round(quality[name], 5) if name in quality else ''
      for name in _QUALITY
    },
    'examples': found['examples'],
    'floor': round(max(found['floors'].values()), 5),
    'device': found['device'],
    'commit': found['commit'],
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--recipes', required=True)
  parser.add_argument('--tasks', default='sst2')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, help='of a training in a recipe')
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE')
  parser.add_argument(
    '--csv', type=pathlib.Path, default=table.RESULTS / 'compress_recipes.csv'
  )
  options = parser.parse_args()
  stop = preemption.Stop()
  stop.install()
  try:
    for task in options.tasks.split(','):
      parent = options.workdir / f'{task}_parent'
      config, _ = config_lib.load(
        f'{_ROOT}/configs/{TASKS[task].config}.py:full,quick',
        keys(options.data, task),
      )
      session.train(config, str(parent), stop, screen.Screen())
      for recipe in options.recipes.split(','):
        for seed in map(int, options.seeds.split(',')):
          table.merge(
            options.csv,
            compress(options, task, recipe, seed, parent, stop),
            *('task', 'recipe', 'seed', 'model'),
          )
  except (errors.UserError, errors.Preempted) as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == '__main__':
  sys.exit(main())
