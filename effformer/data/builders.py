"""TFDS builders: prepare a source once as array_record, without TensorFlow.

Examples are written in the order they are generated, so that row i of a split
means the same on every machine. The SHA-256 of each split's content is kept in
the builder's metadata: `load` shows it without reading the data, `verify`
recomputes it.

TFDS writes to a folder of its own and renames it when done, so a prepared
folder is whole or not there. A lock lets only one process prepare at a time.
"""

import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from effformer.data import (
  aan,
  cifar,
  image_stand_in,
  imdb,
  listops,
  pair_stand_in,
  stand_in,
)
from effformer.data.dataset import TEXTS, Example, Fingerprint
from effformer.errors import DataError

LISTOPS_SEED = 0
LISTOPS_SIZES = {'train': 96_000, 'validation': 2_000, 'test': 2_000}


class _Builder(tfds.core.GeneratorBasedBuilder):
  """Splits of texts, label and id, in a fixed order."""

  VERSION = tfds.core.Version('1.0.0')
  # The archive or folder that is read, where there is one.
  origin: pathlib.Path | None = None
  texts: tuple[str, ...] = ('text',)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          **{name: tfds.features.Text() for name in self.texts},
          'label': np.int64,
          'id': tfds.features.Text(),
        }
      ),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(fingerprints={}),
    )

  def examples(self) -> Mapping[str, Iterable[Example]]:
    """Examples of each split, in order."""
    raise NotImplementedError(f'{type(self).__name__}.examples')

  def _split_generators(self, dl_manager):
    del dl_manager  # Sources read and check their archives themselves.
    return {
      split: self._generate_examples(split, examples)
      for split, examples in self.examples().items()
    }

  def _generate_examples(self, split: str, examples: Iterable[Example]):
    digest = Fingerprint()
    for row, example in enumerate(examples):
      digest.update(example)
      yield row, example
    self.info.metadata['fingerprints'][split] = digest.hexdigest()


class EffformerListops(_Builder):
  """ListOps by the rule of the Long Range Arena (see listops.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    splits, start, seen = {}, 0, set()
    for split, size in LISTOPS_SIZES.items():
      splits[split] = _listops_examples(start, start + size, seen)
      start += size
    return splits


def _listops_examples(start: int, stop: int, seen: set) -> Iterator[Example]:
  pairs = listops.generate(LISTOPS_SEED, start, stop)
  for number, (text, label) in enumerate(pairs, start):
    if (digest := hash(text)) in seen:
      raise AssertionError(f'ListOps example {number} occurs twice')
    seen.add(digest)
    yield {'text': text, 'label': label, 'id': str(number)}


class EffformerText(_Builder):
  """IMDb reviews as bytes, from the official archive (see imdb.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return imdb.read_archive(self.origin)


class EffformerImage(_Builder):
  """CIFAR-10 in grey, from the official archive (see cifar.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return cifar.read_archive(self.origin)


class EffformerImageStandIn(_Builder):
  """Generated pictures in place of CIFAR-10 (see image_stand_in.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return image_stand_in.splits()


class EffformerRetrieval(_Builder):
  """Pairs of papers, from the release of LRA (see aan.py)."""

  texts = TEXTS

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return aan.read_release(self.origin)


class EffformerRetrievalStandIn(_Builder):
  """Generated pairs in place of papers (see pair_stand_in.py)."""

  texts = TEXTS

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return pair_stand_in.splits()


class EffformerTextStandIn(_Builder):
  """Generated reviews in place of IMDb (see stand_in.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return stand_in.splits()


class PreparedSource:
  """Random access to one split of a prepared builder."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    self._folder = builder.data_path
    try:
      self._rows = builder.as_data_source(split)
    except Exception as error:
      raise _damaged(self._folder, error) from error

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
      raise _damaged(self._folder, error) from error


def find(
  builder_class: type[_Builder], directory: pathlib.Path
) -> _Builder | None:
  """The builder of data prepared in `directory`, or None if there are none.

  A folder that is not whole (a file is missing) counts as none.
  """
  folder = _folder(builder_class, directory)
  if not (folder / 'dataset_info.json').is_file():
    return None
  try:
    builder = builder_class(data_dir=directory, file_format='array_record')
    splits = builder.info.splits.values()
    is_whole = bool(builder.info.metadata['fingerprints']) and all(
      os.path.isfile(path) for split in splits for path in split.filepaths
    )
  except Exception as error:
    raise _damaged(folder, error) from error
  return builder if is_whole else None


def prepare(
  builder_class: type[_Builder],
  directory: pathlib.Path,
  origin: pathlib.Path | None = None,
) -> _Builder:
  """Prepares the data in `directory`, unless it is there already."""
  try:
    with _lock(directory, builder_class.__name__):
      builder = find(builder_class, directory)
      return builder or _prepare(builder_class, directory, origin)
  except OSError as error:
    raise DataError(
      f'cannot write prepared data: {error}\n'
      f'in {directory}\n'
      'Make room or choose another folder with data.directory.'
    ) from error


def _prepare(builder_class, directory, origin) -> _Builder:
  folder = _folder(builder_class, directory)
  # Left by a process that was killed, or by a partial copy.
  shutil.rmtree(folder, ignore_errors=True)
  for left_over in folder.parent.glob('incomplete.*'):
    shutil.rmtree(left_over, ignore_errors=True)
  builder = builder_class(data_dir=directory, file_format='array_record')
  if origin is not None:
    builder.origin = origin
  tfds.display_progress_bar(False)
  with contextlib.redirect_stdout(io.StringIO()), _all_in_memory():
    builder.download_and_prepare()
  return find(builder_class, directory)


@contextlib.contextmanager
def _all_in_memory() -> Iterator[None]:
  """TFDS gathers a split in memory, however large it is.

  From a gigabyte on it would go on in files, by TensorFlow, which is not here.
  """
  limit = shuffle.MAX_MEM_BUFFER_SIZE
  shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
  try:
    yield
  finally:
    shuffle.MAX_MEM_BUFFER_SIZE = limit


def _folder(builder_class, directory: pathlib.Path) -> pathlib.Path:
  return directory / builder_class.name / str(builder_class.VERSION)


@contextlib.contextmanager
def _lock(directory: pathlib.Path, name: str) -> Iterator[None]:
  """Held by one process at a time; let go by the system when it dies."""
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / f'.{name}.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _damaged(folder, error: Exception) -> DataError:
  reason = str(error).strip().split('\n')[0][:200]
  return DataError(
    f'the prepared data cannot be read: {type(error).__name__}: {reason}\n'
    f'in {folder}\n'
    'Delete that folder and run: python -m effformer.data prepare'
  )
