"""Pretrained models against the public implementation.

The files hold tiny random models as it wrote them, padded inputs, and what came
out (tests/golden/oracles/pretrained.py).
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from effformer import pretrained

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / 'golden/pretrained'
FILES = sorted(path.stem for path in GOLDEN.glob('*.npz'))


@functools.cache
def golden(name):
  with np.load(GOLDEN / f'{name}.npz') as arrays:
    arrays = dict(arrays)
  tensors = {
    key.removeprefix('tensor/'): arrays.pop(key)
    for key in list(arrays)
    if key.startswith('tensor/')
  }
  return json.loads(str(arrays.pop('about')))['settings'], tensors, arrays


def folder_of(name, path):
  """A folder as the public implementation wrote it."""
  config, tensors, _ = golden(name)
  path.mkdir(exist_ok=True)
  safetensors.numpy.save_file(tensors, path / 'model.safetensors')
  (path / 'config.json').write_text(json.dumps(config))
  return path


def outputs(model, arrays):
  more = {'types_BT': arrays['types']} if 'types' in arrays else {}
  method = 'vectors' if model.kind == 'embedder' else None

  @jax.jit
  def apply(params, ids_BT, lengths_B):
    return model.module.apply(
      {'params': params}, ids_BT, lengths_B, method=method, **more
    )

  y = np.asarray(apply(model.params, arrays['ids'], arrays['lengths']))
  if y.ndim == 3:
    keep_BT = np.arange(y.shape[1]) < arrays['lengths'][:, None]
    y = np.where(keep_BT[..., None], y, 0)
  return y


@pytest.mark.parametrize('name', FILES)
def test_outputs_are_those_of_the_public_implementation(name, tmp_path):
  model = pretrained.load(folder_of(name, tmp_path))
  assert model.kind == name.partition('-')[2]
  _, _, arrays = golden(name)
  y = outputs(model, arrays)
  assert y.shape == arrays['y'].shape
  np.testing.assert_allclose(y, arrays['y'], atol=1e-4, rtol=0)
  # What stands behind a row is not read.
  if 'vit' not in name:
    keep_BT = np.arange(arrays['ids'].shape[1]) < arrays['lengths'][:, None]
    other = {**arrays, 'ids': np.where(keep_BT, arrays['ids'], 7)}
    np.testing.assert_allclose(outputs(model, other), y, atol=1e-6)


@pytest.mark.parametrize('name', FILES)
def test_what_is_written_again_is_the_same(name, tmp_path):
  config, tensors, _ = golden(name)
  model = pretrained.load(folder_of(name, tmp_path / 'theirs'))
  pretrained.save(model, tmp_path / 'ours')
  written = safetensors.numpy.load_file(tmp_path / 'ours/model.safetensors')
  assert sorted(written) == sorted(tensors)
  for key, x in tensors.items():
    np.testing.assert_array_equal(written[key], x, err_msg=key)
  assert json.loads((tmp_path / 'ours/config.json').read_text()) == config


@pytest.mark.parametrize('name', FILES)
def test_what_is_written_holds_the_parameters(name, tmp_path):
  """Not only what was kept of the file that was read."""
  model = pretrained.load(folder_of(name, tmp_path / 'theirs'))
  changed = model._replace(params=jax.tree.map(lambda x: x + 1, model.params))
  pretrained.save(changed, tmp_path / 'ours')
  again = pretrained.load(tmp_path / 'ours')
  jax.tree.map(np.testing.assert_array_equal, again.params, changed.params)
