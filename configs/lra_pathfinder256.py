"""LRA pathfinder: are two discs at the ends of one dashed contour? 256 x 256.

Paper: Tay et al., Long Range Arena (2021), arXiv 2011.04006.
Command: python -m effformer.main --config=configs/lra_pathfinder256.py:linear
Device: one accelerator; the ETA is on screen from the first minute on.
Expect: LRA reports nothing for this size; a best of 63.1 was beaten by
  self-pretraining by about 20 points (Amos et al. 2024, PathX-256).
Smallest command, some minutes on two CPU cores once the images are made:
  python -m effformer.main --config=configs/lra_pathfinder256.py:linear,quick

Argument: mechanism, preset=paper|repo|modern, quick, pretrain.
"""

import ml_collections

from configs import common, lra_pathfinder32

_BUDGET = {
  'data.max_length': 65536,
  'train.num_steps': 500_000,
  'train.batch_size': 32,
  # Changes memory, not results.
  'train.accumulate_steps': 32,
  'train.eval_batch_size': 8,
  'train.warmup_steps': 5000,
  'train.eval_every_steps': 5000,
  'train.checkpoint_every_steps': 5000,
}

# As the LRA repository trains it at its last commit (cd31e5c); it has a
# Transformer only.
REPO = {
  **lra_pathfinder32.REPO,
  'model.num_layers': 2,
  'model.qkv_width': 32,
  'model.num_heads': 4,
  'model.position': 'learned',
  'model.pooling': 'cls',
  'model.dropout': 0.1,
  **_BUDGET,
}

# The appendix of the paper says nothing else of this size.
PAPER = REPO

# The model of the small images, on more of them.
MODERN = {
  **lra_pathfinder32.MODERN,
  **_BUDGET,
}

PRESETS = {'paper': PAPER, 'repo': REPO, 'modern': MODERN}

# Per mechanism, laid over the preset: of the size of 'full', as there.
MECHANISMS = {
  'modern': common.overlay(
    lra_pathfinder32.MECHANISMS['modern'],
    {
      # Filters of 256 taps, as of the images of 128 x 128.
      'linformer': {
        'mixer.mixing': 'conv',
        'mixer.rank': 256,
        'model.qkv_width': 128,
        'model.mlp_width': 128,
      },
      # Tables of all tokens do not fit: logits are made of the query.
      'synthesizer': {
        'mixer.variant': 'factorized_dense',
        'model.num_heads': 8,
        'model.mlp_width': 160,
      },
      # Sorting has weights for each block: fewer blocks.
      'sinkhorn': {'mixer.block': 512, 'model.mlp_width': 96},
    },
  )
}

# Laid over any preset: a check that it runs.
QUICK = {
  **lra_pathfinder32.CHECK,
  'data.max_length': 65536,
  'train.batch_size': 1,
  'train.eval_batch_size': 1,
}
QUICK_PEAK = lra_pathfinder32.QUICK_PEAK


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=PRESET,quick,pretrain`; all optional."""
  return common.assemble(
    arg,
    task='pathfinder256',
    seed=0,
    presets=PRESETS,
    mechanisms=MECHANISMS,
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
