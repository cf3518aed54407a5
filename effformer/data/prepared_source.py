"""Reading what a builder prepared."""

import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds

from effformer.data.dataset import TEXTS, Example
from effformer.errors import DataError


class PreparedSource:
  """Random access to one split of a prepared builder."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    self._folder = builder.data_path
    try:
      self._rows = builder.as_data_source(split)
    except Exception as error:
      raise damaged(self._folder, error) from error

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Example:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    try:
      rows = self._rows.__getitems__(list(indices))
      return [
        {
          **{name: row[name] for name in TEXTS if name in row},
          'label': int(row['label']),
          'id': row['id'].decode(),
        }
        for row in rows
      ]
    # array_record raises what its C++ meets, under several types.
    except Exception as error:
      raise damaged(self._folder, error) from error


def damaged(folder: pathlib.Path, error: Exception) -> DataError:
  """The error that data in this folder cannot be read."""
  reason = str(error).strip().split('\n')[0][:200]
  return DataError(
    f'the prepared data cannot be read: {type(error).__name__}: {reason}\n'
    f'in {folder}\n'
    'Delete that folder and run: python -m effformer.data prepare'
  )
