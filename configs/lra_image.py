"""LRA image: CIFAR-10 in grey, pixel by pixel.

Paper: Tay et al., Long Range Arena (2021), arXiv 2011.04006.
Command: python -m effformer.main --config=configs/lra_image.py:linear
Device: one accelerator; the ETA is on screen from the first minute on.
Expect: LRA reports 42.44 (full), 42.34 (linear), 41.46 (its local),
  38.56 (linformer) test accuracy in percent, one seed, last checkpoint.
Smallest command, minutes on two CPU cores:
  python -m effformer.main --config=configs/lra_image.py:linear,quick

Argument: mechanism, preset=paper|repo|modern, quick, pretrain.
"""

import ml_collections

from configs import common

# As the LRA repository trains it at its last commit (cd31e5c): the base, and
# what it lays over it for its Transformer.
REPO = {
  'data.max_length': 1024,
  'model.num_layers': 1,
  'model.width': 128,
  'model.qkv_width': 64,
  'model.num_heads': 8,
  'model.mlp_width': 128,
  'model.head_width': 128,
  'model.position': 'learned',
  'model.pooling': 'cls',
  'model.dropout': 0.3,
  'model.attention_dropout': 0.2,
  # 200 epochs of 175 steps.
  'train.num_steps': 35_000,
  'train.batch_size': 256,
  # Changes memory, not results.
  'train.accumulate_steps': 4,
  'train.learning_rate': 5e-4,
  'train.schedule': 'cosine',
  'train.warmup_steps': 175,
  'train.weight_decay': 0.0,
  'train.decay': 'all',
  'train.beta2': 0.98,
  'train.epsilon': 1e-9,
  'train.eval_every_steps': 875,
  'train.checkpoint_every_steps': 875,
  'train.select': 'last',
  # Our choice among those of Amos et al. (2024).
  'pretrain.mask_fraction': 0.5,
}

# What the paper's appendix says instead; the width of tokens it does not say.
PAPER = {
  **REPO,
  'model.num_layers': 3,
  'model.num_heads': 4,
  'model.mlp_width': 128,
  'model.qkv_width': 64,
  'train.learning_rate': 0.01,
}

# As many parameters as REPO, so that LRA's rule (at most 10% more) is kept, in
# layers instead of tables of positions and grey values, with what training has
# learnt since.
MODERN = {
  **REPO,
  'model.num_layers': 4,
  'model.width': 96,
  'model.qkv_width': 0,
  'model.num_heads': 4,
  'model.mlp_width': 128,
  'model.head_width': 96,
  'model.front_end': 'continuous',
  'model.position': 'rotary',
  'model.pooling': 'mean',
  'model.dropout': 0.1,
  'model.attention_dropout': 0.0,
  'model.conv_width': 5,
  # 100 epochs of 900 steps.
  'train.num_steps': 90_000,
  'train.batch_size': 50,
  'train.accumulate_steps': 1,
  'train.learning_rate': 2e-3,
  'train.warmup_steps': 2700,
  'train.weight_decay': 0.05,
  'train.decay': 'matrices',
  'train.beta2': 0.999,
  'train.epsilon': 1e-8,
  'train.clip_norm': 1.0,
  'train.eval_every_steps': 900,
  'train.checkpoint_every_steps': 900,
  'train.select': 'best',
}

PRESETS = {'paper': PAPER, 'repo': REPO, 'modern': MODERN}

# What LRA's models are set to for rows of 1,024 grey values.
_MODELS = {
  'bigbird': {'mixer.block': 64},
  # As many keys as in blocks of 64; a true window, though.
  'local': {'mixer.window': 32},
  # A tenth of the row.
  'reformer': {'mixer.block': 103},
  # It has no other pooling, with which its config cannot be built, and no
  # hidden layer in the classifier.
  'sinkhorn': {
    'mixer.block': 64,
    'model.pooling': 'mean',
    'model.head_width': 0,
  },
}

# Per mechanism, laid over the preset.
MECHANISMS = {
  'repo': common.lra_models(
    _MODELS,
    {
      # Its config has the key of the heads misspelt, so it cannot be built.
      'bigbird': {'model.num_heads': 4},
      'local': {'model.num_heads': 2, 'model.pooling': 'mean'},
      # Four times the layers of the others: LRA's own rule is not kept here.
      'longformer': {
        'model.num_layers': 4,
        'model.num_heads': 4,
        'model.pooling': 'mean',
      },
      # Its config asks for heads of 32 together; the model takes the width.
      'reformer': {
        'model.num_layers': 4,
        'model.width': 64,
        'model.qkv_width': 64,
        'model.mlp_width': 64,
        'model.head_width': 64,
      },
      # The sizes of the base.
      'sinkhorn': {
        'model.width': 32,
        'model.qkv_width': 32,
        'model.num_heads': 1,
        'model.mlp_width': 64,
        'model.dropout': 0.1,
        'train.weight_decay': 0.7,
      },
    },
  ),
  'paper': common.lra_models(_MODELS),
  'modern': {
    # The table of tokens to mixtures is long: less is left for this.
    'linformer': {'mixer.rank': 16, 'model.mlp_width': 48},
    # Its queries are its keys: more is left for this.
    'reformer': {'model.mlp_width': 176},
    # Global tokens have projections of their own.
    'longformer': {'model.qkv_width': 48, 'model.mlp_width': 160},
    # Keys of half the width, values of the whole, as GLA is published.
    'retnet': {'model.qkv_width': 48},
    'gla': {'model.qkv_width': 48, 'model.mlp_width': 112},
    'gated_deltanet': {'model.qkv_width': 48},
    'mamba2': {'mixer.value_width': 24, 'model.mlp_width': 144},
    # Tables of the length.
    'synthesizer': {'mixer.factor_width': 2, 'model.mlp_width': 144},
    # It has no parameters; layer norms are in front of the branches.
    'fnet': {'model.mlp_width': 320, 'mixer.unitary': True},
    's5': {'model.mlp_width': 80},
    # Two gates: less is left for values and this.
    'mega': {'mixer.value_width': 64, 'model.mlp_width': 32},
    # Each branch has keys and values of its own.
    'nsa': {'model.qkv_width': 32, 'model.mlp_width': 160},
  },
}

# Laid over any preset: minutes on two CPU cores.
QUICK = {
  'data.max_length': 1024,
  'data.validation_examples': 1000,
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
# Learning rate after the warmup, whatever the schedule.
QUICK_PEAK = 3e-3


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=PRESET,quick,pretrain`; all optional."""
  return common.assemble(
    arg,
    task='image',
    seed=0,
    presets=PRESETS,
    mechanisms=MECHANISMS,
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
