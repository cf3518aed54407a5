"""Classes of pairs of sentences by a pretrained model: MRPC, or your own.

Paper: Wang et al., MiniLM (2020), arXiv 2002.10957; all-MiniLM-L6-v2, see
  common.MINILM_L6 and configs/sentence.py.
Command: python -m effformer.main --config=configs/pair.py
  and --config.data.train=FILE.tsv with the columns `sentence1`, `sentence2` and
  `label`; without own files, the pairs of papers of LRA Retrieval. Both texts
  stand in one row; --config.model.pair_head=nli reads them apart.
Device: one accelerator; on two CPU cores an hour and a half.
Expect: on MRPC the majority of the 1,725 test pairs is 66.5.
Smallest command, seven minutes on two CPU cores:
  python -m effformer.main --config=configs/pair.py:full,quick

Argument: mechanism, preset=modern, quick.
"""

import ml_collections

from configs import common

MODERN = {
  **common.MINILM_L6,
  **common.FINE_TUNING,
  'data.max_length': 128,
  'train.num_steps': 2000,
  'train.warmup_steps': 200,
  'train.eval_every_steps': 200,
  'train.checkpoint_every_steps': 200,
}

PRESETS = {'modern': MODERN}

# Laid over the preset: minutes on two CPU cores.
QUICK = {
  'data.max_length': 96,
  'data.validation_examples': 500,
  'data.test_examples': 1000,
  'train.num_steps': 150,
  'train.warmup_steps': 15,
  'train.eval_every_steps': 50,
  'train.checkpoint_every_steps': 50,
  'train.log_every_steps': 10,
}
QUICK_PEAK = 1e-4


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=modern,quick`; all optional."""
  return common.assemble(
    arg,
    task='pair',
    seed=0,
    presets=PRESETS,
    mechanisms={},
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
