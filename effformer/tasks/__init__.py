"""The table of tasks: name -> how to make it from a config."""

from collections.abc import Callable

import ml_collections

from effformer import data, errors
from effformer.data import Dataset
from effformer.data.builders import PATHFINDER_RESOLUTIONS
from effformer.data.dataset import unloaded
from effformer.tasks import (
  image,
  listops,
  retrieval,
  sentences,
  similarity,
  text,
  tokens,
)
from effformer.tasks.task import Task
from effformer.tasks.tokens import pretraining

__all__ = ['TABLE', 'Task', 'make', 'pretraining', 'without_data']

TABLE: dict[str, Callable[[ml_collections.ConfigDict, Dataset], Task]] = {
  'text': text.make,
  'listops': listops.make,
  'image': image.make,
  'retrieval': retrieval.make,
  'language': tokens.language,
  'sentence': sentences.one,
  'pair': sentences.two,
  'similarity': similarity.make,
  **{f'pathfinder{size}': image.make for size in PATHFINDER_RESOLUTIONS},
}


def make(
  config: ml_collections.ConfigDict, dataset: Dataset | None = None
) -> Task:
  """Joins the data of `config.task` with model and measures.

  Args:
    config: the whole config.
    dataset: None loads what `config.data` names.
  """
  if config.task not in TABLE:
    raise errors.ConfigError(
      f'task={config.task!r} is unknown.\nKnown tasks: {", ".join(TABLE)}.'
    )
  if dataset is None:
    dataset = data.from_config(config.task, config.data)
  return TABLE[config.task](config, dataset)


def without_data(config: ml_collections.ConfigDict) -> Task:
  """The task of a config, for its model: the official classes, no examples."""
  known = data.KNOWN[config.task]
  names = known.label_names or tuple(map(str, range(known.num_classes)))
  return make(config, unloaded(config.task, names))
