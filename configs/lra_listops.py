"""LRA ListOps: the value, 0 to 9, of nested operations on lists of digits.

Paper: Tay et al., Long Range Arena (2021), arXiv 2011.04006.
Command: python -m effformer.main --config=configs/lra_listops.py:linear
Device: one accelerator; the ETA is on screen from the first minute on.
Expect: LRA reports 36.37 (full), 16.13 (linear), 15.82 (its local),
  35.70 (linformer) test accuracy in percent, one seed, last checkpoint.
  17.0 is the most frequent answer, 36.3 the best guess from the root operator.
  Quick, linear: 36.6 over three seeds (2026-11-22), which is the root operator.
Smallest command, minutes on two CPU cores:
  python -m effformer.main --config=configs/lra_listops.py:linear,quick

Argument: mechanism, preset=paper|repo|modern, quick, pretrain.
"""

import ml_collections

from configs import common

# As the LRA repository trains it at its last commit (cd31e5c).
REPO = {
  'data.max_length': 2000,
  'model.num_layers': 4,
  'model.width': 512,
  'model.num_heads': 8,
  'model.mlp_width': 1024,
  'model.head_width': 1024,
  'model.position': 'sinusoidal',
  'model.pooling': 'cls',
  'model.dropout': 0.1,
  'model.attention_dropout': 0.1,
  'train.num_steps': 5000,
  'train.batch_size': 32,
  # Changes memory, not results: 27 GB of activations become 7.
  'train.accumulate_steps': 4,
  # The peak is 0.05 / sqrt(1000) = 1.6e-3.
  'train.learning_rate': 0.05,
  'train.schedule': 'rsqrt',
  'train.warmup_steps': 1000,
  'train.weight_decay': 0.1,
  'train.decay': 'all',
  'train.beta2': 0.98,
  'train.epsilon': 1e-9,
  # The repository evaluated every 50 steps; as it tested the last
  # checkpoint, how often it looked changed no result.
  'train.eval_every_steps': 500,
  'train.checkpoint_every_steps': 500,
  'train.select': 'last',
  # Our choice among those of Amos et al. (2024).
  'pretrain.mask_fraction': 0.1,
}

# What the paper's appendix says instead.
PAPER = {
  **REPO,
  'model.num_layers': 6,
  'model.mlp_width': 2048,
  'model.head_width': 2048,
  # Changes memory, not results.
  'model.remat': True,
}

# The sizes of REPO, so that LRA's rule (at most 10% more parameters) is kept,
# with what training and positions have learnt since.
MODERN = {
  **REPO,
  'model.position': 'rotary',
  'model.attention_dropout': 0.0,
  'model.conv_width': 5,
  'train.learning_rate': 5e-4,
  'train.schedule': 'cosine',
  'train.warmup_steps': 500,
  'train.weight_decay': 0.05,
  'train.decay': 'matrices',
  'train.beta2': 0.999,
  'train.epsilon': 1e-8,
  'train.clip_norm': 1.0,
  'train.select': 'best',
}

PRESETS = {'paper': PAPER, 'repo': REPO, 'modern': MODERN}

# Per mechanism, laid over the preset.
MECHANISMS = {
  preset: common.lra_models(
    {
      'performer': {'mixer.num_features': 2},
      # A tenth of the row.
      'reformer': {'mixer.block': 201},
      # LRA's has no other pooling, and no hidden layer in the classifier.
      'sinkhorn': {'model.pooling': 'mean', 'model.head_width': 0},
    }
  )
  for preset in ('paper', 'repo')
} | {
  'modern': {
    # Its queries are its keys: more is left for this.
    'reformer': {'model.mlp_width': 1280},
    # Global tokens have projections of their own: less is left for this.
    'longformer': {'model.mlp_width': 448},
    # Keys of half the width, values of the whole, as GLA is published.
    'retnet': {'model.qkv_width': 256},
    'gla': {'model.qkv_width': 256},
    'gated_deltanet': {'model.qkv_width': 256},
    # Values of twice the width, as it is published.
    'mamba2': {'model.mlp_width': 448},
    # Its logits have few parameters: more is left for this.
    'synthesizer': {'model.mlp_width': 1312},
    # It has no parameters; layer norms are in front of the branches.
    'fnet': {'model.mlp_width': 2048, 'mixer.unitary': True},
    # It has fewer parameters than attention: more is left for this.
    's5': {'model.mlp_width': 1600},
    # Two gates: less is left for values and this.
    'mega': {'mixer.value_width': 512, 'model.mlp_width': 768},
    # Each branch has keys and values of its own: all are half as wide.
    'nsa': {'model.qkv_width': 256},
  },
}

# Laid over any preset: minutes on two CPU cores. The rows are 500 to 2,000
# tokens long, so the length stays: a cut row would lose its brackets.
QUICK = {
  'data.max_length': 2000,
  'data.validation_examples': 500,
  'model.num_layers': 2,
  'model.width': 64,
  'model.qkv_width': 0,
  'model.num_heads': 4,
  'model.mlp_width': 128,
  'model.head_width': 128,
  # A part of one pass over the data overfits nothing; dropout costs time.
  'model.dropout': 0.0,
  'model.attention_dropout': 0.0,
  'model.remat': False,
  'train.accumulate_steps': 1,
  'train.num_steps': 120,
  'train.batch_size': 8,
  'train.warmup_steps': 12,
  'train.eval_every_steps': 40,
  'train.checkpoint_every_steps': 40,
  'train.log_every_steps': 10,
}
# Learning rate after the warmup, whatever the schedule.
QUICK_PEAK = 3e-3


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=PRESET,quick,pretrain`; all optional."""
  return common.assemble(
    arg,
    task='listops',
    seed=0,
    presets=PRESETS,
    mechanisms=MECHANISMS,
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
