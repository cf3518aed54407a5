"""The task `similarity` on generated pairs and a tiny pretrained model."""

import pathlib
from collections.abc import Iterable, Iterator

import ml_collections
import numpy as np

from tests.train.tiny_pretrained import WORDS, pretrained_config

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
  files = {
    split: write_pairs(folder / f'{split}.tsv', pairs(count, seed))
    for seed, (split, count) in enumerate(COUNTS.items())
  }
  return pretrained_config(folder, 'similarity', files)
