"""How alike two sentences are, by a pretrained encoder of sentences: STS-B.

Paper: Reimers & Gurevych, Sentence-BERT (2019), arXiv 1908.10084 (batch and
  rate of section 4 there); Wang et al., MiniLM (2020), arXiv 2002.10957;
  all-MiniLM-L6-v2, see common.MINILM_L6 and configs/sentence.py.
Command: python -m effformer.main --config=configs/similarity.py
  and --config.data.train=FILE.tsv, data.validation and data.test with the
  columns `sentence1`, `sentence2` and `score`, from 0 to 5; without own files a
  generated stand-in. With --config.train.num_steps=0 the encoder is scored as
  it is.
Device: one accelerator; on two CPU cores about an hour.
Expect: Pearson's r x 100 on the 1,379 test pairs of STS-B: 82.7 with no step
  (Spearman's 82.0), 85.2 with `quick`, seed 0; the floors are 55.0 (shared
  subwords) and -0.4 (lengths).
Smallest command, five minutes on two CPU cores:
  python -m effformer.main --config=configs/similarity.py:full,quick

Argument: mechanism, preset=modern, quick.
"""

import ml_collections

from configs import common

MODERN = {
  **common.MINILM_L6,
  **common.FINE_TUNING,
  'data.max_length': 128,
  'train.batch_size': 16,
  'train.learning_rate': 2e-5,
  # Four epochs of STS-B.
  'train.num_steps': 1440,
  'train.warmup_steps': 144,
  'train.eval_every_steps': 180,
  'train.checkpoint_every_steps': 180,
}

PRESETS = {'modern': MODERN}

# Laid over the preset: minutes on two CPU cores.
QUICK = {
  'data.max_length': 64,
  'data.validation_examples': 500,
  'train.num_steps': 150,
  'train.warmup_steps': 15,
  'train.eval_every_steps': 75,
  'train.checkpoint_every_steps': 75,
  'train.log_every_steps': 10,
}
QUICK_PEAK = 2e-5


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=modern,quick`; all optional."""
  return common.assemble(
    arg,
    task='similarity',
    seed=0,
    presets=PRESETS,
    mechanisms={},
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
