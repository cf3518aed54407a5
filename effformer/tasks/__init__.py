"""The table of tasks: name -> how to make it from a config."""

from collections.abc import Callable

import ml_collections

from effformer import errors
from effformer.data.builders import PATHFINDER_RESOLUTIONS
from effformer.tasks import image, listops, retrieval, text
from effformer.tasks.task import Task

TABLE: dict[str, Callable[[ml_collections.ConfigDict], Task]] = {
  'text': text.make,
  'listops': listops.make,
  'image': image.make,
  'retrieval': retrieval.make,
  **{f'pathfinder{size}': image.make for size in PATHFINDER_RESOLUTIONS},
}


def make(config: ml_collections.ConfigDict) -> Task:
  """Loads the data of `config.task` and joins it with model and measures."""
  if config.task not in TABLE:
    raise errors.ConfigError(
      f'task={config.task!r} is unknown.\nKnown tasks: {", ".join(TABLE)}.'
    )
  return TABLE[config.task](config)
