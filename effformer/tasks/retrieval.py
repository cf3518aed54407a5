"""LRA Retrieval: does one paper cite the other, from the bytes of both?"""

import ml_collections

from effformer import data
from effformer.errors import ConfigError
from effformer.models import build
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task on the papers of LRA, or on the user's own pairs.

  Raises:
    ConfigError: rows are to be longer than texts are kept.
  """
  tokenizer, max_length = data.ByteTokenizer(), config.data.max_length

  if max_length > data.MAX_PAIR_BYTES:
    raise ConfigError(
      f'data.max_length={max_length}, but texts of pairs are kept up to '
      f'{data.MAX_PAIR_BYTES:,} bytes.\n'
      f'Use --config.data.max_length={data.MAX_PAIR_BYTES} at most.'
    )

  def own_floors() -> dict[str, float]:
    train, test = dataset.splits['train'], dataset.splits['test']
    return {
      'bags_of_bytes': floors.bags_of_tokens(train, test, tokenizer, max_length)
    }

  return classification.from_config(
    config,
    dataset,
    tokenizer,
    own_floors,
    build.pair_classifier,
    classification.TWO_TEXTS,
  )
