"""LRA Image and Pathfinder: the class of a picture from its pixels in a row."""

import ml_collections

from effformer import data
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task on grey CIFAR-10, Pathfinder, or the user's own images."""
  tokenizer, max_length = data.ByteTokenizer(), config.data.max_length

  def own_floors() -> dict[str, float]:
    train, test = dataset.splits['train'], dataset.splits['test']
    return {
      'bag_of_pixels': floors.bag_of_tokens(train, test, tokenizer, max_length),
      'linear': floors.linear(train, test),
    }

  return classification.from_config(config, dataset, tokenizer, own_floors)
