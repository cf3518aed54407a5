"""LRA pathfinder: are two discs at the ends of one dashed contour? 128 x 128.

Paper: Tay et al., Long Range Arena (2021), arXiv 2011.04006.
Command: python -m effformer.main --config=configs/lra_pathfinder128.py:linear
Device: one accelerator; the ETA is on screen from the first minute on.
Expect: this is Path-X, at which every model of the LRA paper stays at
  chance (50); S5 reports 98.58, Mega 97.98.
Smallest command, minutes on two CPU cores once the images are made:
  python -m effformer.main --config=configs/lra_pathfinder128.py:linear,quick

Argument: mechanism, preset=paper|repo|modern, quick, pretrain.
"""

import ml_collections

from configs import common, lra_pathfinder32

# As the LRA repository trains it at its last commit (cd31e5c); it has a
# Transformer only.
REPO = {
  **lra_pathfinder32.REPO,
  'data.max_length': 16384,
  'model.num_layers': 1,
  'model.qkv_width': 16,
  'model.num_heads': 2,
  'model.position': 'learned',
  'model.pooling': 'mean',
  'model.dropout': 0.1,
  'train.num_steps': 500_000,
  'train.batch_size': 64,
  # Changes memory, not results.
  'train.accumulate_steps': 16,
  'train.eval_batch_size': 16,
  'train.warmup_steps': 2500,
  'train.clip_norm': 1.0,
  'train.eval_every_steps': 5000,
  'train.checkpoint_every_steps': 5000,
}

# The appendix of the paper says nothing else of this size.
PAPER = REPO

# The model of the small images, on more of them.
MODERN = {
  **lra_pathfinder32.MODERN,
  'data.max_length': 16384,
  'train.num_steps': 500_000,
  'train.batch_size': 32,
  'train.accumulate_steps': 16,
  'train.eval_batch_size': 16,
  'train.warmup_steps': 2500,
  'train.eval_every_steps': 5000,
  'train.checkpoint_every_steps': 5000,
}

PRESETS = {'paper': PAPER, 'repo': REPO, 'modern': MODERN}

# Per mechanism, laid over the preset: of the size of 'full', as there.
MECHANISMS = {
  'modern': common.overlay(
    lra_pathfinder32.MECHANISMS['modern'],
    {
      # A table of all tokens would leave room for four mixtures: filters of 256
      # taps in its place.
      'linformer': {
        'mixer.mixing': 'conv',
        'model.qkv_width': 128,
        'model.mlp_width': 128,
      },
      # Nor is there room for such tables: logits are made of the query.
      'synthesizer': {
        'mixer.variant': 'factorized_dense',
        'model.num_heads': 8,
        'model.qkv_width': 128,
      },
      # Sorting has weights for each block: fewer blocks.
      'sinkhorn': {'mixer.block': 128, 'model.mlp_width': 96},
    },
  )
}

# Laid over any preset: a check that it runs.
QUICK = {
  **lra_pathfinder32.CHECK,
  'data.max_length': 16384,
  'train.batch_size': 2,
  'train.eval_batch_size': 2,
}
QUICK_PEAK = lra_pathfinder32.QUICK_PEAK


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=PRESET,quick,pretrain`; all optional."""
  return common.assemble(
    arg,
    task='pathfinder128',
    seed=0,
    presets=PRESETS,
    mechanisms=MECHANISMS,
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
