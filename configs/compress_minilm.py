"""MiniLM, made small: as a sentence encoder, or fine-tuned for classes.

Paper: Wang et al., MiniLM (2020), arXiv 2002.10957; all-MiniLM-L6-v2; of each
  method of compression see docs/compression.md.
Command: python -m effformer.main --mode=compress
  --config=configs/compress_minilm.py:int8-storage --workdir=runs/small
  and --config.data.train=FILE.tsv, data.validation and data.test: pairs with
  the columns `sentence1`, `sentence2` and `score`, from 0 to 5 (STS-B);
  without own files a generated stand-in. The encoder is not trained before.
  With the word `sentence` (SST-2, CoLA) or `pair` (MRPC) it is fine-tuned
  first, in WORKDIR/parent; or give a finished run by
  --config.compress.parent=FOLDER, with the same settings.
Device: one accelerator; on two CPU cores recipes without training take
  minutes, a step of those with it about a second.
Expect: `quick` on STS-B: 22.7 of 89.6 MB, Spearman's rho x 100 82.0 as before.
Smallest command, five minutes on two CPU cores:
  python -m effformer.main --mode=compress
  --config=configs/compress_minilm.py:int8-storage,quick

Argument: recipe; similarity (the default), sentence or pair; and the argument
of similarity.py, sentence.py or pair.py.
"""

import ml_collections

from configs import common, pair, recipes, sentence, similarity

__all__ = ['common', 'get_config']

TASKS = {
  'similarity': similarity.get_config,
  'sentence': sentence.get_config,
  'pair': pair.get_config,
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config for `RECIPE,TASK,MECHANISM,quick`; all optional."""
  words = arg.split(',') if arg else []
  chosen = [word for word in words if word in TASKS]
  if len(chosen) > 1:
    raise common.ArgumentError(f'a task is given twice in {arg!r}')
  task = chosen[0] if chosen else 'similarity'
  is_encoder = task == 'similarity'

  def run(rest: str) -> ml_collections.ConfigDict:
    config = TASKS[task](rest)
    if is_encoder:
      with config.unlocked():
        # As it was published.
        config.train.num_steps = 0
        config.train.warmup_steps = 0
    return config

  return recipes.assemble(
    ','.join(word for word in words if word != task),
    run,
    steps=600,
    rate=1e-4,
    lesson=recipes.LESSON_OF_VECTORS if is_encoder else recipes.LESSON,
  )
