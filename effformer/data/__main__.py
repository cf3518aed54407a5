"""python -m effformer.data prepare|verify|list [name ...].

prepare makes data ready (download included), verify recomputes counts, hashes
and labels of what is prepared and reads unpacked releases to their end, list
says what is known and what is here. What takes many minutes to generate is
prepared only where it is named.
Exit codes: 0 done, 2 bad usage, 3 data missing or damaged, 130 interrupted.
"""

import argparse
import pathlib
import sys
import traceback
from collections.abc import Sequence

from effformer.data import listops
from effformer.data.catalogue import (
  KNOWN,
  data_folder,
  describe,
  obtain,
  prepared,
  release,
)
from effformer.data.dataset import SPLITS, Dataset, Fingerprint, read_all
from effformer.errors import ConfigError, DataError, UserError

STOPPED = 130
# Faults of a release that are printed.
MAX_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; the exit code."""
  flags = _parser().parse_args(arguments)
  folder = data_folder(flags.directory)
  try:
    names = _names(flags.name)
    if flags.command == 'prepare':
      _prepare(names, folder, flags.stand_in, is_asked=bool(flags.name))
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
      'what is wrong with an unpacked release',
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
  datasets, releases, faults = [], {}, []
  for name in names:
    found = prepared(name, folder)
    if KNOWN[name].release:
      try:
        if place := release(name, folder):
          releases[name] = place
      except DataError as error:
        faults.append(f'{name}: {str(error).splitlines()[0]}')
        continue
    if is_asked and not found and name not in releases:
      raise DataError(
        f'{name} is not prepared in {folder}.\n'
        f'Run: python -m effformer.data prepare {name}'
      )
    datasets += found
  if not (datasets or releases or faults):
    raise DataError(
      f'nothing is prepared in {folder}.\nRun: python -m effformer.data prepare'
    )
  for name, place in releases.items():
    faults += _check_release(name, place)
  for dataset in datasets:
    print(f'{dataset.name}: {dataset.origin}')
    for split in SPLITS:
      fault = _check_split(dataset, split)
      print(
        f'  {split:<10} {len(dataset.splits[split]):>7,} rows  '
        + (f'BAD: {fault}' if fault else 'hash, count and labels agree'),
        flush=True,
      )
      if fault:
        faults.append(f'{dataset.name} {split}: {fault}')
  if faults:
    raise DataError(
      '\n'.join(faults[:3])
      + f'\nDelete the folder in {folder} and prepare it again; unpack a '
      'release again.'
    )


def _check_release(name: str, place: pathlib.Path) -> list[str]:
  """Prints what is wrong with a release; the first of it, and how much."""
  print(f'{name}: release of LRA in {place}', flush=True)
  first, count = '', 0
  for fault in KNOWN[name].faults(place):
    first, count = first or fault, count + 1
    if count <= MAX_SHOWN:
      print(f'  BAD: {fault}', flush=True)
  if count > MAX_SHOWN:
    print(f'  and {count - MAX_SHOWN:,} more')
  if not count:
    print('  every row and image can be read, none occurs twice')
    return []
  more = f' (and {count - 1:,} more)' if count > 1 else ''
  return [f'{name}: {first}{more}']


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
