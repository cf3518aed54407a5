"""LRA Text: the sentiment of a film review from its bytes (2 classes)."""

import ml_collections

from effformer import data
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task on IMDb, or on the user's own labelled text of `config.data`."""
  tokenizer, max_length = data.ByteTokenizer(), config.data.max_length

  def own_floors() -> dict[str, float]:
    train, test = dataset.splits['train'], dataset.splits['test']
    return {
      'bag_of_bytes': floors.bag_of_tokens(train, test, tokenizer, max_length)
    }

  return classification.from_config(config, dataset, tokenizer, own_floors)
