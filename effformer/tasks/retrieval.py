"""LRA Retrieval: does one paper cite the other, from the bytes of both?"""

import ml_collections

from effformer import data
from effformer.models import build
from effformer.tasks import classification, floors
from effformer.tasks.task import Task


def make(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task on the papers of LRA, or on the user's own pairs."""
  tokenizer, max_length = data.ByteTokenizer(), config.data.max_length

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
