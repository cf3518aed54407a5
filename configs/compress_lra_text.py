"""LRA Text, made small: the run of lra_text.py and a recipe.

Paper: of each method, see docs/compression.md.
Command: python -m effformer.main --mode=compress
  --config=configs/compress_lra_text.py:int8-storage --workdir=runs/small
  The parent is trained first, in WORKDIR/parent; or give a finished run by
  --config.compress.parent=FOLDER, with the same settings.
Device: as lra_text.py for the parent; recipes beside it are minutes.
Expect: see the page that it writes, WORKDIR/report.html.
Smallest command, on two CPU cores a few minutes after the five of its parent:
  python -m effformer.main --mode=compress
  --config=configs/compress_lra_text.py:int8-storage,linear,quick

Argument: recipe, and the argument of lra_text.py.
"""

import ml_collections

from configs import common, lra_text, recipes

__all__ = ['common', 'get_config']


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `RECIPE,MECHANISM,preset=PRESET,quick`; all optional."""
  return recipes.assemble(
    arg,
    lra_text.get_config,
    steps=400,
    rate=5e-4,
    shapes=((1, 512), (8, 512)),
  )
