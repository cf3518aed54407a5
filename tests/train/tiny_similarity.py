"""The task `similarity` on generated pairs and a tiny pretrained model."""

import pathlib
from collections.abc import Iterable, Iterator

import ml_collections
import numpy as np

from effformer import config as config_lib
from tests.pretrained.golden_test import folder_of
from tests.subwords import save_tokenizer
from tests.train.starting_test import FACTS, WORDS
from tests.train.tiny_run import tiny_config

LENGTH = 7
COUNTS = {'train': 24, 'validation': 11, 'test': 13}


def pairs(count: int, seed: int) -> Iterator[tuple[str, str, float]]:
  rng = np.random.default_rng(seed)
  for _ in range(count):
    first, second = rng.choice(WORDS, 4), rng.choice(WORDS, 3)
    yield ' '.join(first), ' '.join(second), round(rng.uniform(0, 5), 3)


def write_pairs(path: pathlib.Path, rows: Iterable[tuple]) -> str:
  lines = ['\t'.join(map(str, row)) for row in rows]
  path.write_text('\n'.join(['sentence1\tsentence2\tscore', *lines]) + '\n')
  return str(path)


def similarity_config(folder: pathlib.Path) -> ml_collections.ConfigDict:
  """A config whose model, tokenizer and pairs are written into a folder."""
  save_tokenizer(folder_of('bert-embedder', folder), WORDS)
  config = config_lib.changed(
    tiny_config('full'),
    {
      **FACTS,
      'data.tokenizer': str(folder),
      'model.pretrained': str(folder),
      'data.max_length': LENGTH,
      'train.batch_size': 8,
      'train.eval_batch_size': 8,
      'train.num_steps': 6,
      **{
        f'data.{split}': write_pairs(folder / f'{split}.tsv', pairs(count, n))
        for n, (split, count) in enumerate(COUNTS.items())
      },
    },
  )
  with config.unlocked():
    config.task = 'similarity'
  return config
