"""The config of a tiny model that reads subwords."""

import pathlib

import ml_collections

from configs import common
from tests.subwords import save_tokenizer

WORDS = tuple('abcdefgh')
LENGTH = 9


def subword_config(
  folder: pathlib.Path, task: str
) -> ml_collections.ConfigDict:
  """The tokenizer, of `WORDS`, is written into the folder."""
  config = common.base()
  config.task = task
  config.update_from_flattened_dict(
    {
      'data.tokenizer': str(save_tokenizer(folder, WORDS)),
      'data.max_length': LENGTH,
      'model.num_layers': 1,
      'model.width': 12,
      'model.num_heads': 3,
      'model.mlp_width': 10,
    }
  )
  return config
