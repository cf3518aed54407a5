"""Where the unpacked release of LRA lies, or a word about where it must lie.

Data that somebody fetched must not be passed over because they are in another
folder than expected: what is found elsewhere below the manual folder, or not
unpacked yet, is named.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from effformer.errors import DataError

URL = 'https://storage.googleapis.com/long-range-arena/lra_release.gz'
# Unpacked, the release has its data in a folder of the same name once more.
_NAME = 'lra_release'
_PACKED = re.compile(rf'{_NAME}([^/]*\.(gz|tgz|tar|zip))?')
_PATHFINDER = re.compile(r'pathfinder\d+')
# The other images of Pathfinder, and what a folder of images has in it.
_BESIDE = ('curv_baseline', 'curv_contour_length_9', 'imgs', 'metadata')
# How far a search goes: levels of folders, entries of one, entries in all.
_MAX_DEPTH = 6
_MAX_IN_FOLDER = 1000
_MAX_ENTRIES = 20_000


def find(needed: Sequence[str], manual: pathlib.Path) -> pathlib.Path | None:
  """The folder that holds the paths `needed`; None without a trace of them.

  Args:
    needed: paths in the release.
    manual: the folder that it is unpacked in.

  Raises:
    DataError: some of them are missing, they are in another folder, or the
      release is still packed.
  """
  places = [manual.joinpath(*(_NAME,) * depth) for depth in (2, 1)]
  top = pathlib.PurePath(needed[0]).parts[0]
  for place in places:
    absent = [name for name in needed if not os.path.exists(place / name)]
    if not absent:
      return place
    if len(absent) < len(needed) or os.path.exists(place / top):
      raise DataError(
        f'the release of LRA in {place} is not whole: {absent[0]} is missing.\n'
        f'Unpack {URL} again.'
      )
  _refuse_elsewhere(needed, manual, places[0])
  return None


def _refuse_elsewhere(needed, manual, place) -> None:
  """Raises DataError for what `find` does not take, but might be meant."""
  paths = [pathlib.PurePath(name) for name in needed]
  top = paths[0].parts[0]
  inner = {path.parts[1] for path in paths}
  packed = None
  for entry in _below(manual):
    path = pathlib.Path(entry.path)
    if entry.name == top and _holds(path, {*inner, *_BESIDE}):
      raise _misplaced(path, place / top)
    is_of_other = _PATHFINDER.fullmatch(path.parent.name)
    if entry.name in inner and not is_of_other:
      raise _misplaced(path, place / top / entry.name)
    if _PACKED.fullmatch(entry.name) and os.path.isfile(path):
      packed = packed or path
  if packed:
    raise DataError(
      f'the release of LRA is still packed: {packed}\n'
      f'Unpack it: tar -xf {packed} -C {manual}\n'
      'To do without it, move it to another folder.'
    )


def _misplaced(path, place) -> DataError:
  return DataError(
    f'a part of the release of LRA is in another folder than expected: {path}'
    f'\nMove it to {place}\n'
    'with all that lies beside it. To do without it, move it away.'
  )


def _holds(folder, names) -> bool:
  return any(os.path.exists(folder / name) for name in names)


def _below(folder: pathlib.Path) -> Iterator[os.DirEntry]:
  """What lies below a folder, the nearest first; links are not followed."""
  level, left = [folder], _MAX_ENTRIES
  for _ in range(_MAX_DEPTH):
    folders = []
    for place in level:
      try:
        with os.scandir(place) as entries:
          some = list(itertools.islice(entries, min(left, _MAX_IN_FOLDER)))
      except OSError:
        # Not there or not to be read: nothing that a run could take either.
        continue
      left -= len(some)
      for entry in sorted(some, key=lambda entry: entry.name):
        yield entry
        if entry.is_dir(follow_symlinks=False):
          folders.append(entry.path)
    level = folders
