"""LRA ListOps: the value of a nested prefix expression (10 classes)."""

import ml_collections

from effformer import data
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task on generated ListOps, or on the user's own expressions."""
  tokenizer, max_length = data.ListOpsTokenizer(), config.data.max_length

  def own_floors() -> dict[str, float]:
    train, test = dataset.splits['train'], dataset.splits['test']
    return {
      'root_operator': floors.root_operator(train, test),
      'bag_of_tokens': floors.bag_of_tokens(train, test, tokenizer, max_length),
    }

  return classification.from_config(config, dataset, tokenizer, own_floors)
