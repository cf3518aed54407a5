"""LRA ListOps: the value of a nested prefix expression (10 classes)."""

import ml_collections

from effformer import data
from effformer.models import build
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict) -> Task:
  """The task on generated ListOps, or on the user's own expressions."""
  dataset = data.from_config('listops', config.data)
  tokenizer = data.ListOpsTokenizer()
  max_length = config.data.max_length
  model = build.sequence_classifier(
    config, tokenizer.vocab_size, dataset.num_classes
  )
  splits = dataset.splits

  def measure_floors() -> dict[str, float]:
    return {
      'majority': floors.majority(splits['train'], splits['test']),
      'root_operator': floors.root_operator(splits['train'], splits['test']),
      'bag_of_tokens': floors.bag_of_tokens(
        splits['train'], splits['test'], tokenizer, max_length
      ),
    }

  return classification.make(
    'listops', dataset, tokenizer.encode, model, max_length, measure_floors
  )
