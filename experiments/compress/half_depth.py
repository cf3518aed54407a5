"""Half the layers of MiniLM on SST-2, with a teacher and without one.

  python -m experiments.compress.half_depth --data=FOLDER --workdir=FOLDER

FOLDER of the data holds glue_sst2_train.tsv, ..._validation.tsv, ..._test.tsv
(also .gz) with the columns sentence and label. The parent is fine-tuned first.
Each student has layers 0, 2 and 5 of it and is trained for as many steps, with
the same batches: once by labels alone (the control), once by the parent's
logits and hidden states as well. Interrupted, it goes on where it was. How fast
half the layers are is measured by `structure`.
"""

import argparse
import functools
import pathlib
import sys

import jax
import numpy as np

from effformer import config as config_lib
from effformer import data, errors, tasks
from effformer.compress import agreement, depth
from effformer.compress.distill import maps, teaching
from effformer.train import (
  prediction,
  preemption,
  result,
  screen,
  session,
  starting,
)
from experiments import table

KEPT = (0, 2, 5)
LESSONS = {
  'by labels alone': teaching.Lesson(hard=1, soft=0),
  'with the parent': teaching.Lesson(hard=0.5, soft=1, states=1, temperature=2),
}
STEPS = 600


def config_of(folder: pathlib.Path, steps: int, seed: int):
  """The run of the parent, with the files of the folder."""
  paths = {}
  for split in ('train', 'validation', 'test'):
    (path,) = folder.glob(f'glue_sst2_{split}.tsv*')
    paths[f'data.{split}'] = str(path)
  root = pathlib.Path(__file__).resolve().parents[2]
  config, _ = config_lib.load(
    f'{root}/configs/sentence.py:full,quick',
    {
      **paths,
      'data.max_length': 48,
      'data.validation_examples': 0,
      'data.test_examples': 0,
      'train.num_steps': steps,
      'train.warmup_steps': steps // 10,
      'train.eval_every_steps': steps // 2,
      'train.checkpoint_every_steps': steps // 4,
      'seed': seed,
    },
  )
  return config


def train(config, place: pathlib.Path, stop: preemption.Stop, **values):
  """Trains, or reads what was trained; (result, task, parameters)."""
  console = screen.Screen()
  outcome = session.train(config, str(place), stop, console, **values)
  _, params, _ = prediction.trained(config, str(place), stop, console)
  return outcome, tasks.make(config), jax.device_get(params)


def probabilities(task, params) -> np.ndarray:
  """Of the test split, [N, 2]."""
  predict, found = jax.jit(task.predict), []
  with data.eval_batches(
    task.dataset.splits['test'], task.encode, batch_size=64, max_length=48
  ) as batches:
    for batch in batches:
      found.append(np.asarray(predict(params, batch)))
  return np.concatenate(found)[: len(task.dataset.splits['test'])]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=STEPS)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument(
    '--csv', type=pathlib.Path, default=table.RESULTS / 'compress_depth.csv'
  )
  options = parser.parse_args()
  stop = preemption.Stop()
  stop.install()
  try:
    measure(options, stop)
  except (errors.UserError, errors.Preempted) as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  return 0


def measure(options: argparse.Namespace, stop: preemption.Stop) -> None:
  """Trains the parent and the students, and writes a row for each."""
  config = config_of(options.data, options.steps, seed=0)
  parent, task, params = train(config, options.workdir / 'parent', stop)
  before = probabilities(task, params)
  label_N = np.array(
    [task.dataset.splits['test'][i]['label'] for i in range(len(before))]
  )
  rows = [_row('the parent', 0, parent, None)]
  for seed in range(options.seeds):
    for name, lesson in LESSONS.items():
      own = config_of(options.data, options.steps, seed)
      small, first = depth.drop_layers(own, params, KEPT)
      layers = maps.layer_map('kept', len(KEPT), 6, KEPT)
      adapt = functools.partial(
        teaching.taught,
        teacher=task.model,
        params=params,
        lesson=lesson,
        layers=layers,
      )
      place = options.workdir / f'{name.replace(" ", "_")}_{seed}'
      outcome, student, after = train(
        small,
        place,
        stop,
        start=starting.Start(first, 'layers 0, 2 and 5 of the parent'),
        adapt=adapt,
      )
      agree = agreement.classes(before, probabilities(student, after), label_N)
      rows.append(_row(name, seed, outcome, agree))
      table.write(options.csv, rows)


def _row(name, seed, outcome, agree):
  return {
    'model': name,
    'seed': seed,
    'test_accuracy': round(100 * outcome['test']['accuracy'], 2),
    'validation_accuracy': round(100 * outcome['validation']['accuracy'], 2),
    'examples': outcome['test']['count'],
    'floor': round(100 * max(outcome['floors'].values()), 2),
    'num_params': outcome['num_params'],
    'steps': outcome['steps'],
    'batch_size': outcome['batch_size'],
    'agreement': agree and round(100 * agree['agreement'], 2),
    'to_right': agree and agree['to_right'],
    'to_wrong': agree and agree['to_wrong'],
    'p_value': agree and round(agree['p_value'], 4),
    'device': result.device(),
    'commit': result.commit(),
  }


if __name__ == '__main__':
  sys.exit(main())
