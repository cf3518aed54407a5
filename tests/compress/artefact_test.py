"""A compressed model as files: bytes, and what is refused."""

import errno
import hashlib
import json
import os

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from effformer import durable, pretrained
from effformer.compress import artefact, tensors
from effformer.compress.grid import Grid
from effformer.errors import CheckpointError
from effformer.train import state
from tests import slow
from tests.pretrained.golden_test import folder_of, golden, outputs

GRIDS = (
  Grid(8), Grid(3, 'tile', 5), Grid(4, 'tensor', symmetric=False),
  Grid(2, rule='ternary'), Grid(1, 'tile', 5, rule='sign'),
  Grid(3, rule='kmeans'), Grid(8, 'tensor', rule='kmeans'),
  Grid(3, 'tile', 5, rule='clip', keep=2, of=5), Grid(8, keep=1, of=5),
)  # fmt: skip


def compressed(path, grid, layers=None):
  model = pretrained.load(folder_of('bert-classifier', path))
  if layers:
    model = pretrained.swap(
      model, 'local', layers, settings={'window': 2}
    ).model
  plan = tensors.uniform_plan(model.params, grid)
  return artefact.make(
    model,
    tensors.quantise(model.params, plan),
    [{'quantise': 'all', 'bits': grid.bits}],
  )


def with_factors(path, grid):
  """Of three kernels, those of the others are 1."""
  model = pretrained.load(folder_of('bert-classifier', path))
  plan = tensors.uniform_plan(model.params, grid)
  rng = np.random.default_rng(0)
  factors = {
    f'encoder/layer_1/{name}/kernel': rng.uniform(0.5, 2, width).astype('f4')
    for name, width in (('mixer/query', 12), ('mixer/out', 12), ('mlp/in', 12))
  }
  return artefact.make(
    model, tensors.quantise(model.params, plan, factors=factors)
  )


def logits(model):
  arrays = golden('bert-classifier')[2]
  return outputs(model._replace(params=model.numbers), arrays)


@pytest.mark.parametrize('grid', slow.after(2, GRIDS), ids=str)
def test_reading_gives_the_same_bits(grid, tmp_path):
  model = compressed(tmp_path / 'bert', grid, layers=(1,))
  size = artefact.save(model, tmp_path / 'small')
  again = artefact.load(tmp_path / 'small')
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
  assert again.config.to_dict() == model.config.to_dict()
  assert again._replace(params=0, config=0) == model._replace(
    params=0, config=0
  )
  np.testing.assert_array_equal(logits(again), logits(model))
  stored = sum(x.stat().st_size for x in (tmp_path / 'small').iterdir())
  assert size == stored


@pytest.mark.parametrize('grid', slow.after(2, GRIDS), ids=str)
def test_factors_are_read_again(grid, tmp_path):
  model = with_factors(tmp_path / 'bert', grid)
  artefact.save(model, tmp_path / 'small')
  again = artefact.load(tmp_path / 'small')
  kernel = again.params['encoder']['layer_1']['mixer']['query']['kernel']
  assert kernel.inputs.shape == (12,)
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  np.testing.assert_array_equal(logits(again), logits(model))


def test_factors_of_another_matrix_are_refused(tmp_path):
  model = with_factors(tmp_path / 'bert', Grid(8))
  kernel = model.params['encoder']['layer_1']['mixer']['query']['kernel']
  model.params['encoder']['layer_1']['mixer']['query']['kernel'] = (
    kernel.replace(inputs=kernel.inputs[1:])
  )
  artefact.save(model, tmp_path / 'small')
  assert 'mixer/query/kernel: factors (11,)' in refusal(tmp_path / 'small')


def test_fewer_bits_are_fewer_bytes(tmp_path):
  sizes = []
  for bits in (8, 4, 2):
    model = compressed(tmp_path / 'bert', Grid(bits))
    artefact.save(model, tmp_path / str(bits))
    sizes.append((tmp_path / str(bits) / artefact.WEIGHTS).stat().st_size)
  packed = [
    sum(
      x.packed_bytes
      for x in jax.tree.leaves(
        compressed(tmp_path / 'bert', Grid(bits)).params,
        is_leaf=lambda x: isinstance(x, tensors.QTensor),
      )
      if isinstance(x, tensors.QTensor)
    )
    for bits in (8, 4, 2)
  ]
  # All else is the same.
  assert abs((sizes[0] - sizes[1]) - (packed[0] - packed[1])) < 64
  assert abs((sizes[1] - sizes[2]) - (packed[1] - packed[2])) < 64


def test_a_sign_is_one_bit(tmp_path):
  model = compressed(tmp_path / 'bert', Grid(1, rule='sign'))
  artefact.save(model, tmp_path / 'small')
  stored = safetensors.numpy.load_file(tmp_path / 'small' / artefact.WEIGHTS)
  for path, x in flax.traverse_util.flatten_dict(model.params, sep='/').items():
    if isinstance(x, tensors.QTensor):
      assert set(np.unique(x.codes)) == {-1, 1}
      assert stored[f'{path}#codes'].nbytes == -(-x.codes.size // 8)


def test_of_a_pattern_codes_and_places_are_stored(tmp_path):
  # 12 inputs have two whole groups, and one of 2 of which both stay.
  model = compressed(tmp_path / 'bert', Grid(4, keep=3, of=5))
  artefact.save(model, tmp_path / 'small')
  stored = safetensors.numpy.load_file(tmp_path / 'small' / artefact.WEIGHTS)
  again = artefact.load(tmp_path / 'small')
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  flat = flax.traverse_util.flatten_dict(again.params, sep='/')
  paths = [path for path, x in flat.items() if isinstance(x, tensors.QTensor)]
  for path in paths:
    x = flat[path]
    inputs, outputs = x.codes.shape
    kept = sum(min(3, inputs - start) for start in range(0, inputs, 5))
    assert stored[f'{path}#codes'].nbytes == -(-kept * outputs * 4 // 8)
    assert stored[f'{path}#places'].nbytes == -(-kept * outputs * 3 // 8)
    own = [
      array for name, array in stored.items() if name.startswith(f'{path}#')
    ]
    assert x.packed_bytes == sum(array.nbytes for array in own)
    number = np.count_nonzero(x.codes)
    assert 0.7 * kept * outputs < number <= kept * outputs
    for start in range(0, inputs, 5):
      assert np.count_nonzero(x.codes[start : start + 5], axis=0).max() <= 3
  assert {flat[path].codes.shape[0] for path in paths} >= {12}


def rewritten(folder, change):
  """The same model with other arrays, under their hash."""
  arrays = safetensors.numpy.load_file(folder / artefact.WEIGHTS)
  facts = json.loads((folder / artefact.MANIFEST).read_text())
  change(arrays)
  data = safetensors.numpy.save(arrays)
  facts['weights_sha256'] = hashlib.sha256(data).hexdigest()
  (folder / artefact.WEIGHTS).write_bytes(data)
  (folder / artefact.MANIFEST).write_text(json.dumps(facts))


def test_places_that_are_none_are_refused(tmp_path):
  model = compressed(tmp_path / 'bert', Grid(4, keep=3, of=5))
  path = 'encoder/layer_1/mlp/in/kernel'

  def cut(arrays):
    arrays[f'{path}#places'] = arrays[f'{path}#places'][:-1]

  def fill(arrays):
    arrays[f'{path}#places'][:] = 255

  for change, words in (
    (lambda arrays: arrays.pop(f'{path}#places'), f'{path}#places'),
    (lambda arrays: arrays.pop(f'{path}#codes'), f'{path}#codes'),
    (cut, 'codes of 3 bits are'),
    (fill, 'the places of 3 of 5 codes are not in their groups'),
  ):
    artefact.save(model, tmp_path / 'small')
    rewritten(tmp_path / 'small', change)
    assert words in refusal(tmp_path / 'small')


def test_files_from_before_there_were_patterns_are_read(tmp_path):
  model = compressed(tmp_path / 'bert', Grid(4))
  artefact.save(model, tmp_path / 'small')
  place = tmp_path / 'small' / artefact.MANIFEST
  facts = json.loads(place.read_text())
  for own in facts['tensors'].values():
    assert own.pop('keep') == own.pop('of') == 0
  place.write_text(json.dumps(facts))
  again = artefact.load(tmp_path / 'small')
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_the_parent_is_known_by_its_digest(tmp_path):
  model = pretrained.load(folder_of('bert-classifier', tmp_path))
  other = pretrained.load(folder_of('bert-embedder', tmp_path))
  known = [
    artefact.make(parent, parent.params).parent_sha256
    for parent in (model, model, other)
  ]
  assert known[0] == known[1] == state.digest(model.params) != known[2]


def refusal(folder):
  with pytest.raises(CheckpointError) as caught:
    artefact.load(folder)
  assert len(str(caught.value).splitlines()) <= 5
  return str(caught.value)


def test_what_cannot_be_read(tmp_path):
  folder = tmp_path / 'small'
  assert 'no compressed model' in refusal(folder)
  artefact.save(compressed(tmp_path / 'bert', Grid(8)), folder)
  weights, manifest = folder / artefact.WEIGHTS, folder / artefact.MANIFEST
  content, text = weights.read_bytes(), manifest.read_text()
  weights.write_bytes(content[:-1])
  assert 'cut off or damaged' in refusal(folder)
  weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  assert 'not the file that manifest.json names' in refusal(folder)
  weights.write_bytes(content)
  facts = json.loads(text)
  path = next(iter(facts['tensors']))
  for wrong, words in (
    ({'format': 'other'}, "format='other'"),
    ({'tensors': {**facts['tensors'], 'more/kernel': facts['tensors'][path]}},
     'more/kernel'),
    ({'tensors': {path: {**facts['tensors'][path], 'bits': 9}}}, 'bits'),
    ({'tensors': {path: {**facts['tensors'][path], 'bits': 4}}}, 'codes of 4'),
    ({'tensors': {path: {**facts['tensors'][path], 'group': 'tensor'}}},
     'scales'),
    ({'config': {}}, 'mixer'),
    ({'kind': 'translator'}, "kind='translator'; known: embedder, classifier"),
    ({'kind': ['classifier']}, "kind=['classifier']"),
    ({'vocabulary_size': '31'}, "vocabulary_size='31'"),
    ({'vocabulary_size': 0}, 'vocabulary_size=0'),
    ({'num_classes': -1}, 'num_classes=-1'),
    ({'causal': 0}, 'causal=0'),
  ):  # fmt: skip
    manifest.write_text(json.dumps({**facts, **wrong}))
    assert words in refusal(folder)
  facts.pop('kind')
  manifest.write_text(json.dumps(facts))
  assert 'lacks kind' in refusal(folder)
  manifest.write_text(text)
  weights.unlink()
  assert refusal(folder).startswith(f'no such file: {weights}\n')
  os.truncate(manifest, durable.MAX_JSON_BYTES + 1)
  assert 'manifest.json has 67,108,865 bytes' in refusal(folder)


def test_every_kind_is_read(tmp_path):
  model = compressed(tmp_path / 'bert', Grid(8))
  for kind in ('embedder', 'classifier', 'pair_classifier', 'predictor'):
    artefact.save(model._replace(kind=kind), tmp_path / 'small')
    again = artefact.load(tmp_path / 'small')
    assert again.kind == kind
    assert again.module


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  model = compressed(tmp_path / 'bert', Grid(8))
  file, full, new = (tmp_path / name for name in ('file', 'full', 'new'))
  file.write_text('')
  (full / artefact.WEIGHTS).mkdir(parents=True)
  for folder in (file, file / 'new', full):
    with pytest.raises(CheckpointError, match='cannot write the model to'):
      artefact.save(model, folder)
  assert [path.name for path in full.iterdir()] == [artefact.WEIGHTS]

  def fsync(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', fsync)
  with pytest.raises(CheckpointError, match='No space left'):
    artefact.save(model, new)
  assert list(new.iterdir()) == []


def test_a_write_that_ends_between_the_files_is_refused(tmp_path, monkeypatch):
  first = compressed(tmp_path / 'bert', Grid(8))
  second = compressed(tmp_path / 'bert', Grid(4))
  new, old = tmp_path / 'new', tmp_path / 'old'
  artefact.save(first, old)
  put = durable.put

  def once(path, data):
    put(path, data)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(durable, 'put', once)
    for folder in (new, old):
      with pytest.raises(KeyboardInterrupt):
        artefact.save(second, folder)
  assert [path.name for path in new.iterdir()] == [artefact.WEIGHTS]
  assert 'no compressed model' in refusal(new)
  assert 'not the file that manifest.json names' in refusal(old)
  # The same command again puts it right.
  artefact.save(second, old)
  again = artefact.load(old)
  jax.tree.map(np.testing.assert_array_equal, again.params, second.params)
