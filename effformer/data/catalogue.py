"""From a name to a data set: prepared, official, stand-in, or the user's own.

For each known source, in this order: data prepared before; the official
archive in `<directory>/downloads/manual/`, or the unpacked release of LRA
there; its download, checked; where allowed, the generated stand-in. A stand-in
that is prepared already is taken before another download is tried, so that a
run that is started again sees the same data; `python -m effformer.data prepare`
fetches the real ones.
"""

import dataclasses
import functools
import inspect
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import tensorflow_datasets as tfds

from effformer.data import (
  aan,
  archives,
  builders,
  cifar,
  files,
  images,
  imdb,
  listops,
  listops_release,
  pathfinder_release,
  rows,
)
from effformer.data.dataset import SPLITS, Dataset, first_examples
from effformer.data.tokenizers import ListOpsTokenizer
from effformer.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Known:
  """A data set that effformer can prepare.

  Attributes:
    builder: prepares the real data.
    origin: what they are, for the screen.
    num_classes: number of labels; 1 where they count for nothing.
    label_names: names of the labels, or ().
    stand_in: builder of a generated stand-in, or None.
    archive: the official archive, or None.
    release: files of the release of LRA that are needed, or ().
    faults: (folder of the release) -> what is wrong with it, a line each.
    check_text: raises DataError for a text that is not of this task.
    read_rows: reads own data; see `files.load_files`.
    side: of the images, in pixels; 0 where the examples are texts.
    has_documents: whether own texts may stand in a file of their own;
      `read_rows` is then a function of its path.
    generated: builder of the same kind of data by our own generator, which is
      taken where the release is not there; no stand-in, but named.
    generated_origin: what those are, for the screen.
    is_slow: whether generating them takes many minutes.
    counts: split to the number of its official examples, where it is known.
  """

  builder: type
  origin: str
  num_classes: int
  label_names: tuple[str, ...] = ()
  stand_in: type | None = None
  archive: archives.Archive | None = None
  release: tuple[str, ...] = ()
  generated: type | None = None
  generated_origin: str = ''
  is_slow: bool = False
  faults: Callable[[pathlib.Path], Iterator[str]] | None = None
  check_text: files.CheckText | None = None
  read_rows: Callable = rows.of_texts
  side: int = 0
  has_documents: bool = False
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


RELEASE_URL = 'https://storage.googleapis.com/long-range-arena/lra_release.gz'


def _pathfinder_faults(size: int, folder: pathlib.Path) -> Iterator[str]:
  hard = folder / f'pathfinder{size}' / pathfinder_release.HARD
  return pathfinder_release.faults(hard, size)


_IMDB = Known(
  builder=builders.EffformerText,
  origin='IMDb reviews (Maas et al., 2011) as bytes',
  num_classes=2,
  label_names=imdb.LABEL_NAMES,
  stand_in=builders.EffformerTextStandIn,
  archive=imdb.ARCHIVE,
  counts={'test': 2 * imdb.PER_CLASS},
)
KNOWN = {
  'listops': Known(
    builder=builders.EffformerListopsRelease,
    generated=builders.EffformerListops,
    generated_origin=f'ListOps, LRA rule, seed {builders.LISTOPS_SEED}',
    origin='ListOps (release of LRA)',
    num_classes=listops.NUM_CLASSES,
    release=tuple(listops_release.FILES.values()),
    faults=listops_release.faults,
    check_text=ListOpsTokenizer().encode,
  ),
  'text': _IMDB,
  'language': dataclasses.replace(
    _IMDB,
    origin=f'{_IMDB.origin}, labels not used',
    num_classes=1,
    label_names=(),
    read_rows=rows.of_plain_texts,
  ),
  'image': Known(
    builder=builders.EffformerImage,
    origin='CIFAR-10 in grey (Krizhevsky, 2009), 32 x 32',
    num_classes=len(cifar.LABEL_NAMES),
    label_names=cifar.LABEL_NAMES,
    stand_in=builders.EffformerImageStandIn,
    archive=cifar.ARCHIVE,
    counts={'train': 45_000, 'validation': 5_000, 'test': 10_000},
    side=cifar.SIDE,
    read_rows=images.rows(cifar.SIDE),
  ),
  'retrieval': Known(
    builder=builders.EffformerRetrieval,
    origin='pairs of ACL papers as bytes (release of LRA)',
    num_classes=2,
    label_names=('apart', 'cited'),
    stand_in=builders.EffformerRetrievalStandIn,
    release=tuple(aan.FILES.values()),
    faults=aan.faults,
    counts=aan.COUNTS,
    read_rows=aan.of_pairs,
    has_documents=True,
  ),
  **{
    f'pathfinder{size}': Known(
      builder=builders.PATHFINDER_RELEASE[size],
      generated=builders.PATHFINDER_GENERATED[size],
      generated_origin=(
        f'Pathfinder, {size} x {size}, hard, by our generator, seed '
        f'{builders.PATHFINDER_SEED}, not the images of the release'
      ),
      is_slow=True,
      origin=f'Pathfinder, {size} x {size}, hard (release of LRA)',
      num_classes=2,
      label_names=('apart', 'joined'),
      release=tuple(
        f'pathfinder{size}/{pathfinder_release.HARD}/{part}'
        for part in ('imgs', 'metadata')
      ),
      faults=functools.partial(_pathfinder_faults, size),
      side=size,
      read_rows=images.rows(size),
    )
    for size in builders.PATHFINDER_RESOLUTIONS
  },
}


def load(
  name: str,
  *,
  directory: str = '',
  train: str = '',
  validation: str = '',
  test: str = '',
  documents: str = '',
  stand_in: bool = False,
  max_bad_fraction: float = 0.0,
  train_examples: int = 0,
  validation_examples: int = 0,
  test_examples: int = 0,
) -> Dataset:
  """The data set `name`, prepared if need be.

  Args:
    name: a key of KNOWN.
    directory: where prepared data live; '' is $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    train, validation, test: the user's own files (see files.py) or ''.
    documents: the file that texts of own pairs stand in, or ''.
    stand_in: may generated data take the place of data that cannot be had?
    max_bad_fraction: share of bad rows of an own file that is put up with.
    train_examples, validation_examples, test_examples: 0 for all of the split,
      else the first so many in a fixed shuffled order (`first_examples`).

  Raises:
    ConfigError: unknown name, or own files without train.
    DataError: data that are missing, damaged or cannot be had.
  """
  known = _known(name)
  own = {'train': train, 'validation': validation, 'test': test}
  if documents and not (known.has_documents and any(own.values())):
    raise ConfigError(
      f'data.documents={documents!r} is given, but {name} has no use for it.\n'
      'It goes with own pairs in data.train of the task retrieval.'
    )
  if known.side:
    own = images.spread(own)
  if any(own.values()):
    read_rows = known.read_rows
    dataset = files.load_files(
      name,
      own,
      max_bad_fraction=max_bad_fraction,
      check_text=known.check_text,
      read_rows=read_rows(documents) if known.has_documents else read_rows,
      has_labels=known.num_classes > 1,
    )
  else:
    builder, is_stand_in = obtain(name, data_folder(directory), stand_in)
    dataset = describe(name, builder, is_stand_in)
  counts = (train_examples, validation_examples, test_examples)
  return _limit(dataset, dict(zip(SPLITS, counts, strict=True)))


def from_config(name: str, config) -> Dataset:
  """`load` with the keys of `config.data`."""
  keys = inspect.signature(load).parameters
  return load(name, **{key: config[key] for key in keys if key != 'name'})


def data_folder(directory: str = '') -> pathlib.Path:
  """`directory`, or the folder of TensorFlow Datasets if it is ''."""
  folder = (
    directory or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  )
  try:
    return pathlib.Path(folder).expanduser()
  except RuntimeError as error:
    raise ConfigError(
      f'data.directory={folder!r}: {error}\nGive an absolute path.'
    ) from error


def obtain(
  name: str,
  folder: pathlib.Path,
  stand_in: bool,
  *,
  keep_stand_in: bool = True,
) -> tuple[tfds.core.DatasetBuilder, bool]:
  """The builder of prepared data, and whether they are the stand-in.

  Args:
    name: a key of KNOWN.
    folder: where prepared data live.
    stand_in: may the stand-in be used?
    keep_stand_in: take a stand-in that is prepared without trying a download.

  Raises:
    DataError: the data are damaged or cannot be had.
  """
  known = _known(name)
  if builder := builders.find(known.builder, folder):
    return builder, False
  manual = folder / 'downloads' / 'manual'
  if origin := _by_hand(known, manual):
    return builders.prepare(known.builder, folder, origin), False
  if known.generated:
    return builders.prepare(known.generated, folder), False
  if (
    stand_in
    and keep_stand_in
    and (builder := builders.find(known.stand_in, folder))
  ):
    return builder, True
  try:
    origin = _download(known, folder / 'downloads')
  except DataError as error:
    if stand_in:
      return builders.prepare(known.stand_in, folder), True
    remedy = f'Unpack {RELEASE_URL} in {manual}'
    if known.archive:
      remedy = f'Copy {known.archive.url} to {manual / known.archive.name}'
    raise DataError(
      f'the data of {name!r} are not here.\n{error}\n{remedy},\n'
      'or name your own files in data.train (and data.validation, data.test),'
      ' or allow generated data with data.stand_in=True.'
    ) from error
  return builders.prepare(known.builder, folder, origin), False


def _by_hand(known: Known, manual: pathlib.Path) -> pathlib.Path | None:
  """The archive, or the folder of the release, that somebody put there."""
  if known.archive:
    path = manual / known.archive.name
    if not path.exists():
      return None
    known.archive.check(path)
    return path
  return _release(known, manual)


def release(name: str, folder: pathlib.Path) -> pathlib.Path | None:
  """The unpacked release below `folder`, as far as `name` needs it.

  Raises:
    DataError: parts of it are missing.
  """
  known = _known(name)
  return _release(known, folder / 'downloads' / 'manual')


def _release(known: Known, manual: pathlib.Path) -> pathlib.Path | None:
  # Unpacked, the release has its data in a folder of the same name once more.
  places = [manual.joinpath(*('lra_release',) * depth) for depth in (2, 1)]
  for place in places:
    absent = [name for name in known.release if not (place / name).exists()]
    if not absent:
      return place
    if len(absent) < len(known.release):
      raise DataError(
        f'the release of LRA in {place} is not whole: {absent[0]} is missing.\n'
        f'Unpack {RELEASE_URL} again.'
      )
  return None


def _download(known: Known, folder: pathlib.Path) -> pathlib.Path:
  if not known.archive:
    raise DataError('The release of LRA is too large to be fetched unasked.')
  return known.archive.download(folder)


def prepared(name: str, folder: pathlib.Path) -> list[Dataset]:
  """What is prepared in `folder` under `name`, the stand-in included."""
  known = _known(name)
  return [
    describe(name, builder, is_stand_in)
    for cls, is_stand_in in (
      (known.builder, False),
      (known.generated, False),
      (known.stand_in, True),
    )
    if cls and (builder := builders.find(cls, folder))
  ]


def _known(name: str) -> Known:
  if name not in KNOWN:
    raise ConfigError(
      f'unknown data set {name!r}; known are {", ".join(sorted(KNOWN))}.'
    )
  return KNOWN[name]


def describe(
  name: str, builder: tfds.core.DatasetBuilder, is_stand_in: bool
) -> Dataset:
  """The prepared data of `builder` as a data set."""
  known = KNOWN[name]
  is_generated = known.generated and isinstance(builder, known.generated)
  origin = known.generated_origin if is_generated else known.origin
  origin, notes = f'{origin}, prepared in {builder.data_path}', ()
  if is_stand_in:
    origin = (
      f'STAND-IN: generated data, not {known.origin}; '
      f'prepared in {builder.data_path}'
    )
    notes = (
      f'scores on a stand-in say nothing about {known.origin}; for the real '
      f'data run: python -m effformer.data prepare {name}',
    )
  return Dataset(
    name=name,
    stand_in=is_stand_in,
    origin=origin,
    notes=notes,
    num_classes=known.num_classes,
    label_names=known.label_names,
    splits={split: builders.PreparedSource(builder, split) for split in SPLITS},
    fingerprints=dict(builder.info.metadata['fingerprints']),
  )


def _limit(dataset: Dataset, counts: dict[str, int]) -> Dataset:
  splits, prints, notes = {}, dict(dataset.fingerprints), list(dataset.notes)
  for split, source in dataset.splits.items():
    count = counts[split]
    if count > len(source):
      notes.append(
        f'{split} holds {len(source)} examples, fewer than '
        f'data.{split}_examples={count}: all are used'
      )
    splits[split] = first_examples(source, count)
    if len(splits[split]) < len(source):
      # A prefix of a fixed order is told by its length.
      prints[split] += f':first {count}'
  return dataclasses.replace(
    dataset, splits=splits, fingerprints=prints, notes=tuple(notes)
  )
