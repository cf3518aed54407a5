"""LRA pathfinder: are two discs at the ends of one dashed contour? 64 x 64.

Paper: Tay et al., Long Range Arena (2021), arXiv 2011.04006.
Command: python -m effformer.main --config=configs/lra_pathfinder64.py:linear
Device: one accelerator; the ETA is on screen from the first minute on.
Expect: LRA reports nothing for this size.
Smallest command, minutes on two CPU cores once the images are made:
  python -m effformer.main --config=configs/lra_pathfinder64.py:linear,quick

Argument: mechanism, preset=paper|repo|modern, quick, pretrain.
"""

import ml_collections

from configs import common, lra_pathfinder32

# As the LRA repository trains it at its last commit (cd31e5c); it has a
# Transformer only.
REPO = {
  **lra_pathfinder32.REPO,
  'data.max_length': 4096,
  'model.num_layers': 2,
  'model.qkv_width': 32,
  'model.num_heads': 4,
  'model.position': 'learned',
  'model.pooling': 'cls',
  'model.dropout': 0.1,
  'train.num_steps': 125_000,
  'train.batch_size': 256,
  # Changes memory, not results.
  'train.accumulate_steps': 16,
  'train.eval_batch_size': 32,
  'train.warmup_steps': 625,
  'train.eval_every_steps': 2500,
  'train.checkpoint_every_steps': 2500,
}

# The appendix of the paper says nothing else of this size.
PAPER = REPO

# The model of the small images, on more of them.
MODERN = {
  **lra_pathfinder32.MODERN,
  'data.max_length': 4096,
  'train.num_steps': 125_000,
  'train.batch_size': 128,
  'train.accumulate_steps': 8,
  'train.eval_batch_size': 32,
  'train.warmup_steps': 625,
  'train.eval_every_steps': 2500,
  'train.checkpoint_every_steps': 2500,
}

PRESETS = {'paper': PAPER, 'repo': REPO, 'modern': MODERN}

# Per mechanism, laid over the preset: of the size of 'full', as there.
MECHANISMS = {
  'modern': common.overlay(
    lra_pathfinder32.MECHANISMS['modern'],
    {
      # Longer tables: less for each token.
      'linformer': {'mixer.rank': 16},
      'synthesizer': {'mixer.factor_width': 2},
    },
  )
}

# Laid over any preset: a check that it runs.
QUICK = {
  **lra_pathfinder32.CHECK,
  'data.max_length': 4096,
  'train.batch_size': 8,
  'train.eval_batch_size': 8,
}
QUICK_PEAK = lra_pathfinder32.QUICK_PEAK


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `MECHANISM,preset=PRESET,quick,pretrain`; all optional."""
  return common.assemble(
    arg,
    task='pathfinder64',
    seed=0,
    presets=PRESETS,
    mechanisms=MECHANISMS,
    quick=QUICK,
    quick_peak=QUICK_PEAK,
  )
