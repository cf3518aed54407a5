"""Byte language modelling: the next byte of film reviews, or of own texts.

Paper: Al-Rfou et al., Character-level language modeling with deeper
  self-attention (2018), arXiv 1808.04444, for the task; the sizes are ours.
Command: python -m effformer.main --config=configs/language.py:linear
Device: one accelerator; the ETA is on screen from the first minute on.
Expect: bits per byte on the test split, in result.json as test.bits; the floors
  are those of the most frequent next byte.
Smallest command, minutes on two CPU cores:
  python -m effformer.main --config=configs/language.py:linear,quick
  (2.18 bits per byte on real IMDb, seed 0, after five minutes)
Own texts, plain files of any bytes: --config.data.train=FILE.txt
What it has learnt it writes: --mode=generate --workdir=FOLDER

Argument: mechanism, quick; the mechanism is one that can be causal.
"""

import ml_collections

from configs import common

MODERN = {
  'data.max_length': 1024,
  'model.num_layers': 6,
  'model.width': 512,
  'model.num_heads': 8,
  'model.mlp_width': 2048,
  'model.position': 'rotary',
  # The learned vector in front stands for the beginning of a text.
  'model.pooling': 'cls',
  'model.conv_width': 5,
  'model.dropout': 0.1,
  'train.num_steps': 20_000,
  'train.batch_size': 32,
  # Changes memory, not results.
  'train.accumulate_steps': 4,
  'train.learning_rate': 1e-3,
  'train.schedule': 'cosine',
  'train.warmup_steps': 1000,
  'train.weight_decay': 0.05,
  'train.decay': 'matrices',
  'train.beta2': 0.98,
  'train.clip_norm': 1.0,
}

PRESETS = {'modern': MODERN}

# Laid over the preset: minutes on two CPU cores.
QUICK = {
  'data.max_length': 256,
  'data.validation_examples': 500,
  'data.test_examples': 1000,
  'model.num_layers': 2,
  'model.width': 128,
  'model.num_heads': 4,
  'model.mlp_width': 256,
  'model.dropout': 0.0,
  'train.accumulate_steps': 1,
  'train.num_steps': 800,
  'train.batch_size': 32,
  'train.warmup_steps': 80,
  'train.eval_every_steps': 200,
  'train.checkpoint_every_steps': 200,
  'train.log_every_steps': 20,
}
# Learning rate after the warmup.
QUICK_PEAK = 6e-3


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,quick`; all parts optional."""
  return common.assemble(
    arg,
    task='language',
    seed=0,
    presets=PRESETS,
    mechanisms={},
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
