"""A compressed model as files: packed codes, and what they are.

    weights.safetensors   codes as bytes, scales, and what stayed float32
    manifest.json         config, plan, hashes, how it was made

Reading gives the same codes and scales, bit for bit, and so the same outputs.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors.numpy

import effformer
from effformer import config as config_lib
from effformer.compress import packing
from effformer.compress.grid import Grid, num_groups
from effformer.compress.tensors import QTensor, dequantise
from effformer.errors import CheckpointError
from effformer.models import build
from effformer.pretrained import files

WEIGHTS, MANIFEST = 'weights.safetensors', 'manifest.json'
FORMAT = 'effformer compressed model 1'
# Between the path of a parameter and its part.
_PART = '#'
_NEEDED = (
  *('format', 'config', 'kind', 'vocabulary_size', 'num_classes', 'causal'),
  *('tensors', 'weights_sha256', 'parent_sha256', 'steps', 'versions'),
)


class Compressed(NamedTuple):
  """A compressed model.

  Attributes:
    config: what describes it, layer by layer where layers differ.
    kind: see `build.of_kind`.
    vocabulary_size, num_classes, causal: see there.
    params: parameters; those that are rounded are `QTensor`.
    parent_sha256: digest of the parameters that it was made of.
    steps: what was done to them, in words and numbers, in order.
  """

  config: ml_collections.ConfigDict
  kind: str
  vocabulary_size: int
  num_classes: int
  causal: bool
  params: Any
  parent_sha256: str
  steps: tuple[Mapping[str, Any], ...] = ()

  @property
  def module(self) -> nn.Module:
    """The network, which takes `numbers`."""
    return build.of_kind(
      self.kind, self.config, self.vocabulary_size, self.num_classes,
      causal=self.causal,
    )  # fmt: skip

  @property
  def numbers(self) -> Any:
    """The parameters as float32."""
    return dequantise(self.params)


def digest(params: Any) -> str:
  """SHA-256 of parameters: names, types, shapes and bytes, by name."""
  found = hashlib.sha256()
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  for path in sorted(flat):
    x = np.ascontiguousarray(flat[path])
    found.update(f'{path} {x.dtype} {x.shape}\n'.encode())
    found.update(x.tobytes())
  return found.hexdigest()


def save(model: Compressed, folder: str | pathlib.Path) -> int:
  """Writes the model; the bytes of its files.

  Raises:
    CheckpointError: it cannot be written; nothing is half-written.
  """
  folder = pathlib.Path(folder)
  arrays, tensors = _packed(model.params)
  weights = safetensors.numpy.save(arrays)
  manifest = {
    'format': FORMAT,
    'config': config_lib.to_json_dict(model.config),
    'kind': model.kind,
    'vocabulary_size': model.vocabulary_size,
    'num_classes': model.num_classes,
    'causal': model.causal,
    'tensors': tensors,
    'weights_sha256': hashlib.sha256(weights).hexdigest(),
    'parent_sha256': model.parent_sha256,
    'steps': list(model.steps),
    'versions': {
      'effformer': effformer.__version__,
      'jax': jax.__version__,
    },
  }
  text = (json.dumps(manifest, indent=1, sort_keys=True) + '\n').encode()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # The manifest last: without it, or with another one, nothing is read.
    for name, data in ((WEIGHTS, weights), (MANIFEST, text)):
      aside = folder / f'.{name}.part'
      aside.write_bytes(data)
      os.replace(aside, folder / name)
  except OSError as error:
    raise CheckpointError(
      f'cannot write the model to {folder}: {error}\n'
      'Free space or choose another folder; nothing is half-written.'
    ) from None
  return len(weights) + len(text)


def load(folder: str | pathlib.Path) -> Compressed:
  """Reads what `save` wrote.

  Raises:
    CheckpointError: a file is missing, damaged, or not of this format.
  """
  folder = pathlib.Path(folder)
  if not (folder / MANIFEST).is_file():
    raise CheckpointError(
      f'{folder} holds no {MANIFEST}: it is no compressed model.\n'
      'Give the folder that compressing wrote.'
    )
  manifest = files.read_json(folder / MANIFEST)
  if manifest.get('format') != FORMAT:
    raise CheckpointError(
      f'{folder / MANIFEST} has format={manifest.get("format")!r}; this '
      f'version reads {FORMAT!r}.'
    )
  absent = [name for name in _NEEDED if name not in manifest]
  if absent:
    raise _damaged(folder / MANIFEST, f'it lacks {absent[0]}')
  path = folder / WEIGHTS
  arrays = files.read_file(path)
  found = hashlib.sha256(path.read_bytes()).hexdigest()
  if found != manifest['weights_sha256']:
    raise _damaged(path, f'it is not the file that {MANIFEST} names')
  try:
    params = _unpacked(arrays, manifest['tensors'])
    config = config_lib.neutral({}, manifest['config']['mixer']['name'])
    config = config_lib.changed(config, _leaves(manifest['config']))
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise _damaged(folder / MANIFEST, str(error)) from error
  return Compressed(
    config,
    manifest['kind'],
    manifest['vocabulary_size'],
    manifest['num_classes'],
    manifest['causal'],
    params,
    manifest['parent_sha256'],
    tuple(manifest['steps']),
  )


def _packed(params) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  arrays, tensors = {}, {}
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  for path, x in flat.items():
    if not isinstance(x, QTensor):
      arrays[path] = np.ascontiguousarray(x)
      continue
    codes = packing.pack(np.asarray(x.codes), x.grid.bits, x.grid.low)
    arrays[f'{path}{_PART}codes'] = codes
    arrays[f'{path}{_PART}scale'] = np.asarray(x.scale, np.float32)
    if not x.grid.symmetric:
      arrays[f'{path}{_PART}zero'] = np.asarray(x.zero).astype(np.uint8)
    tensors[path] = {
      **dataclasses.asdict(x.grid),
      'shape': list(x.shape),
      'is_table': x.is_table,
    }
  return arrays, tensors


def _unpacked(arrays: dict[str, np.ndarray], tensors: Mapping[str, Any]):
  flat = {path: x for path, x in arrays.items() if _PART not in path}
  for path, facts in tensors.items():
    facts = dict(facts)
    shape, is_table = tuple(facts.pop('shape')), facts.pop('is_table')
    flat[path] = _unpacked_tensor(arrays, path, Grid(**facts), shape, is_table)
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def _unpacked_tensor(
  arrays, path: str, grid: Grid, shape: Sequence[int], is_table: bool
) -> QTensor:
  size = int(np.prod(shape))
  scale = arrays[f'{path}{_PART}scale']
  # The number of outputs, from which that of inputs follows.
  if is_table:
    outputs = shape[0]
  elif path.endswith('/mixer/out/kernel') and len(shape) == 3:
    outputs = shape[-1]
  else:
    outputs = size // shape[0]
  matrix = size // outputs, outputs
  if scale.shape != num_groups(matrix, grid):
    raise ValueError(
      f'{path}: scales {scale.shape}, not {num_groups(matrix, grid)}'
    )
  codes = packing.unpack(
    arrays[f'{path}{_PART}codes'], grid.bits, grid.low, matrix
  )
  zero = np.zeros_like(scale)
  if not grid.symmetric:
    zero = arrays[f'{path}{_PART}zero'].astype(np.float32)
  return QTensor(
    jnp.asarray(codes, jnp.int8 if grid.symmetric else jnp.uint8),
    jnp.asarray(scale),
    jnp.asarray(zero),
    grid,
    shape,
    is_table,
  )


def _leaves(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'section.key': value}; the layers that differ are one value."""
  found = {}
  for name, value in values.items():
    if isinstance(value, dict) and f'{prefix}{name}' != 'model.layers':
      found |= _leaves(value, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = (
        tuple(value) if isinstance(value, list) else value
      )
  return found


def _damaged(path, reason):
  return CheckpointError(
    f'{path} is damaged: {reason}.\nCopy the whole folder again.'
  )
