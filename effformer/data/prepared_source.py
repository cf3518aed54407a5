"""Reading what a builder prepared."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from effformer.data.dataset import TEXTS, Example
from effformer.errors import DataError


class PreparedSource:
  """Random access to one split of a prepared builder."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    self._folder = builder.data_path
    with reading(self._folder):
      self._rows = builder.as_data_source(split)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Example:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    with reading(self._folder):
      rows = self._rows.__getitems__(list(indices))
      return [
        {
          **{name: row[name] for name in TEXTS if name in row},
          'label': int(row['label']),
          'id': row['id'].decode(),
        }
        for row in rows
      ]


@contextlib.contextmanager
def reading(folder: str | os.PathLike) -> Iterator[None]:
  """Whatever goes wrong in this context is said of the folder's data.

  Raises:
    DataError: they cannot be read.
  """
  try:
    yield
  # array_record raises what its C++ meets, and TFDS what damaged metadata lead
  # to, under any type.
  except Exception as error:
    reason = str(error).strip().split('\n')[0][:200]
    raise DataError(
      f'the prepared data cannot be read: {type(error).__name__}: {reason}\n'
      f'in {folder}\n'
      'Delete that folder and run: python -m effformer.data prepare'
    ) from error
