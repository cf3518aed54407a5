"""The config of a run that starts from a tiny pretrained encoder."""

import pathlib
from collections.abc import Mapping

import ml_collections

from configs import published
from effformer import config as config_lib
from tests.pretrained.golden_test import folder_of
from tests.subwords import save_tokenizer
from tests.train.tiny_run import tiny_config

# With the special tokens, the 31 of the tiny model.
WORDS = tuple(f'w{number}' for number in range(27))
LENGTH = 7
# What config.json says of it: as of the published one, but for names and sizes.
FACTS = {
  **{
    name: value
    for name, value in published.MINILM_L6.items()
    if name
    not in (
      *('model.pretrained', 'data.tokenizer', 'model.pooling', 'model.width'),
      *('model.num_heads', 'model.mlp_width'),
    )
  },
  'model.num_layers': 2,
}


def pretrained_config(
  folder: pathlib.Path, task: str, files: Mapping[str, str]
) -> ml_collections.ConfigDict:
  """A config whose model and tokenizer are written into a folder.

  Args:
    folder: where they are written.
    task: of `tasks.TABLE`.
    files: split -> path of its rows.
  """
  save_tokenizer(folder_of('bert-embedder', folder), WORDS)
  config = config_lib.changed(
    tiny_config('full'),
    {
      **FACTS,
      'data.tokenizer': str(folder),
      'model.pretrained': str(folder),
      'data.max_length': LENGTH,
      'train.batch_size': 8,
      'train.eval_batch_size': 8,
      'train.num_steps': 6,
      **{f'data.{split}': path for split, path in files.items()},
    },
  )
  with config.unlocked():
    config.task = task
  return config
