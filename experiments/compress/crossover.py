"""From which length on another attention makes MiniLM faster.

  python -m experiments.compress.crossover

The whole model, with softmax attention and with each of `MECHANISMS` in all
layers, on `BATCH` rows of each length, in turns, the softmax model twice. No
model is trained: what is measured is speed. Positions behind those of the model
repeat them. The model is the package of `minilm`.
"""

import argparse
import pathlib
import sys

import numpy as np

from effformer import config as config_lib
from effformer import pretrained
from effformer.compress import artefact, speed
from experiments import table
from experiments.compress import minilm

MECHANISMS = {'linear': {}, 'local': {'window': 32}, 'nystromformer': {}}
LENGTHS = (64, 128, 256, 512, 1024, 2048)
BATCH = 4


def models(length: int) -> dict[str, artefact.Compressed]:
  """The model with each attention, for rows of this length."""
  loaded = minilm.load()
  table_TD = np.resize(
    loaded.params['positions'], (length, loaded.params['positions'].shape[1])
  )
  config = config_lib.changed(loaded.config, {'data.max_length': length})
  loaded = loaded._replace(
    config=config, params={**loaded.params, 'positions': table_TD}
  )
  found = {speed.PARENT: artefact.make(loaded, loaded.params)}
  for name, settings in MECHANISMS.items():
    other = pretrained.swap(loaded, name, settings=settings).model
    found[name] = artefact.make(other, other.params)
  return found


def measure() -> list[dict]:
  """A row for each length and attention; `ratio` is to softmax attention."""
  rows = []
  for length in LENGTHS:
    for row in speed.compare(models(length), [speed.Shape(BATCH, length)]):
      name = 'full' if row['model'] == speed.PARENT else row['model']
      name = 'full again' if name == 'control' else name
      rows.append(
        {
          'attention': name,
          **minilm.timed(row),
        }
      )
      print(rows[-1], flush=True)
  return rows


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--csv', type=pathlib.Path, default=table.RESULTS / 'compress_crossover.csv'
  )
  table.write(parser.parse_args().csv, measure())
  return 0


if __name__ == '__main__':
  sys.exit(main())
