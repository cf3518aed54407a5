"""TFDS builders: prepare a source once as array_record, without TensorFlow.

Examples are written in the order they are generated, so that row i of a split
means the same on every machine. The SHA-256 of each split's content is kept in
the builder's metadata: `load` shows it without reading the data, `verify`
recomputes it.

TFDS writes to a folder of its own and renames it when done, so a prepared
folder is whole or not there. A lock lets only one process prepare at a time.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from effformer.data import (
  aan,
  cifar,
  image_stand_in,
  imdb,
  listops,
  listops_release,
  pair_stand_in,
  pathfinder,
  pathfinder_release,
  prepared_source,
  similarity_stand_in,
  stand_in,
)
from effformer.data.dataset import TEXTS, Example, Fingerprint
from effformer.errors import DataError

LISTOPS_SEED = 0
PATHFINDER_SEED = 0
PATHFINDER_RESOLUTIONS = sorted({size for size, _ in pathfinder.SETTINGS})
PATHFINDER_SIZES = {'train': 160_000, 'validation': 20_000, 'test': 20_000}
# Of the largest images, which take a gigabyte even so.
PATHFINDER_FEWER = 10
_CHUNK = 1000
# Examples in a file: of the largest images, a gigabyte.
_SHARD = 1 << 14
# Seconds from one line about what has been generated to the next.
_TELL_EVERY = 30
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

  # `_write` takes the place of these two.
  _split_generators = _generate_examples = None


class EffformerListops(_Builder):
  """ListOps by the rule of the Long Range Arena (see listops.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    splits, start, seen = {}, 0, set()
    for split, size in LISTOPS_SIZES.items():
      splits[split] = _listops_examples(start, start + size, seen)
      start += size
    return splits


class EffformerListopsRelease(_Builder):
  """ListOps, from the release of LRA (see listops_release.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return listops_release.read_release(self.origin)


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


class EffformerSimilarityStandIn(_Builder):
  """Generated pairs with scores (see similarity_stand_in.py)."""

  texts = TEXTS

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return similarity_stand_in.splits()


class _PathfinderRelease(_Builder):
  """Pathfinder, from the release of LRA (see pathfinder_release.py)."""

  resolution: int

  def examples(self) -> Mapping[str, Iterable[Example]]:
    name = f'pathfinder{self.resolution}'
    folder = self.origin / name / pathfinder_release.HARD
    return pathfinder_release.read_release(folder, self.resolution)


class _PathfinderGenerated(_Builder):
  """Pathfinder, by our generator (see pathfinder.py)."""

  resolution: int

  def examples(self) -> Mapping[str, Iterable[Example]]:
    splits, start = {}, 0
    for split, size in pathfinder_sizes(self.resolution).items():
      numbers = range(start, start + size)
      splits[split] = _pathfinder_examples(self.resolution, numbers)
      start += size
    return splits


def _pathfinder_class(base: type[_Builder], resolution: int) -> type[_Builder]:
  kind = base.__name__.removeprefix('_Pathfinder')
  name = f'EffformerPathfinder{resolution}{kind}'
  fields = {
    'resolution': resolution, '__doc__': base.__doc__, '__module__': __name__,
  }  # fmt: skip
  return type(name, (base,), fields)


PATHFINDER_RELEASE, PATHFINDER_GENERATED = (
  {size: _pathfinder_class(base, size) for size in PATHFINDER_RESOLUTIONS}
  for base in (_PathfinderRelease, _PathfinderGenerated)
)


def pathfinder_sizes(resolution: int) -> dict[str, int]:
  """How many images are generated: as many as LRA has, of the largest fewer."""
  scale = PATHFINDER_FEWER if resolution > 128 else 1
  return {split: size // scale for split, size in PATHFINDER_SIZES.items()}


def _pathfinder_examples(resolution: int, numbers: range) -> Iterator[Example]:
  setting = pathfinder.SETTINGS[resolution, 'hard']
  chunks = (
    (setting, PATHFINDER_SEED, first, min(_CHUNK, numbers.stop - first))
    for first in numbers[::_CHUNK]
  )
  number, start = numbers.start, time.monotonic()
  told = start
  for images_NHW, labels_N in _in_processes(pathfinder.generate, chunks):
    for image_HW, label in zip(images_NHW, labels_N, strict=True):
      text = image_HW.tobytes()
      yield {'text': text, 'label': int(label), 'id': str(number)}
      number += 1
    now, done = time.monotonic(), number - numbers.start
    if now - told >= _TELL_EVERY:
      told = now
      left = (now - start) / done * (len(numbers) - done)
      print(
        f'pathfinder{resolution}: {done:,} of {len(numbers):,} images of this '
        f'split are made; {left / 60:.0f} min left',
        file=sys.stderr,
      )


def _in_processes(function: Callable, calls: Iterable[tuple]) -> Iterator:
  """Results of the calls in order, some of them made ahead."""
  workers = min(os.cpu_count() or 1, 16)
  # A fork would copy the locks of threads that it does not copy.
  context = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin_worker)
  ahead = collections.deque()
  try:
    for call in calls:
      ahead.append(pool.submit(function, *call))
      if len(ahead) > 2 * workers:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()
  except concurrent.futures.BrokenExecutor:
    raise DataError(
      'a process that generates data was killed from outside, perhaps for want '
      'of memory. Start again; nothing half-made is used.'
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _begin_worker():
  """Leaves an interrupt to the parent, and ends with it however it ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class EffformerTextStandIn(_Builder):
  """Generated reviews in place of IMDb (see stand_in.py)."""

  def examples(self) -> Mapping[str, Iterable[Example]]:
    return stand_in.splits()


def find(
  builder_class: type[_Builder], directory: pathlib.Path
) -> _Builder | None:
  """The builder of data prepared in `directory`, or None if there are none.

  A folder that is not whole (a file is missing) counts as none.
  """
  folder = _folder(builder_class, directory)
  if not (folder / 'dataset_info.json').is_file():
    return None
  with prepared_source.reading(folder):
    builder = builder_class(data_dir=directory, file_format='array_record')
    splits = builder.info.splits.values()
    is_whole = bool(builder.info.metadata['fingerprints']) and all(
      os.path.isfile(path) for split in splits for path in split.filepaths
    )
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
  partial = folder.parent / 'incomplete.data'
  builder = builder_class(data_dir=partial, file_format='array_record')
  if origin is not None:
    builder.origin = origin
  try:
    _write(builder)
    builder.data_path.rename(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return find(builder_class, directory)


def _write(builder: _Builder) -> None:
  """Writes the splits, a shard after the other, and what is known of them."""
  examples = builder.examples()
  builder.data_path.mkdir(parents=True)
  writer = tfds.core.SequentialWriter(
    builder.info, _SHARD, file_format='array_record'
  )
  writer.initialize_splits(list(examples))
  for split, rows in examples.items():
    digest, rows = Fingerprint(), iter(rows)
    while part := list(itertools.islice(rows, _CHUNK)):
      for example in part:
        digest.update(example)
      writer.add_examples({split: part})
    builder.info.metadata['fingerprints'][split] = digest.hexdigest()
  writer.close_all()


def _folder(builder_class, directory: pathlib.Path) -> pathlib.Path:
  return directory / builder_class.name / str(builder_class.VERSION)


@contextlib.contextmanager
def _lock(directory: pathlib.Path, name: str) -> Iterator[None]:
  """Held by one process at a time; let go by the system when it dies."""
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / f'.{name}.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
