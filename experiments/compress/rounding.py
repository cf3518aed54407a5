"""What rounding does to MiniLM: bytes, agreement with the parent, STS-B.

  python -m experiments.compress.rounding --data=FOLDER

FOLDER holds stsb_train.tsv and stsb_test.tsv (also .gz) with the columns
sentence1, sentence2, score; the model is the package of `minilm`. Sentences of
train calibrate, those of test are measured; nothing is chosen by them.
"""

import pathlib
import sys
import tempfile
import time

from effformer.compress import artefact, awq, calibrate, smooth, tensors
from effformer.compress.fold import fold
from effformer.compress.grid import Grid
from effformer.compress.prune import sparsegpt
from effformer.train import result
from experiments.compress import minilm

TABLE = Grid(8)
FOUR = Grid(4, 'tile', 32, rule='clip')
THREE = Grid(3, 'tile', 32, rule='clip')
# As many bytes: two codes of 8 bits and two places of 2 for 4 weights.
FIVE = Grid(5)
SPARSE = Grid(8, keep=2, of=4)


def variants(model, moments):
  """(name, parameters, activations, what is run), made when asked for."""
  params, config = model.params, model.config

  def plan(grid):
    return tensors.uniform_plan(params, grid, tables=TABLE)

  yield 'float32', lambda: params, None
  yield 'int8', lambda: tensors.quantise(params, plan(TABLE)), None
  yield (
    'int8, inputs too',
    lambda: tensors.quantise(params, plan(TABLE)),
    ('dynamic'),
  )

  def smoothed():
    factors = smooth.factors(config, params, moments)
    folded, left = fold(config, params, factors)
    return tensors.quantise(folded, plan(TABLE), factors=left)

  yield 'int8, inputs too, SmoothQuant', smoothed, 'dynamic'
  for name, grid in (
    *(('4 bits', FOUR), ('3 bits', THREE)),
    *(('5 bits, channels', FIVE), ('8 bits, 2 of 4', SPARSE)),
  ):
    yield (
      f'{name}, nearest',
      lambda grid=grid: tensors.quantise(params, plan(grid)),
      None,
    )

    def weighed(grid=grid):
      factors = awq.factors(config, params, moments, plan(grid))
      folded, left = fold(config, params, factors)
      return tensors.quantise(folded, plan(grid), factors=left)

    yield f'{name}, AWQ', weighed, None
    yield (
      # With a pattern that is SparseGPT.
      f'{name}, GPTQ',
      lambda grid=grid: sparsegpt.quantise(params, plan(grid), moments),
      None,
    )


def measure(folder: pathlib.Path) -> list[dict]:
  """A row a variant."""
  model = minilm.load()
  train, test = (minilm.stsb(folder, split) for split in ('train', 'test'))
  sentences = train.sentences[: minilm.CALIBRATION]
  moments = calibrate.collect(
    model.module, model.params, minilm.batches(sentences)
  )
  found, before_ND = [], None
  for name, make, activations in variants(model, moments):
    start = time.monotonic()
    params = make()
    seconds = time.monotonic() - start
    after_ND = minilm.vectors(model.module, params, test.sentences, activations)
    before_ND = after_ND if before_ND is None else before_ND
    with tempfile.TemporaryDirectory() as place:
      size = artefact.save(artefact.make(model, params), place)
    row = {
      'variant': name,
      'bytes': size,
      **minilm.quality(before_ND, after_ND, test),
      'seconds_to_make': round(seconds, 1),
      'sentences': len(test.sentences),
      'pairs': len(test.score_N),
      'device': result.device(),
      'commit': result.commit(),
    }
    print(row, flush=True)
    found.append(row)
  return found


if __name__ == '__main__':
  sys.exit(minilm.main(__doc__, 'compress_rounding', measure))
