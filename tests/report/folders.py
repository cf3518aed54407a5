"""Run folders as a run writes them, without a run."""

import json

RATES = {'full': 1.0, 'linear': 4.0}


def write_run(
  root, mechanism='linear', task='text', seed=0, *, accuracy=0.7, finished=True,
  score='accuracy', settings=(), **facts,
):  # fmt: skip
  """Makes the folder of a run below `root`; returns it.

  `settings` are dotted keys of the config, `facts` keys of the result; what is
  called accuracy may be another score.
  """
  folder = root / f'{task}-{mechanism}-{seed}-{len(list(root.iterdir()))}'
  folder.mkdir()
  config = {
    'task': task,
    'seed': seed,
    'mixer': {'name': mechanism},
    'data': {'train': str(folder), 'max_length': 512},
    'train': {'num_steps': 10, 'batch_size': 8, 'learning_rate': 0.1},
  }
  for key, value in dict(settings).items():
    room, name = key.split('.')
    config.setdefault(room, {})[name] = value
  (folder / 'config.json').write_text(json.dumps(config))
  rows = [
    {'step': 5, 'split': 'train', 'loss': 1.0},
    {'step': 5, 'split': 'validation', score: 0.6},
    {'step': 10, 'split': 'validation', score: accuracy},
  ]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(lines)
  if not finished:
    return folder
  result = {
    'task': task,
    'origin': 'IMDb, prepared',
    'stand_in': False,
    'fingerprints': {'train': '1234567890'},
    'mechanism': mechanism,
    'preset': 'modern',
    'quick': False,
    'seed': seed,
    'steps': 10,
    'batch_size': 8,
    'max_length': 512,
    'num_params': 12345,
    'score': score,
    'test': {score: accuracy, 'loss': 0.5, 'count': 100},
    'floors': {'majority': 0.5, 'bag_of_bytes': 0.62},
    'cost': {
      'products_per_step': 2.5e9,
      'operations_per_step': 3e9,
      'state_and_batch_bytes': 1 << 20,
      'temporary_bytes': 3 << 20,
    },
    'steps_per_second': RATES.get(mechanism, 2.0),
    'device': 'cpu x 1',
    'commit': 'abcdef0123456789',
    **facts,
  }
  (folder / 'result.json').write_text(json.dumps(result))
  return folder
