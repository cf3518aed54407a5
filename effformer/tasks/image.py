"""LRA Image: the class of a picture from its pixels, row by row."""

import ml_collections

from effformer import data
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict) -> Task:
  """The task on CIFAR-10 in grey, or on the user's own images."""
  tokenizer, max_length = data.ByteTokenizer(), config.data.max_length

  def own_floors(dataset: data.Dataset) -> dict[str, float]:
    train, test = dataset.splits['train'], dataset.splits['test']
    return {
      'bag_of_pixels': floors.bag_of_tokens(train, test, tokenizer, max_length),
      'linear': floors.linear(train, test),
    }

  return classification.from_config(config, tokenizer, own_floors)
