"""Images as sequences: grey values, row by row, and where they are read from.

An image of H x W is the text of its H W grey values, one byte each, in raster
order. Colour becomes grey as LRA made it (TensorFlow's rgb_to_grayscale on
bytes):

    grey = floor(255.5 (0.2989 R + 0.5870 G + 0.1140 B) / 255)

Own images come in two forms. `.npz`: arrays `x` [N, H, W] or [N, H, W, 3],
uint8, and `y` [N], integers; or one file for several splits, with `train_x`,
`train_y`, `test_x`, ..., given for train (see `spread`). A folder: one folder a
class in it, named after the class, with image files. Nothing that
would execute is read: arrays of objects are refused. An image is decoded only
if its header says the size that the task needs, arrays are unpacked only if
their headers fit each other and the file.
"""

import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image, UnidentifiedImageError

from effformer.data.rows import Row, missing, unpacked_limit
from effformer.errors import ConfigError, DataError

GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp')
# Whatever a file is named: Pillow knows forms (EPS) that start a program.
FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'WEBP')
# 8 bits a channel.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')

# What NumPy and zipfile raise on files that are not what they claim.
_DAMAGE = (
  ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# How NumPy packs arrays.
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1


def grey(rgb_NHW3: np.ndarray) -> np.ndarray:
  """uint8 [..., 3] to uint8 [...]; see the formula above."""
  weights_3 = np.array(GREY_WEIGHTS, np.float32)
  luma = rgb_NHW3.astype(np.float32) @ weights_3
  return np.floor(luma * np.float32(255.5 / 255)).astype(np.uint8)


def rows(side: int) -> Callable[[pathlib.Path, str], Iterator[Row]]:
  """A reader of own images of `side` x `side`; see `files.load_files`."""

  def read(path: pathlib.Path, split: str) -> Iterator[Row]:
    if path.is_dir():
      yield from _of_folder(path, side)
    elif not path.exists():
      raise missing(path)
    elif path.suffix.lower() == '.npz':
      yield from _of_arrays(path, split, side)
    else:
      raise ConfigError(
        f'unknown kind of file: {path}\n'
        'Own images are an .npz file, or a folder with one folder a class.'
      )

  return read


def spread(paths: Mapping[str, str]) -> dict[str, str]:
  """The file of train also for other splits that it has and nobody gave."""
  try:
    with zipfile.ZipFile(pathlib.Path(paths['train']).expanduser()) as archive:
      names = archive.namelist()
  except (OSError, zipfile.BadZipFile):
    # A folder, or damaged, which the reader names.
    return dict(paths)
  return {
    split: path or (paths['train'] if f'{split}_x.npy' in names else '')
    for split, path in paths.items()
  }


def _of_arrays(path: pathlib.Path, split: str, side: int) -> Iterator[Row]:
  x_NHW, y_N = _arrays(path, split, side)
  if x_NHW.ndim == 4:
    x_NHW = grey(x_NHW)
  for number, (x_HW, label) in enumerate(zip(x_NHW, y_N, strict=True)):
    yield Row(number, x_HW.tobytes(), int(label))


def _arrays(path, split, side):
  try:
    with zipfile.ZipFile(path) as archive:
      members = {
        member.filename.removesuffix('.npy'): member
        for member in archive.infolist()
      }
      prefix = '' if 'x' in members else f'{split}_'
      names = [f'{prefix}{letter}' for letter in 'xy']
      if not set(names) <= set(members):
        raise DataError(
          f'{path} has the arrays {", ".join(members)[:80]}.\n'
          f'Needed are x and y, or {split}_x and {split}_y.'
        )
      headers = [_header(archive, members[name]) for name in names]
    _check_headers(path, *headers, side)
    size = sum(members[name].file_size for name in names)
    if size > unpacked_limit(path):
      raise DataError(
        f'{path} grows implausibly large: {size >> 20:,} MiB.\n'
        'If it is yours all the same, write it with numpy.savez, unpacked.'
      )
    with np.load(path, allow_pickle=False) as arrays:
      return [arrays[name] for name in names]
  except FileNotFoundError:
    raise missing(path) from None
  except _DAMAGE as error:
    raise DataError(
      f'{path} cannot be read as arrays: {str(error)[:200]}\n'
      'Write it with numpy.savez; arrays of objects are not read.'
    ) from None


def _header(archive, member) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and type of a member, which is as large as they say."""
  is_encrypted = member.flag_bits & _ENCRYPTED
  if is_encrypted or member.compress_type not in _PACKINGS:
    raise ValueError(f'{member.filename} is packed as NumPy packs nothing')
  with archive.open(member) as stream:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
      header = np.lib.format.read_array_header_1_0(stream)
    else:
      header = np.lib.format.read_array_header_2_0(stream)
    shape, _, dtype = header
    if dtype.hasobject:
      raise ValueError(f'{member.filename} is an array of objects')
    size = stream.tell() + math.prod(shape) * dtype.itemsize
  if size != member.file_size:
    raise ValueError(
      f'{member.filename} says {shape} of {dtype} and has '
      f'{member.file_size:,} bytes'
    )
  return shape, dtype


def _check_headers(path, x, y, side):
  (x_shape, x_dtype), (y_shape, y_dtype) = x, y
  has_images = len(x_shape) == 3 or (len(x_shape) == 4 and x_shape[3] == 3)
  has_labels = len(y_shape) == 1 and y_dtype.kind in 'iu'
  if not has_images or x_dtype != np.uint8 or not has_labels:
    raise DataError(
      f'{path}: x is {x_dtype} {x_shape} and y {y_dtype} {y_shape}.\n'
      'x has to be uint8 [N, H, W] or [N, H, W, 3], and y integers [N].'
    )
  if x_shape[1:3] != (side, side):
    height, width = x_shape[1:3]
    raise DataError(
      f'{path} has images of {height} x {width}, not {side} x {side}.\n'
      'Scale them, or choose a task of that size.'
    )
  if x_shape[0] != y_shape[0]:
    raise DataError(f'{path} has {x_shape[0]} images, but {y_shape[0]} labels.')


def _of_folder(folder: pathlib.Path, side: int) -> Iterator[Row]:
  number = 0
  for place in sorted(folder.iterdir()):
    if not place.is_dir():
      continue
    for path in sorted(place.iterdir()):
      if path.suffix.lower() not in SUFFIXES:
        continue
      name = f'{place.name}/{path.name}'
      try:
        yield Row(number, read_image(path, side), place.name, name)
      except DataError as error:
        yield Row(number, id=name, reason=f'{name}: {error}')
      number += 1
  if not number:
    raise DataError(
      f'{folder} holds no images.\nPut those of each class into a folder of '
      f'its own: {folder}/CLASS/NAME.png'
    )


def read_image(path: pathlib.Path, side: int) -> bytes:
  """The grey values of an image file.

  Raises:
    DataError: not an image, damaged, or not of `side` x `side`; it is decoded
      only if it is.
  """
  try:
    if not path.stat().st_size:
      raise DataError('an empty file')
    with Image.open(path, formats=FORMATS) as image:
      if image.size != (side, side):
        width, height = image.size
        raise DataError(f'{height} x {width}, not {side} x {side}')
      if image.mode not in _MODES:
        raise DataError(f'pixels of type {image.mode}, not of 8 bits a channel')
      if image.mode in ('L', '1'):
        return image.convert('L').tobytes()
      return grey(np.asarray(image.convert('RGB'))).tobytes()
  except FileNotFoundError:
    raise DataError('no such file') from None
  except UnidentifiedImageError:
    raise DataError(f'not an image ({", ".join(FORMATS)})') from None
  # Pillow raises what its decoders meet, SyntaxError for a broken PNG.
  except (*_DAMAGE, SyntaxError, Image.DecompressionBombError) as error:
    raise DataError(f'cannot be decoded ({str(error)[:100]})') from None
