"""LRA Text: the sentiment of a film review from its bytes (2 classes)."""

import ml_collections

from effformer import data
from effformer.models import build
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict) -> Task:
  """The task on IMDb, or on the user's own labelled text of `config.data`."""
  dataset = data.from_config('text', config.data)
  tokenizer = data.ByteTokenizer()
  max_length = config.data.max_length
  model = build.sequence_classifier(
    config, tokenizer.vocab_size, dataset.num_classes
  )
  splits = dataset.splits

  def measure_floors() -> dict[str, float]:
    return {
      'majority': floors.majority(splits['train'], splits['test']),
      'bag_of_bytes': floors.bag_of_tokens(
        splits['train'], splits['test'], tokenizer, max_length
      ),
    }

  return classification.make(
    'text', dataset, tokenizer.encode, model, max_length, measure_floors
  )
