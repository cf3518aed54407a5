"""Pathfinder as the release of LRA has it: folders of images and metadata.

    pathfinder32/curv_contour_length_14/imgs/<k>/sample_<i>.png
    pathfinder32/curv_contour_length_14/metadata/<k>.npy

The metadata are plain text in spite of their name: a line an image, with spaces
between the folder, the file, a number, the label (0 or 1) and how the image was
made. The release has no splits; here the images, in the order of the metadata,
are shuffled in a fixed order, of which the first eight tenths are train, the
next validation, the last test. An empty image file, of which the release has at
least one, is left out.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from effformer.data import images
from effformer.data.dataset import SPLITS, Example, fixed_order
from effformer.errors import DataError

# The hard images, which LRA scores.
HARD = 'curv_contour_length_14'


def read_release(
  folder: pathlib.Path, side: int
) -> dict[str, Iterator[Example]]:
  """The splits of a folder that holds `imgs` and `metadata`.

  Raises:
    DataError: there are no metadata, or a line of them is wrong; and while
      reading, an image that is missing, damaged or not of `side` x `side`.
  """
  found = _listed(folder)
  order_N = fixed_order(len(found))
  bounds = np.linspace(0, len(found), 11).astype(int)
  parts = np.split(order_N, [bounds[8], bounds[9]])
  return {
    split: _examples(folder, [found[n] for n in part_N], side)
    for split, part_N in zip(SPLITS, parts, strict=True)
  }


def _listed(folder):
  """(path below the folder, label) of all images that are not empty."""
  paths = (folder / 'metadata').glob('*.npy')
  found = []
  for path in sorted(paths, key=lambda path: (len(path.stem), path.stem)):
    try:
      lines = path.read_text('utf-8').splitlines()
    except (OSError, ValueError) as error:
      raise _bad(path, f'cannot be read as text ({error})') from None
    for number, line in enumerate(lines, 1):
      fields = line.split(' ')
      if len(fields) < 4 or fields[3] not in ('0', '1'):
        raise _bad(path, f'line {number} has no label 0 or 1 in column 4')
      name = f'{fields[0]}/{fields[1]}'
      if '..' in name.split('/') or name.startswith('/'):
        raise _bad(path, f'line {number} names {name[:80]!r}')
      image = folder / name
      if not image.is_file():
        raise _bad(path, f'line {number} names {name}, which is not there')
      if image.stat().st_size:
        found.append((name, int(fields[3])))
  if not found:
    raise _bad(folder / 'metadata', 'names no images')
  return found


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
