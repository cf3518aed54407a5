"""LRA pathfinder: are two discs at the ends of one dashed contour? 32 x 32.

Paper: Tay et al., Long Range Arena (2021), arXiv 2011.04006.
Command: python -m effformer.main --config=configs/lra_pathfinder32.py:linear
Device: one accelerator; the ETA is on screen from the first minute on.
Expect: LRA reports 71.40 (full), 75.30 (linear), 66.63 (its local),
  76.34 (linformer) test accuracy in percent, one seed, last checkpoint; on the
  images of its release. Without these our generator makes images of the same
  kind, whose scores are not to be compared.
Size: 416,130 parameters (full, modern), where LRA's has 26,562: see MODERN.
Smallest command, minutes on two CPU cores once the images are made:
  python -m effformer.main --config=configs/lra_pathfinder32.py:linear,quick

Argument: mechanism, preset=paper|repo|modern, quick, pretrain.
"""

import ml_collections

from configs import common

# As the LRA repository trains it at its last commit (cd31e5c): the base, and
# what it lays over it for its Transformer.
REPO = {
  'data.max_length': 1024,
  'model.num_layers': 4,
  'model.width': 32,
  'model.qkv_width': 16,
  'model.num_heads': 4,
  'model.mlp_width': 32,
  'model.head_width': 32,
  'model.position': 'sinusoidal',
  'model.pooling': 'mean',
  'model.dropout': 0.2,
  'model.attention_dropout': 0.1,
  # 200 epochs of 312 steps.
  'train.num_steps': 62_400,
  'train.batch_size': 512,
  # Changes memory, not results.
  'train.accumulate_steps': 8,
  'train.learning_rate': 1e-3,
  'train.schedule': 'cosine',
  'train.warmup_steps': 312,
  'train.weight_decay': 0.0,
  'train.decay': 'all',
  'train.beta2': 0.98,
  'train.epsilon': 1e-9,
  'train.eval_every_steps': 1560,
  'train.checkpoint_every_steps': 1560,
  'train.select': 'last',
  # Our choice among those of Amos et al. (2024).
  'pretrain.mask_fraction': 0.5,
}

# What the paper's appendix says instead; the width of tokens it does not say.
PAPER = {
  **REPO,
  'model.width': 128,
  'model.qkv_width': 128,
  'model.num_heads': 8,
  'model.mlp_width': 128,
  'model.head_width': 128,
  'train.learning_rate': 0.01,
}

# The layers and widths of PAPER, with what training has learnt since: 416,130
# parameters. LRA's rule, at most 10% more than REPO, is not kept: REPO has
# 26,562, and what is published above 90% has more and wider layers (S5: 6 of
# width 192; S4: 6 of 256). It is kept among the mechanisms: each has from 0 to
# 10% more parameters than 'full'.
MODERN = {
  **PAPER,
  'model.front_end': 'continuous',
  'model.position': 'rotary',
  'model.dropout': 0.1,
  'model.attention_dropout': 0.0,
  'model.conv_width': 5,
  'train.num_steps': 125_000,
  'train.batch_size': 128,
  'train.accumulate_steps': 2,
  'train.learning_rate': 1e-3,
  'train.warmup_steps': 2500,
  'train.weight_decay': 0.05,
  'train.decay': 'matrices',
  'train.beta2': 0.999,
  'train.epsilon': 1e-8,
  'train.clip_norm': 1.0,
  'train.eval_every_steps': 1250,
  'train.checkpoint_every_steps': 1250,
  'train.select': 'best',
}

PRESETS = {'paper': PAPER, 'repo': REPO, 'modern': MODERN}

# Models that LRA lays over its base here: layers, heads, width, width of all
# heads, width of the feed-forward part and of the classifier.
_SIZES = {
  # The published config does not learn; the maintainers posted this one
  # (issue 37 of the repository).
  'performer': (1, 8, 128, 64, 128),
  'linear': (1, 2, 128, 64, 128),
  'linformer': (1, 2, 32, 16, 32),
  'bigbird': (4, 2, 64, 32, 64),
  'local': (2, 4, 64, 32, 64),
  'longformer': (2, 2, 32, 16, 32),
  # The config asks for heads of 32 together; the model takes the width.
  'reformer': (2, 8, 64, 64, 64),
  'sinkhorn': (2, 4, 32, 16, 64),
  'sparse': (1, 8, 32, 16, 32),
  'synthesizer': (2, 4, 64, 32, 64),
}
_REPO_SIZES = {
  mechanism: {
    'model.num_layers': layers,
    'model.num_heads': heads,
    'model.width': width,
    'model.qkv_width': qkv_width,
    'model.mlp_width': mlp_width,
    'model.head_width': mlp_width,
  }
  for mechanism, (layers, heads, width, qkv_width, mlp_width) in _SIZES.items()
}

# What LRA's models are set to for rows of 1,024 grey values.
_MODELS = {
  'bigbird': {'mixer.block': 64},
  # As many keys as in blocks of 64; a true window, though.
  'local': {'mixer.window': 32},
  # A tenth of the row.
  'reformer': {'mixer.block': 103},
  # It has no hidden layer in the classifier.
  'sinkhorn': {'mixer.block': 64, 'model.head_width': 0},
}

# Per mechanism, laid over the preset.
MECHANISMS = {
  'repo': common.lra_models(
    _REPO_SIZES,
    _MODELS,
    {'local': {'model.dropout': 0.1}, 'longformer': {'model.dropout': 0.1}},
  ),
  'paper': common.lra_models(_MODELS),
  'modern': {
    # The table of tokens to mixtures is long: less is left for the rest.
    'linformer': {'model.qkv_width': 64, 'model.mlp_width': 32},
    # Its queries are its keys: more is left for this.
    'reformer': {'model.mlp_width': 192},
    # Global tokens have projections of their own.
    'longformer': {'model.qkv_width': 64, 'model.mlp_width': 160},
    # Keys of half the width, values of the whole, as GLA is published.
    'retnet': {'model.qkv_width': 64},
    'gla': {'model.qkv_width': 64},
    'gated_deltanet': {'model.qkv_width': 64},
    # Values of twice the width, as it is published: all is narrower.
    'mamba2': {'model.width': 112, 'model.mlp_width': 96},
    # Tables of the length, for each head.
    'synthesizer': {
      'model.num_heads': 4,
      'model.qkv_width': 64,
      'model.mlp_width': 96,
    },
    # It has no parameters; layer norms are in front of the branches.
    'fnet': {'model.mlp_width': 384, 'mixer.unitary': True},
    # Values of twice the width and two gates: all is narrower.
    'mega': {'model.width': 96, 'model.mlp_width': 64},
    # Each branch has keys and values of its own: all are half as wide.
    'nsa': {'model.qkv_width': 64},
  },
}

# Laid over any preset: minutes on two CPU cores.
QUICK = {
  'data.max_length': 1024,
  'data.validation_examples': 1000,
  'data.test_examples': 5000,
  'model.num_layers': 2,
  'model.width': 64,
  'model.qkv_width': 0,
  'model.num_heads': 4,
  'model.mlp_width': 128,
  'model.head_width': 128,
  # A part of one pass over the data overfits nothing.
  'model.dropout': 0.0,
  'model.attention_dropout': 0.0,
  'train.accumulate_steps': 1,
  'train.num_steps': 600,
  'train.batch_size': 32,
  'train.warmup_steps': 60,
  'train.eval_every_steps': 200,
  'train.checkpoint_every_steps': 200,
  'train.log_every_steps': 20,
}
# In its place for the larger images: a check that it runs.
CHECK = {
  **QUICK,
  'data.validation_examples': 64,
  'data.test_examples': 128,
  'model.width': 32,
  'model.mlp_width': 64,
  'model.head_width': 64,
  'train.num_steps': 20,
  'train.warmup_steps': 2,
  'train.eval_every_steps': 10,
  'train.checkpoint_every_steps': 10,
  'train.log_every_steps': 5,
}
# Learning rate after the warmup, whatever the schedule.
QUICK_PEAK = 3e-3


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=PRESET,quick,pretrain`; all optional."""
  return common.assemble(
    arg,
    task='pathfinder32',
    seed=0,
    presets=PRESETS,
    mechanisms=MECHANISMS,
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
