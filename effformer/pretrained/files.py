"""Folders of pretrained models: config.json, and tensors as safetensors.

Nothing of a file is ever executed: JSON is data, and a safetensors file is a
header of names, types and sizes in front of plain numbers. Pickled weights
(`pytorch_model.bin`) are refused.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from effformer import durable
from effformer.errors import CheckpointError

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
# Of weights in several files: which tensor is in which.
INDEX = 'model.safetensors.index.json'
_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The model's config.json.

  Raises:
    CheckpointError: it is missing, too large, or no JSON object.
  """
  if not folder.is_dir():
    raise CheckpointError(
      f'no folder of a pretrained model: {folder}\n'
      f'It holds {CONFIG}, {WEIGHTS} and, for texts, tokenizer.json.'
    )
  return read_json(folder / CONFIG)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """An object of a JSON file; CheckpointError says what is wrong with it."""
  largest = durable.MAX_JSON_BYTES
  if path.exists() and (size := path.stat().st_size) > largest:
    raise CheckpointError(
      f'{path} has {size:,} bytes; no such file of a model has more than '
      f'{largest:,}.\nGet the file again.'
    )
  values = durable.read_json(path)
  if values is None:
    raise CheckpointError(
      f'no such file: {path}\nGet the whole folder of the model again.'
    )
  return values


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a folder by name, of the types they are stored in.

  Raises:
    CheckpointError: weights are missing, damaged, pickled or leave the folder.
  """
  if (folder / WEIGHTS).exists():
    return read_file(folder / WEIGHTS)
  if (folder / INDEX).exists():
    return _read_parts(folder)
  pickled = sorted(path.name for path in folder.glob('*.bin'))
  if pickled:
    raise CheckpointError(
      f'{folder} has its weights in {pickled[0]}, a pickle, which may run '
      f'code when it is read.\nGet the model with {WEIGHTS}, or convert it '
      'where you trust it.'
    )
  raise CheckpointError(
    f'{folder} holds neither {WEIGHTS} nor {INDEX}.\n'
    'Get the whole folder of the model again.'
  )


def read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of one safetensors file.

  Raises:
    CheckpointError: it is missing, cut off, or has types of its own.
  """
  try:
    parts = safetensors.deserialize(path.read_bytes())
  except FileNotFoundError:
    raise CheckpointError(
      f'no such file: {path}\nGet the whole folder of the model again.'
    ) from None
  except (OSError, safetensors.SafetensorError) as error:
    raise CheckpointError(
      f'{path} cannot be read as safetensors: {error}\n'
      'It is cut off or damaged: get the file again.'
    ) from None
  tensors = {}
  for name, part in parts:
    if part['dtype'] not in _DTYPES:
      raise CheckpointError(
        f'{path}: tensor {name} is of type {part["dtype"]}, which is not '
        f'read; known: {", ".join(_DTYPES)}.'
      )
    # A copy: the bytes are those of the whole file.
    tensors[name] = (
      np.frombuffer(part['data'], _DTYPES[part['dtype']])
      .reshape(part['shape'])
      .copy()
    )
  return tensors


def write(folder: pathlib.Path, contents: Mapping[str, bytes]) -> None:
  """Writes files by name, in this order, each of them whole or not at all.

  Raises:
    CheckpointError: they cannot be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
      durable.put(folder / name, data)
  except OSError as error:
    raise CheckpointError(
      f'cannot write the model to {folder}: {durable.reason(error)}\n'
      'Free space or choose another folder; no file is half-written.'
    ) from None


def _read_parts(folder):
  index = read_json(folder / INDEX).get('weight_map')
  if not isinstance(index, dict) or not all(
    isinstance(name, str) for name in index.values()
  ):
    raise CheckpointError(
      f'{folder / INDEX} has no weight_map from tensors to files.\n'
      'Get the file again.'
    )
  tensors = {}
  for name in sorted(set(index.values())):
    if pathlib.PurePath(name).name != name or not name.endswith('.safetensors'):
      raise CheckpointError(
        f'{folder / INDEX} names {name!r}, which is no .safetensors file of '
        'this folder.\nDo not use this copy.'
      )
    tensors |= read_file(folder / name)
  missing = sorted(set(index) - set(tensors))
  if missing:
    raise CheckpointError(
      f'{folder / INDEX} promises {missing[0]}, which {index[missing[0]]} '
      'does not have.\nGet the files again.'
    )
  return tensors
