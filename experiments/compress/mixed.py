"""Bits by the policy against the same bits everywhere, at equal bytes.

  python -m experiments.compress.mixed --data=FOLDER

Of MiniLM, by GPTQ in both cases. Losses of single groups (1 - cosine to the
parent) and the choice among whole plans are of sentences of the train split of
STS-B, the rows of the table of sentences of its test split.
"""

import pathlib
import sys

import numpy as np

from effformer.compress import agreement, bits, calibrate, gptq, policy, tensors
from effformer.compress.grid import Grid
from effformer.train import result
from experiments.compress import minilm

# In tiles, so that tables and kernels have the same choice.
GRIDS = {
  str(number): Grid(number, 'tile', 32, rule='clip')
  for number in (8, 6, 5, 4, 3, 2)
}
UNIFORM = ('5', '4', '3')
# Sentences that losses are measured on; others than those that calibrate.
CHOOSING = 128


def measure(folder: pathlib.Path) -> list[dict]:
  """A row a plan: for each budget the uniform one and that of the policy."""
  model = minilm.load()
  train, test = (minilm.stsb(folder, split) for split in ('train', 'test'))
  texts = train.sentences
  moments = calibrate.collect(
    model.module, model.params, minilm.batches(texts[: minilm.CALIBRATION])
  )
  choosing = texts[minilm.CALIBRATION :][:CHOOSING]
  before_ND = minilm.vectors(model.module, model.params, choosing)
  parent_ND = minilm.vectors(model.module, model.params, test.sentences)

  def loss(params) -> float:
    after_ND = minilm.vectors(
      model.module, tensors.dequantise(params), choosing
    )
    return 1 - agreement.vectors(before_ND, after_ND)['cosine_mean']

  def quantise(params, plan):
    return gptq.quantise(params, plan, moments)

  groups = bits.groups(model.params)
  options = bits.options(model.params, groups, GRIDS, loss, quantise=quantise)
  found = []
  for name in UNIFORM:
    same = policy.uniform(options, name)
    budget = policy.cost_of(options, same)

    def score(plan):
      return -loss(quantise(model.params, bits.plan_of(groups, plan, GRIDS)))

    outcome = policy.search(options, score, budget, max_trials=5)
    for kind, plan in ((f'{name} bits', same), ('policy', outcome.best.plan)):
      small = quantise(model.params, bits.plan_of(groups, plan, GRIDS))
      after_ND = minilm.vectors(
        model.module, tensors.dequantise(small), test.sentences
      )
      row = {
        'budget': f'{name} bits',
        'plan': kind,
        'bytes': bits.num_bytes(small),
        'loss_when_chosen': round(loss(small), 5),
        **minilm.quality(parent_ND, after_ND, test),
        'bits': ' '.join(f'{g}={plan[g]}' for g in groups),
        'device': result.device(),
        'commit': result.commit(),
      }
      print({k: v for k, v in row.items() if k != 'bits'}, flush=True)
      found.append(row)
    losses = [policy.predicted(options, m.plan) for m in outcome.tried]
    print(outcome.why, np.round(losses, 4), flush=True)
  return found


if __name__ == '__main__':
  sys.exit(minilm.main(__doc__, 'compress_mixed', measure))
