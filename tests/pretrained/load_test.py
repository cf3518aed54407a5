"""What is refused when a pretrained model is read, and in which words."""

import json
import os
import pathlib
import re
import sys
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from effformer import durable, pretrained
from effformer.errors import CheckpointError
from tests.pretrained.golden_test import folder_of, golden


@pytest.fixture
def bert(tmp_path):
  return folder_of('bert-classifier', tmp_path / 'bert')


def refusal(folder, **arguments):
  with pytest.raises(CheckpointError) as caught:
    pretrained.load(folder, **arguments)
  text = str(caught.value)
  assert len(text.splitlines()) <= 5
  assert str(folder) in text
  return text


def with_config(folder, **values):
  path = folder / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
  return folder


def with_tensors(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)
  return folder


QUERY = 'bert.encoder.layer.1.attention.self.query.weight'


def test_a_missing_folder(tmp_path):
  assert 'no folder' in refusal(tmp_path / 'none')


@pytest.mark.parametrize('text', ['{"model_type": ', '[1]', '\xff'])
def test_a_damaged_config(bert, text):
  (bert / 'config.json').write_bytes(text.encode('latin-1'))
  assert 'config.json' in refusal(bert)


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'model_type': 'mamba'}, "model_type='mamba'"),
    ({'model_type': None}, 'model_type=None'),
    ({'architectures': ['BertForNothing']}, 'BertForNothing'),
    ({'architectures': 'x'}, 'architectures'),
    ({'num_hidden_layers': 'two'}, "num_hidden_layers='two'"),
    ({'num_attention_heads': 0}, 'num_attention_heads=0'),
    ({'hidden_act': 'silu'}, "hidden_act='silu'"),
    ({'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
    ({'is_decoder': True}, 'is_decoder=True'),
    ({'vocab_size': 30}, 'word_embeddings'),
    ({'num_hidden_layers': 1}, r'encoder\.layer\.1'),
    ({'num_hidden_layers': 3}, r'encoder\.layer\.2\..* is missing'),
    ({'intermediate_size': 11}, 'intermediate'),
  ],
  ids=lambda value: None if isinstance(value, str) else '-'.join(value),
)
def test_a_config_that_does_not_fit(bert, values, words):
  assert re.search(words, refusal(with_config(bert, **values)))


def test_unknown_kinds(bert, tmp_path):
  assert 'no translator' in refusal(bert, kind='translator')
  gpt2 = folder_of('gpt2-predictor', tmp_path / 'gpt2')
  assert 'no classifier' in refusal(gpt2, kind='classifier')


def test_a_file_that_is_cut_off(bert):
  path = bert / 'model.safetensors'
  content = path.read_bytes()
  for size in (0, 7, 100, len(content) - 1):
    path.write_bytes(content[:size])
    assert 'damaged' in refusal(bert)
  path.write_bytes(content + b'1')
  assert 'damaged' in refusal(bert)


@pytest.mark.parametrize('claimed', [1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_more_than_there_is(bert, claimed):
  path = bert / 'model.safetensors'
  content = path.read_bytes()
  path.write_bytes(claimed.to_bytes(8, 'little') + content[8:])
  assert 'damaged' in refusal(bert)
  facts = {
    'dtype': 'F32',
    'shape': [claimed // 4],
    'data_offsets': [0, claimed],
  }
  header = json.dumps({QUERY: facts}).encode()
  path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(64))
  assert 'damaged' in refusal(bert)


def test_files_that_are_too_large_are_not_read(bert, monkeypatch):
  def read_bytes(path):
    raise AssertionError(path)

  monkeypatch.setattr(pathlib.Path, 'read_bytes', read_bytes)
  # Of no room on the disk.
  os.truncate(bert / 'config.json', durable.MAX_JSON_BYTES + 1)
  text = refusal(bert)
  assert 'config.json has 67,108,865 bytes' in text
  assert '67,108,864' in text


def test_a_folder_without_a_config(bert):
  (bert / 'config.json').unlink()
  assert refusal(bert).startswith(f'no such file: {bert / "config.json"}\n')


def test_missing_and_pickled_weights(bert):
  (bert / 'model.safetensors').unlink()
  assert 'neither' in refusal(bert)
  (bert / 'pytorch_model.bin').write_bytes(b'\x80\x04.')
  assert 'pickle' in refusal(bert)


def test_tensors_that_do_not_fit(bert):
  with_tensors(bert, lambda tensors: tensors.pop(QUERY))
  assert f'{QUERY} is missing' in refusal(bert)


def test_a_tensor_of_another_shape(bert):
  with_tensors(bert, lambda tensors: tensors.update({QUERY: np.ones((12, 11))}))
  text = refusal(bert)
  assert QUERY in text
  assert '(12, 11)' in text
  assert '(12, 12)' in text


def test_an_unknown_tensor(bert):
  with_tensors(bert, lambda tensors: tensors.update({'adapter.a': np.ones(3)}))
  assert 'adapter.a' in refusal(bert)


def test_an_output_that_is_not_tied(tmp_path):
  folder = folder_of('bert-predictor', tmp_path / 'bert')
  name = 'cls.predictions.decoder.weight'
  table = 'bert.embeddings.word_embeddings.weight'

  with_tensors(folder, lambda x: x.update({name: x[table].copy()}))
  assert pretrained.load(folder).copies == (name,)
  with_tensors(folder, lambda x: x.update({name: x[table] + 1}))
  assert f'{name} is another one' in refusal(folder)


@pytest.mark.parametrize(
  ('name', 'prefix', 'copy', 'table'),
  [
    ('gpt2-predictor', 'transformer.', 'lm_head.weight', 'wte.weight'),
    (
      'distilbert-predictor',
      'distilbert.',
      'vocab_projector.weight',
      'embeddings.word_embeddings.weight',
    ),
  ],
)
def test_a_copy_of_a_tensor_without_the_prefix(
  tmp_path, name, prefix, copy, table
):
  folder = folder_of(name, tmp_path / 'model')
  exact = pretrained.load(folder).params

  def rename(tensors):
    for name in [x for x in tensors if x.startswith(prefix)]:
      tensors[name.removeprefix(prefix)] = tensors.pop(name)
    tensors[copy] = tensors[table].copy()

  model = pretrained.load(with_tensors(folder, rename))
  assert model.copies == (copy,)
  jax.tree.map(np.testing.assert_array_equal, model.params, exact)
  pretrained.save(model, tmp_path / 'new')
  written = safetensors.numpy.load_file(tmp_path / 'new/model.safetensors')
  np.testing.assert_array_equal(written[copy], written[table])
  with_tensors(folder, lambda x: x.update({copy: x[table] + 1}))
  assert f'{copy} is another one than {table};' in refusal(folder)
  with_tensors(folder, lambda x: x.pop(table))
  assert f'tensor {table} is missing' in refusal(folder)


def test_parts_of_weights(bert):
  path = bert / 'model.safetensors'
  whole = pretrained.load(bert)
  tensors = safetensors.numpy.load_file(path)
  path.unlink()
  names = sorted(tensors)
  places = {}
  for number, own in enumerate((names[:9], names[9:])):
    file = f'model-{number}.safetensors'
    safetensors.numpy.save_file({x: tensors[x] for x in own}, bert / file)
    places |= dict.fromkeys(own, file)
  index = bert / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': places}))
  again = pretrained.load(bert)
  kernels = [
    x.params['encoder']['layer_1']['mlp']['in']['kernel']
    for x in (whole, again)
  ]
  np.testing.assert_array_equal(*kernels)
  for bad in ('../model-0.safetensors', '/etc/passwd', 'x.bin'):
    index.write_text(json.dumps({'weight_map': {**places, QUERY: bad}}))
    assert f'{bad!r}, which is no .safetensors file' in refusal(bert)
  index.write_text(json.dumps({'weight_map': {**places, 'more': file}}))
  assert 'promises more' in refusal(bert)
  index.write_text(json.dumps({'weight_map': places}))
  (bert / file).unlink()
  assert refusal(bert).startswith(f'no such file: {bert / file}\n')


def test_half_precision_is_read_as_float32(bert):
  exact = pretrained.load(bert).params['positions']
  for dtype, bits in ((np.float16, 10), (ml_dtypes.bfloat16, 7)):
    path = bert / 'model.safetensors'
    _, tensors, _ = golden('bert-classifier')
    rounded = {name: x.astype(dtype) for name, x in tensors.items()}
    path.write_bytes(safetensors.numpy.save(rounded))
    params = pretrained.load(bert).params
    assert params['positions'].dtype == np.float32
    np.testing.assert_allclose(params['positions'], exact, rtol=2.0**-bits)
    assert np.any(params['positions'] != exact)


def test_old_names_of_norms(bert):
  exact = pretrained.load(bert).params['norm_in']

  def rename(tensors):
    for old, new in (('.weight', '.gamma'), ('.bias', '.beta')):
      name = f'bert.embeddings.LayerNorm{old}'
      tensors[name.replace(old, new)] = tensors.pop(name)

  params = pretrained.load(with_tensors(bert, rename)).params['norm_in']
  np.testing.assert_array_equal(params['scale'], exact['scale'])
  np.testing.assert_array_equal(params['bias'], exact['bias'])


def test_places(tmp_path, monkeypatch):
  assert pretrained.find(str(tmp_path)) == tmp_path
  for name, words in (
    (str(tmp_path / 'none'), 'no folder'),
    ('package:no-such-package', 'pip install --no-deps no-such-package'),
    ('package:../x', 'is not installed'),
    ('package:numpy', 'carries no'),
  ):
    with pytest.raises(CheckpointError, match=words):
      pretrained.find(name)
  package = tmp_path / 'carries_a_model'
  folder_of('bert-embedder', tmp_path / 'bert')
  package.mkdir()
  (tmp_path / 'bert').rename(package / 'weights')
  (package / '__init__.py').write_text('raise RuntimeError("imported")')
  monkeypatch.syspath_prepend(tmp_path)
  assert pretrained.find('package:carries-a-model') == package / 'weights'


def test_the_hub_is_asked_for_what_is_read(tmp_path, monkeypatch):
  asked = []

  def snapshot_download(name, allow_patterns):
    asked.append((name, allow_patterns))
    if name == 'owner/absent':
      raise OSError('404 Client Error\nfor url')
    return str(tmp_path)

  hub = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  assert pretrained.find('hub:owner/model') == tmp_path
  assert asked == [('owner/model', ('*.json', '*.safetensors'))]
  with pytest.raises(CheckpointError) as caught:
    pretrained.find('hub:owner/absent')
  assert str(caught.value).startswith(
    'hub:owner/absent cannot be fetched: 404 Client Error\n'
  )


def test_without_its_package_the_hub_is_not_asked(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(CheckpointError, match=r"pip install 'effformer\[hub\]'"):
    pretrained.find('hub:owner/model')
