"""A compressed model as files: packed codes, and what they are.

    weights.safetensors   codes as bytes (of a pattern also the places of
                          those that stay), scales, and what stayed float32
    manifest.json         config, plan, hashes, how it was made

Reading gives the same codes and scales, bit for bit, and so the same outputs.
"""

import dataclasses
import hashlib
import json
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
from effformer.compress import halves, packing, patterns, tensors
from effformer.compress.grid import Grid, scales_shape
from effformer.compress.tensors import QTensor
from effformer.errors import CheckpointError
from effformer.models import build
from effformer.pretrained import files
from effformer.pretrained.model import Pretrained
from effformer.train import state

WEIGHTS, MANIFEST = 'weights.safetensors', 'manifest.json'
FORMAT = 'effformer compressed model 3'
# Between the path of a parameter and its part.
_PART = '#'
_NEEDED = (
  *('format', 'config', 'kind', 'vocabulary_size', 'num_classes', 'causal'),
  *('tensors', 'weights_sha256', 'parent_sha256', 'steps', 'activations'),
  'versions',
)


class Compressed(NamedTuple):
  """A compressed model.

  Attributes:
    config: what describes it, layer by layer where layers differ.
    kind: see `build.of_kind`.
    vocabulary_size, num_classes, causal: see there.
    params: parameters; those that are rounded are `QTensor`, and some may be
      two (`halves`).
    parent_sha256: digest of the parameters that it was made of.
    steps: what was done to them, in words and numbers, in order.
    activations: '' or 'dynamic', see `running.apply`.
  """

  config: ml_collections.ConfigDict
  kind: str
  vocabulary_size: int
  num_classes: int
  causal: bool
  params: Any
  parent_sha256: str
  steps: tuple[Mapping[str, Any], ...] = ()
  activations: str = ''

  @property
  def module(self) -> nn.Module:
    """The network, which takes `numbers`."""
    return build.of_kind(
      self.kind, self.config, self.vocabulary_size, self.num_classes,
      causal=self.causal,
    )  # fmt: skip

  @property
  def numbers(self) -> Any:
    """The parameters of the network as float32."""
    return halves.joined(tensors.dequantise(self.params))


def make(
  parent: Pretrained, params: Any, steps: Sequence[Mapping[str, Any]] = ()
) -> Compressed:
  """A compressed model of the same shape as its parent.

  Args:
    parent: what it was made of.
    params: its parameters, some of them as `QTensor`.
    steps: see `Compressed`.
  """
  return Compressed(
    parent.config,
    parent.kind,
    parent.vocabulary_size,
    parent.num_classes,
    parent.is_causal,
    params,
    state.digest(parent.params),
    tuple(steps),
  )


def save(model: Compressed, folder: str | pathlib.Path) -> int:
  """Writes the model; the bytes of its files.

  Raises:
    CheckpointError: it cannot be written; nothing is half-written.
  """
  contents = _files(model)
  # The manifest last: without it, or with another one, nothing is read.
  files.write(pathlib.Path(folder), contents)
  return sum(map(len, contents.values()))


def num_bytes(model: Compressed) -> int:
  """The bytes that `save` would write."""
  return sum(map(len, _files(model).values()))


def _files(model: Compressed) -> dict[str, bytes]:
  arrays, packed = _packed(model.params)
  weights = safetensors.numpy.save(arrays)
  manifest = {
    'format': FORMAT,
    'config': config_lib.to_json_dict(model.config),
    'kind': model.kind,
    'vocabulary_size': model.vocabulary_size,
    'num_classes': model.num_classes,
    'causal': model.causal,
    'tensors': packed,
    'weights_sha256': hashlib.sha256(weights).hexdigest(),
    'parent_sha256': model.parent_sha256,
    'steps': list(model.steps),
    'activations': model.activations,
    'versions': {
      'effformer': effformer.__version__,
      'jax': jax.__version__,
    },
  }
  text = (json.dumps(manifest, indent=1, sort_keys=True) + '\n').encode()
  return {WEIGHTS: weights, MANIFEST: text}


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
  _check_facts(manifest, folder / MANIFEST)
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
    manifest['activations'],
  )


def _check_facts(manifest: Mapping[str, Any], path: pathlib.Path) -> None:
  if manifest['kind'] not in build.KINDS:
    raise _damaged(
      path,
      f'it has kind={manifest["kind"]!r}; known: {", ".join(build.KINDS)}',
    )
  for name, least in (('vocabulary_size', 1), ('num_classes', 0)):
    value = manifest[name]
    if type(value) is not int or value < least:
      raise _damaged(
        path, f'it has {name}={value!r}, which is no number from {least} on'
      )
  if not isinstance(manifest['causal'], bool):
    raise _damaged(
      path, f'it has causal={manifest["causal"]!r}, which is no boolean'
    )


def _packed(params) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  arrays, packed = {}, {}
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  for path, x in flat.items():
    if not isinstance(x, QTensor):
      arrays[path] = np.ascontiguousarray(x)
      continue
    codes, grid = np.asarray(x.codes), x.grid
    if grid.keep:
      codes, places = patterns.taken(codes, grid.keep, grid.of)
      arrays[f'{path}{_PART}places'] = packing.pack(
        places, patterns.place_bits(grid.of), 0
      )
    arrays[f'{path}{_PART}codes'] = packing.pack(
      codes, grid.bits, grid.low, grid.stride
    )
    arrays[f'{path}{_PART}scale'] = np.asarray(x.scale, np.float32)
    if not x.grid.symmetric:
      arrays[f'{path}{_PART}zero'] = np.asarray(x.zero).astype(np.uint8)
    if x.inputs.size:
      arrays[f'{path}{_PART}inputs'] = np.asarray(x.inputs, np.float32)
    packed[path] = {**dataclasses.asdict(x.grid), 'shape': list(x.shape)}
  return arrays, packed


def _unpacked(arrays: dict[str, np.ndarray], packed: Mapping[str, Any]):
  flat = {path: x for path, x in arrays.items() if _PART not in path}
  for path, facts in packed.items():
    facts = dict(facts)
    shape = tuple(facts.pop('shape'))
    flat[path] = _unpacked_tensor(arrays, path, Grid(**facts), shape)
  for name in arrays:
    path = name.partition(_PART)[0]
    if path not in flat:
      raise ValueError(f'there are codes of {path}, which it does not name')
  params = flax.traverse_util.unflatten_dict(flat, sep='/')
  halves.check(params)
  return params


def _unpacked_tensor(
  arrays, path: str, grid: Grid, shape: tuple[int, ...]
) -> QTensor:
  scale = arrays[f'{path}{_PART}scale']
  matrix = tensors.matrix_shape(path, shape)
  if scale.shape != scales_shape(matrix, grid):
    raise ValueError(
      f'{path}: scales {scale.shape}, not {scales_shape(matrix, grid)}'
    )
  codes = _unpacked_codes(arrays, path, grid, matrix)
  zero = np.zeros_like(scale)
  if not grid.symmetric:
    zero = arrays[f'{path}{_PART}zero'].astype(np.float32)
  inputs = arrays.get(f'{path}{_PART}inputs', np.zeros(0, np.float32))
  if inputs.size and inputs.shape != matrix[:1]:
    raise ValueError(f'{path}: factors {inputs.shape}, not {matrix[:1]}')
  return QTensor(
    jnp.asarray(codes, tensors.code_type(grid)),
    jnp.asarray(scale),
    jnp.asarray(zero),
    grid,
    shape,
    tensors.is_table(path),
    jnp.asarray(inputs),
  )


def _unpacked_codes(
  arrays, path: str, grid: Grid, matrix: tuple[int, int]
) -> np.ndarray:
  data, stored = arrays[f'{path}{_PART}codes'], matrix
  if grid.keep:
    stored = (patterns.num_stay(matrix[0], grid.keep, grid.of), matrix[1])
  codes = packing.unpack(data, grid.bits, grid.low, stored, grid.stride)
  if not grid.keep:
    return codes
  places = packing.unpack(
    arrays[f'{path}{_PART}places'], patterns.place_bits(grid.of), 0, stored
  )
  return patterns.placed(codes, places, matrix[0], grid.keep, grid.of)


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
