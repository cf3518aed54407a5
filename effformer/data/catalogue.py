"""From a name to a data set: prepared, official, stand-in, or the user's own.

For each known source, in this order: data prepared before; the official
archive in `<directory>/downloads/manual/`, or the unpacked release of LRA
there (see `releases`); its download, checked; where allowed, the generated
stand-in. A stand-in that is prepared already is taken before another download
is tried, so that a run that is started again sees the same data;
`python -m effformer.data prepare` fetches the real ones.
"""

import dataclasses
import inspect
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from effformer.data import archives, builders, files, images, releases, rows
from effformer.data.dataset import SPLITS, Dataset, first_examples
from effformer.data.known import KNOWN, Known
from effformer.data.prepared_source import PreparedSource
from effformer.errors import ConfigError, DataError


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
  validate_on_test: bool = False,
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
    validate_on_test: whether the test split is the validation split as well.
    train_examples, validation_examples, test_examples: 0 for all of the split,
      else the first so many in a fixed shuffled order (`first_examples`).

  Raises:
    ConfigError: unknown name, or own files that do not go together.
    DataError: data that are missing, damaged or cannot be had.
  """
  if validate_on_test and validation:
    raise ConfigError(
      f'data.validation={validation!r} is given, but '
      'data.validate_on_test=True takes the test split for it.\n'
      'Leave one of them out.'
    )
  own = {'train': train, 'validation': validation, 'test': test}
  own, reading = _own(name, own, documents)
  if any(own.values()):
    if validate_on_test:
      # One file may hold all splits.
      own['validation'] = ''
    dataset = files.load_files(
      name,
      own,
      max_bad_fraction=max_bad_fraction,
      validate_on_test=validate_on_test,
      **reading,
    )
  else:
    builder, is_stand_in = obtain(name, data_folder(directory), stand_in)
    dataset = describe(name, builder, is_stand_in)
  dataset = _limit(dataset, {'train': train_examples, 'test': test_examples})
  if validate_on_test:
    dataset = _validated_on_test(dataset)
  return _limit(dataset, {'validation': validation_examples})


def own_faults(
  name: str, paths: Mapping[str, str], documents: str = ''
) -> Iterator[str]:
  """Every bad row of own files, named by file and row; see `load`.

  Args:
    name: a key of KNOWN.
    paths: split to path, or ''.
    documents: as in `load`.

  Raises:
    ConfigError, DataError: a file that cannot be read at all.
  """
  own, reading = _own(name, paths, documents)
  return files.faults(own, **reading)


def _own(
  name: str, paths: Mapping[str, str], documents: str
) -> tuple[dict[str, str], dict[str, Any]]:
  """The files of each split, and how they are read."""
  known = _known(name)
  own = {
    split: str(rows.own_path(path)) if path else ''
    for split, path in paths.items()
  }
  if documents and not (known.has_documents and any(own.values())):
    raise ConfigError(
      f'data.documents={documents!r} is given, but {name} has no use for it.\n'
      'It goes with own pairs in data.train of the task retrieval.'
    )
  read_rows = known.read_rows
  return images.spread(own) if known.side else own, {
    'check_text': known.check_text,
    'read_rows': read_rows(documents) if known.has_documents else read_rows,
    'has_labels': known.num_classes > 1,
  }


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
  if known.builder is None:
    if stand_in:
      return builders.prepare(known.stand_in, folder), True
    raise DataError(
      f'the data of {name!r} are {known.origin}.\n'
      'Name your files in data.train, data.validation and data.test, or allow '
      'generated data with data.stand_in=True.'
    )
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
    remedy = f'Unpack {releases.URL} in {manual}'
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
  return releases.find(known.release, manual)


def release(name: str, folder: pathlib.Path) -> pathlib.Path | None:
  """The unpacked release below `folder`, as far as `name` needs it.

  Raises:
    DataError: it is not whole, in another place, or packed.
  """
  manual = folder / 'downloads' / 'manual'
  return releases.find(_known(name).release, manual)


def archive_files(
  name: str, folder: pathlib.Path
) -> dict[pathlib.Path, archives.Archive]:
  """The official archive, wherever `obtain` would take it from."""
  archive = _known(name).archive
  downloads = folder / 'downloads'
  return {
    place / archive.name: archive
    for place in (downloads / 'manual', downloads)
    if archive and (place / archive.name).exists()
  }


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
    splits={split: PreparedSource(builder, split) for split in SPLITS},
    fingerprints=dict(builder.info.metadata['fingerprints']),
  )


def _validated_on_test(dataset: Dataset) -> Dataset:
  test, prints = dataset.splits['test'], dataset.fingerprints
  note = (
    'validation is the test split (data.validate_on_test=True): what is chosen '
    'by it, such as the best step, was chosen on test, and has no test score'
  )
  return dataclasses.replace(
    dataset,
    splits={**dataset.splits, 'validation': test},
    fingerprints={**prints, 'validation': prints['test']},
    notes=(*dataset.notes, note),
  )


def _limit(dataset: Dataset, counts: dict[str, int]) -> Dataset:
  splits, prints = dict(dataset.splits), dict(dataset.fingerprints)
  notes = list(dataset.notes)
  for split, count in counts.items():
    source = splits[split]
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
