"""Classes of sentences and of pairs of them, in subwords (as GLUE has them).

The tasks of pretrained models: SST-2, CoLA, MRPC and the user's own. With two
classes, class 1 is the one that F1 is of.
"""

import dataclasses

import ml_collections

from effformer import data
from effformer.models import build
from effformer.pretrained import tokenizer
from effformer.tasks import binary, classification, floors
from effformer.tasks.task import Task


def one(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task `sentence`."""
  subwords = tokenizer(config.data.tokenizer)
  max_length = config.data.max_length

  def own_floors() -> dict[str, float]:
    train, test = dataset.splits['train'], dataset.splits['test']
    return {
      'bag_of_subwords': floors.bag_of_tokens(train, test, subwords, max_length)
    }

  return classification.from_config(
    config, dataset, subwords, own_floors, more=_measures(dataset)
  )


def two(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task `pair`: both texts in one row, or each in its own.

  In one row the model sees them together (a cross-encoder), with a type for
  each where it has types.
  """
  subwords = tokenizer(config.data.tokenizer)
  max_length = config.data.max_length

  def own_floors() -> dict[str, float]:
    train, test = dataset.splits['train'], dataset.splits['test']
    return {
      'bags_of_subwords': floors.bags_of_tokens(
        train, test, subwords, max_length
      )
    }

  if config.model.pair_head != 'none':
    return classification.from_config(
      config,
      dataset,
      subwords,
      own_floors,
      build.pair_classifier,
      classification.TWO_TEXTS,
      _measures(dataset),
    )
  # RoBERTa has one type, of all tokens.
  has_types = config.model.token_types > 1
  inputs = classification.ONE_ROW if has_types else classification.ONE_TEXT
  task = classification.from_config(
    config,
    dataset,
    subwords,
    own_floors,
    inputs=inputs,
    more=_measures(dataset),
  )
  return dataclasses.replace(task, encode_pair=subwords.encode_pair)


def _measures(dataset):
  if dataset.num_classes != 2:
    return None
  return classification.Measures(binary.shares, binary.summarise)
