"""python -m effformer.data prepare|verify|list [name ...].

prepare makes data ready (download included), verify recomputes counts, hashes
and labels of what is prepared, and reads archives and unpacked releases to
their end, or with --train=FILE own files, list says what is known and what is
here. What takes many minutes to generate is prepared only where it is named.
Exit codes: 0 done, 2 bad usage, 3 data missing or damaged, 130 interrupted.
"""

import argparse
import pathlib
import sys
import traceback
from collections.abc import Iterable, Sequence

from effformer.data import listops
from effformer.data.catalogue import (
  KNOWN,
  archive_files,
  data_folder,
  describe,
  load,
  obtain,
  own_faults,
  prepared,
  release,
)
from effformer.data.dataset import SPLITS, Dataset, Fingerprint, read_all
from effformer.errors import ConfigError, DataError, UserError

STOPPED = 130
# Faults of a release, or of own files, that are printed.
MAX_SHOWN = 20
# Flags of `verify` that name own files.
_OWN = (*SPLITS, 'documents')


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; the exit code."""
  flags = _parser().parse_args(arguments)
  try:
    folder = data_folder(flags.directory)
    names = _names(flags.name)
    if flags.command == 'prepare':
      _prepare(names, folder, flags.stand_in, is_asked=bool(flags.name))
    elif flags.command == 'verify' and any(getattr(flags, f) for f in _OWN):
      _verify_own(flags)
    elif flags.command == 'verify':
      _verify(names, folder, is_asked=bool(flags.name))
    else:
      _list(names, folder)
  except UserError as error:
    if flags.debug:
      traceback.print_exc()
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  except KeyboardInterrupt:
    print('stopped; nothing half-prepared is used', file=sys.stderr)
    return STOPPED
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m effformer.data', description=__doc__.split('\n\n')[1]
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for command, text in (
    ('prepare', 'make data ready for training'),
    (
      'verify',
      'recompute counts, hashes and labels of prepared data, and find '
      'what is wrong with an archive, an unpacked release or own files',
    ),
    ('list', 'what is known, what is prepared, and where'),
  ):
    sub = commands.add_parser(command, help=text, description=text)
    sub.add_argument(
      'name', nargs='*', help=f'of {", ".join(sorted(KNOWN))}; none means all'
    )
    sub.add_argument(
      '--directory',
      default='',
      help='where prepared data live; without it $TFDS_DATA_DIR or '
      '~/tensorflow_datasets',
    )
    sub.add_argument(
      '--debug', action='store_true', help='print the traceback of an error'
    )
    if command == 'prepare':
      sub.add_argument(
        '--stand_in',
        action='store_true',
        help='generate a stand-in for data that cannot be had',
      )
    if command == 'verify':
      for flag in _OWN:
        what = (
          f'own {flag} file, or folder of images'
          if flag in SPLITS
          else 'texts of own pairs'
        )
        sub.add_argument(
          f'--{flag}',
          default='',
          metavar='FILE',
          help=f'{what}: bad rows are named, instead of what is prepared',
        )
  return parser


def _names(names: Sequence[str]) -> list[str]:
  for name in names:
    if name not in KNOWN:
      raise ConfigError(
        f'unknown data set {name!r}; known are {", ".join(sorted(KNOWN))}.'
      )
  return list(dict.fromkeys(names)) or sorted(KNOWN)


def _prepare(
  names: Sequence[str], folder: pathlib.Path, stand_in: bool, is_asked: bool
) -> None:
  failures = []
  for name in names:
    if KNOWN[name].is_slow and not is_asked:
      print(f'{name}: left out; it takes many minutes. To make it, name it')
      continue
    print(f'{name}: preparing in {folder}', flush=True)
    try:
      # Data that can be had replace a stand-in prepared before.
      builder, is_stand_in = obtain(name, folder, stand_in, keep_stand_in=False)
    except DataError as error:
      if len(names) == 1:
        raise
      failures.append(name)
      print(f'{name}: error: {error}', file=sys.stderr)
      continue
    _report(describe(name, builder, is_stand_in))
  if failures:
    raise DataError(f'not prepared: {", ".join(failures)}.')


def _list(names: Sequence[str], folder: pathlib.Path) -> None:
  for name in names:
    datasets = prepared(name, folder)
    if not datasets:
      print(f'{name}: not prepared in {folder} ({KNOWN[name].origin})')
    for dataset in datasets:
      _report(dataset)


def _report(dataset: Dataset) -> None:
  print(f'{dataset.name}: {dataset.origin}')
  for split, source in dataset.splits.items():
    print(
      f'  {split:<10} {len(source):>7,} rows  '
      f'sha256 {dataset.fingerprints[split][:16]}'
    )


def _verify(
  names: Sequence[str], folder: pathlib.Path, *, is_asked: bool
) -> None:
  datasets, places, archives, errors = [], {}, {}, {}
  for name in names:
    found, known = prepared(name, folder), KNOWN[name]
    try:
      place = release(name, folder) if known.release else None
    except DataError as error:
      # One packed release is the fault of several data sets.
      errors.setdefault(str(error), []).append(name)
    else:
      if place:
        places[name] = place
    here = archive_files(name, folder)
    archives |= here
    is_faulty = any(name in faulty for faulty in errors.values())
    if is_asked and not (found or here or name in places or is_faulty):
      raise DataError(
        f'{name} is not prepared in {folder}.\n'
        f'Run: python -m effformer.data prepare {name}'
      )
    datasets += found
  if not (datasets or places or archives or errors):
    raise DataError(
      f'nothing is prepared in {folder}.\nRun: python -m effformer.data prepare'
    )
  faults = []
  for path, archive in archives.items():
    print(f'{archive.title}: archive {path}', flush=True)
    try:
      archive.check(path)
      print('  SHA-256 is that of the official one')
    except DataError as error:
      errors[str(error)] = [archive.title]
  for error, faulty in errors.items():
    print(f'{", ".join(faulty)}: BAD: {error}', flush=True)
    faults.append(f'{", ".join(faulty)}: {error.splitlines()[0]}')
  for name, place in places.items():
    faults += _check_release(name, place)
  for dataset in datasets:
    faults += _check_dataset(dataset)
  if len(faults) == len(errors) == 1:
    raise DataError(next(iter(errors)))
  if faults:
    more = f' (and {len(faults) - 3} more)' if len(faults) > 3 else ''
    raise DataError(
      '\n'.join(faults[:3])
      + f'{more}\nDelete what is prepared and bad in {folder} and prepare it '
      'again; get archives and releases again, or move them to their place.'
    )


def _verify_own(flags: argparse.Namespace) -> None:
  """Prints what is wrong with own files; DataError if there is anything."""
  if len(flags.name) != 1:
    raise ConfigError(
      f'own files are of one data set, but {len(flags.name)} are named.\n'
      'For example: python -m effformer.data verify text --train=mine.jsonl'
    )
  [name] = flags.name
  own = {split: getattr(flags, split) for split in SPLITS}
  print(f'{name}: own files', flush=True)
  first, count = _print_faults(own_faults(name, own, flags.documents))
  if count:
    raise DataError(
      f'{count:,} bad row(s), the first: {first}\n'
      'Mend them, or let a run skip them with --config.data.max_bad_fraction.'
    )
  dataset = load(name, **own, documents=flags.documents)
  _report(dataset)
  for note in dataset.notes:
    print(f'  {note}')
  print('  every row can be read')


def _check_release(name: str, place: pathlib.Path) -> list[str]:
  """Prints what is wrong with a release; the first of it, and how much."""
  print(f'{name}: release of LRA in {place}', flush=True)
  first, count = _print_faults(KNOWN[name].faults(place))
  if not count:
    print(f'  {KNOWN[name].no_faults}')
    return []
  more = f' (and {count - 1:,} more)' if count > 1 else ''
  return [f'{name}: {first}{more}']


def _print_faults(faults: Iterable[str]) -> tuple[str, int]:
  """Prints the first of them; the first one and their number."""
  first, count = '', 0
  for fault in faults:
    first, count = first or fault, count + 1
    if count <= MAX_SHOWN:
      print(f'  BAD: {fault}', flush=True)
  if count > MAX_SHOWN:
    print(f'  and {count - MAX_SHOWN:,} more')
  return first, count


def _check_dataset(dataset: Dataset) -> list[str]:
  """Prints what is wrong with prepared data, and gives it."""
  print(f'{dataset.name}: {dataset.origin}')
  faults = []
  for split in SPLITS:
    fault = _check_split(dataset, split)
    print(
      f'  {split:<10} {len(dataset.splits[split]):>7,} rows  '
      + (f'BAD: {fault}' if fault else 'hash, count and labels agree'),
      flush=True,
    )
    if fault:
      faults.append(f'{dataset.name} {split}: {fault}')
  return faults


def _check_split(dataset: Dataset, split: str) -> str:
  """What is wrong with a split, or ''."""
  digest = Fingerprint()
  try:
    for row, example in enumerate(read_all(dataset.splits[split])):
      digest.update(example)
      has_labels = dataset.num_classes > 1
      if has_labels and not 0 <= example['label'] < dataset.num_classes:
        return f'row {row}: label {example["label"]} is out of range'
      if dataset.name == 'listops':
        value = listops.evaluate(example['text'])
        if value != example['label']:
          return f'row {row}: label {example["label"]}, value {value}'
  except DataError as error:
    return str(error).split('\n')[0]
  if digest.hexdigest() != dataset.fingerprints[split]:
    return 'the content is not what was prepared (SHA-256 differs)'
  counts = {} if dataset.stand_in else KNOWN[dataset.name].counts
  if digest.count != counts.get(split, digest.count):
    return f'{digest.count} rows, not {counts[split]}'
  return ''


if __name__ == '__main__':
  sys.exit(main())
