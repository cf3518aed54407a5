"""Pathfinder as the release of LRA has it: folders of images and metadata.

    pathfinder32/curv_contour_length_14/imgs/<k>/sample_<i>.png
    pathfinder32/curv_contour_length_14/metadata/<k>.npy

The metadata are plain text in spite of their name: a line an image, with spaces
between the folder, the file, a number, the label (0 or 1) and how the image was
made. The release has no splits; here the images, in the order of the metadata,
are shuffled in a fixed order, of which the first eight tenths are train, the
next validation, the last test. An empty image file, of which the release has at
least one (in the easy images), is named and left out.
"""

import hashlib
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from effformer.data import images
from effformer.data.dataset import SPLITS, Example, fixed_order
from effformer.errors import DataError

# The hard images, which LRA scores.
HARD = 'curv_contour_length_14'


# Images of one difficulty.
COUNT = 200_000


class _Entry(NamedTuple):
  """A line of the metadata: what it names, and what is wrong with it."""

  place: str
  name: str = ''
  label: int = 0
  fault: str = ''
  is_empty: bool = False


def read_release(
  folder: pathlib.Path, side: int
) -> dict[str, Iterator[Example]]:
  """The splits of a folder that holds `imgs` and `metadata`.

  Says on stderr which images are empty files.

  Raises:
    DataError: there are no metadata, or a line of them is wrong; and while
      reading, an image that is missing, damaged or not of `side` x `side`.
  """
  found = []
  for entry in _entries(folder):
    if entry.fault:
      raise _bad(entry.place, entry.fault)
    if entry.is_empty:
      print(f'left out, an empty file: {entry.name}', file=sys.stderr)
    else:
      found.append((entry.name, entry.label))
  if not found:
    raise _bad(folder / 'metadata', 'it names no images')
  order_N = fixed_order(len(found))
  bounds = np.linspace(0, len(found), 11).astype(int)
  parts = np.split(order_N, [bounds[8], bounds[9]])
  return {
    split: _examples(folder, [found[n] for n in part_N], side)
    for split, part_N in zip(SPLITS, parts, strict=True)
  }


def faults(folder: pathlib.Path, side: int) -> Iterator[str]:
  """Everything that is wrong with such a folder, named by file and line.

  Also images that occur twice, which a copy of the release is known to have
  (google-research/long-range-arena#38), and how many there are.
  """
  seen, count = {}, 0
  for entry in _entries(folder):
    count += 1
    if entry.fault:
      yield f'{entry.place}: {entry.fault}'
      continue
    if entry.is_empty:
      yield f'{folder / entry.name}: an empty file; it is left out'
      continue
    try:
      pixels = images.read_image(folder / entry.name, side)
    except DataError as error:
      yield f'{folder / entry.name}: {error}'
      continue
    digest = hashlib.sha256(pixels).digest()
    other = seen.setdefault(digest, entry.name)
    if other != entry.name:
      yield f'{folder / entry.name}: the same image as {other}'
  if count != COUNT:
    yield f'{folder / "metadata"}: {count:,} images, not {COUNT:,}'


def _entries(folder) -> Iterator[_Entry]:
  """The lines of the metadata in the order of the images."""
  paths = (folder / 'metadata').glob('*.npy')
  for path in sorted(paths, key=lambda path: (len(path.stem), path.stem)):
    try:
      lines = path.read_text('utf-8').splitlines()
    except (OSError, ValueError) as error:
      yield _Entry(str(path), fault=f'it cannot be read as text ({error})')
      continue
    for number, line in enumerate(lines, 1):
      yield _entry(folder, f'{path}:{number}', line.split(' '))


def _entry(folder, place, fields):
  if len(fields) < 4 or fields[3] not in ('0', '1'):
    return _Entry(place, fault='no label 0 or 1 in column 4')
  name = f'{fields[0]}/{fields[1]}'
  if '..' in name.split('/') or name.startswith('/'):
    return _Entry(place, fault=f'it names {name[:80]!r}')
  image = folder / name
  if not image.is_file():
    return _Entry(place, fault=f'it names {name[:80]}, which is not there')
  return _Entry(place, name, int(fields[3]), is_empty=not image.stat().st_size)


def _examples(folder, found, side) -> Iterator[Example]:
  for name, label in found:
    try:
      text = images.read_image(folder / name, side)
    except DataError as error:
      raise _bad(folder / name, str(error)) from None
    yield {'text': text, 'label': label, 'id': name}


def _bad(path, reason) -> DataError:
  return DataError(
    f'not as in the release of LRA: {path}\n{reason}.\n'
    'Unpack the archive again.'
  )
