"""From a name to a data set: prepared, official, stand-in, or the user's own.

For each known source, in this order: data prepared before; the official
archive in `<directory>/downloads/manual/`; its download, checked; where
allowed, the generated stand-in. A stand-in that is prepared already is taken
before another download is tried, so that a run that is started again sees the
same data; `python -m effformer.data prepare` fetches the real ones.
"""

import dataclasses
import inspect
import os
import pathlib

import tensorflow_datasets as tfds

from effformer.data import builders, files, imdb, listops
from effformer.data.dataset import SPLITS, Dataset, first_examples
from effformer.data.tokenizers import ListOpsTokenizer
from effformer.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Known:
  """A data set that effformer can prepare.

  Attributes:
    builder: prepares the real data.
    origin: what they are, for the screen.
    num_classes: number of labels.
    label_names: names of the labels, or ().
    stand_in: builder of a generated stand-in, or None.
    archive: name of the official archive, or '' if nothing is downloaded.
    check_text: raises DataError for a text that is not of this task.
  """

  builder: type
  origin: str
  num_classes: int
  label_names: tuple[str, ...] = ()
  stand_in: type | None = None
  archive: str = ''
  check_text: files.CheckText | None = None


KNOWN = {
  'listops': Known(
    builder=builders.EffformerListops,
    origin=f'ListOps, LRA rule, seed {builders.LISTOPS_SEED}',
    num_classes=listops.NUM_CLASSES,
    check_text=ListOpsTokenizer().encode,
  ),
  'text': Known(
    builder=builders.EffformerText,
    origin='IMDb reviews (Maas et al., 2011) as bytes',
    num_classes=2,
    label_names=imdb.LABEL_NAMES,
    stand_in=builders.EffformerTextStandIn,
    archive=imdb.ARCHIVE,
  ),
}


def load(
  name: str,
  *,
  directory: str = '',
  train: str = '',
  validation: str = '',
  test: str = '',
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
  if any(own.values()):
    dataset = files.load_files(
      name,
      own,
      max_bad_fraction=max_bad_fraction,
      check_text=known.check_text,
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
  if not known.archive:
    return builders.prepare(known.builder, folder), False
  manual = folder / 'downloads' / 'manual' / known.archive
  if manual.exists():
    imdb.check_archive(manual)
    return builders.prepare(known.builder, folder, manual), False
  if (
    stand_in
    and keep_stand_in
    and (builder := builders.find(known.stand_in, folder))
  ):
    return builder, True
  try:
    archive = imdb.download(folder / 'downloads')
  except DataError as error:
    if stand_in:
      return builders.prepare(known.stand_in, folder), True
    raise DataError(
      f'the data of {name!r} are not here.\n{error}\n'
      f'Copy {imdb.URL} to {manual},\n'
      'or name your own files in data.train (and data.validation, data.test),'
      ' or allow generated text with data.stand_in=True.'
    ) from error
  return builders.prepare(known.builder, folder, archive), False


def prepared(name: str, folder: pathlib.Path) -> list[Dataset]:
  """What is prepared in `folder` under `name`, the stand-in included."""
  known = _known(name)
  return [
    describe(name, builder, is_stand_in)
    for cls, is_stand_in in ((known.builder, False), (known.stand_in, True))
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
  origin, notes = f'{known.origin}, prepared in {builder.data_path}', ()
  if is_stand_in:
    origin = (
      f'STAND-IN: generated text, not {known.origin}; '
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
