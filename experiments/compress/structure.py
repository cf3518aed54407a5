"""Smaller arrays timed beside masks and beside the whole MiniLM.

  python -m experiments.compress.structure [--cores=1]

Half of the heads and of the columns of the feed-forward parts are masked, by
magnitude; `shrunk` has the arrays without them. `half the layers` has layers 0,
2 and 5. No model is trained: what is measured is speed, and how far masked and
shrunk outputs differ. With --cores the program keeps to so many. The model is
the package of `minilm`.
"""

import argparse
import os
import pathlib
import sys

import numpy as np

from effformer.compress import artefact, depth, shrink, speed
from effformer.compress.prune import masks, scores, units
from experiments import table
from experiments.compress import minilm

KEPT = (0, 2, 5)
RATIO = 0.5
SHAPES = ((1, 32), (8, 128), (32, 64))


def models() -> dict[str, artefact.Compressed]:
  """The masked model, which ratios are to, and those that are compared."""
  loaded = minilm.load()
  whole = artefact.make(loaded, loaded.params)
  found = units.of(whole.config, whole.params, ('head', 'mlp'))
  chosen = masks.structured(
    scores.magnitude(whole.params, found), RATIO, 'place'
  )
  masked = masks.apply(whole.params, chosen, found)
  config, params = shrink.shrink(whole.config, whole.params, chosen)
  fewer = depth.drop_layers(whole.config, whole.params, KEPT)
  return {
    speed.PARENT: whole._replace(params=masked),
    'shrunk': whole._replace(config=config, params=params),
    'whole': whole,
    'half the layers': whole._replace(config=fewer[0], params=fewer[1]),
  }


def difference(a: artefact.Compressed, b: artefact.Compressed) -> float:
  """The greatest of the two models' vectors, on random rows."""
  ids_BT = np.random.default_rng(0).integers(1000, 9000, (4, 32)).astype('i4')
  lengths_B = np.array([32, 9, 20, 1], 'i4')
  out = [
    np.asarray(own.module.apply({'params': own.params}, ids_BT, lengths_B))
    for own in (a, b)
  ]
  return float(np.abs(out[0] - out[1]).max())


def measure() -> list[dict]:
  """A row for each shape and model; `ratio` is to the masked model."""
  every = models()
  gap = difference(every[speed.PARENT], every['shrunk'])
  print(f'masked and shrunk outputs differ by {gap:.1e} at most', flush=True)
  rows = []
  for row in speed.compare(every, [speed.Shape(*s) for s in SHAPES]):
    name = 'masked' if row['model'] == speed.PARENT else row['model']
    name = 'masked again' if name == 'control' else name
    rows.append(
      {
        'cores': len(os.sched_getaffinity(0)),
        'model': name,
        'difference': gap,
        **minilm.timed(row),
      }
    )
    print(rows[-1], flush=True)
  return rows


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--csv', type=pathlib.Path, default=table.RESULTS / 'compress_structure.csv'
  )
  parser.add_argument('--cores', type=int, default=0, help='0: all')
  options = parser.parse_args()
  if options.cores:
    # Before the first device is asked for, which starts the threads.
    mine = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, mine)
  keys = ('cores', 'batch', 'length', 'model')
  table.merge(options.csv, measure(), *keys)
  return 0


if __name__ == '__main__':
  sys.exit(main())
