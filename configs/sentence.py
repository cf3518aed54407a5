"""Classes of sentences by a pretrained model: SST-2, CoLA, or your own.

Paper: Wang et al., MiniLM (2020), arXiv 2002.10957; all-MiniLM-L6-v2, see
  common.MINILM_L6. Other BERT-like models by --config.model.pretrained=FOLDER
  --config.data.tokenizer=FOLDER and the keys that the message then asks for.
Command: python -m effformer.main --config=configs/sentence.py
  and --config.data.train=FILE.tsv with the columns `sentence` and `label`;
  without own files, the reviews of IMDb.
Device: one accelerator; on two CPU cores about five hours.
Expect: on SST-2 the floors of the 1,821 test sentences are 49.6 (majority) and
  73.9 (bag of subwords).
Smallest command, seven minutes on two CPU cores:
  python -m effformer.main --config=configs/sentence.py:full,quick

Argument: mechanism (another than `full` takes the place of the attention, and
keeps its projections), preset=modern, quick.
"""

import ml_collections

from configs import common

MODERN = {
  **common.MINILM_L6,
  **common.FINE_TUNING,
  'data.max_length': 128,
  'train.num_steps': 6000,
  'train.warmup_steps': 600,
  'train.eval_every_steps': 500,
  'train.checkpoint_every_steps': 500,
}

PRESETS = {'modern': MODERN}

# Laid over the preset: minutes on two CPU cores.
QUICK = {
  'data.max_length': 64,
  'data.validation_examples': 500,
  'data.test_examples': 2000,
  'train.num_steps': 200,
  'train.warmup_steps': 20,
  'train.eval_every_steps': 100,
  'train.checkpoint_every_steps': 100,
  'train.log_every_steps': 10,
}
QUICK_PEAK = 1e-4


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=modern,quick`; all optional."""
  return common.assemble(
    arg,
    task='sentence',
    seed=0,
    presets=PRESETS,
    mechanisms={},
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
