"""Pretrained models written again: what differs, and what cannot be written."""

import errno
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from effformer import config as config_lib
from effformer import durable, pretrained
from effformer.errors import CheckpointError, ConfigError
from tests.pretrained.golden_test import folder_of
from tests.pretrained.load_test import refusal, with_tensors


@pytest.fixture
def bert(tmp_path):
  return folder_of('bert-classifier', tmp_path / 'bert')


def saved(folder, new):
  pretrained.save(pretrained.load(folder), new)
  return safetensors.numpy.load_file(new / 'model.safetensors')


def test_what_is_written_otherwise_than_it_was(tmp_path):
  """All that is not so is said by `save`."""
  folder = folder_of('roberta-predictor', tmp_path / 'model')
  exact = saved(folder, tmp_path / 'first')
  norm = 'roberta.embeddings.LayerNorm'
  table = 'roberta.embeddings.position_embeddings.weight'
  copy, spare = 'lm_head.decoder.weight', 'lm_head.more'

  def change(tensors):
    tensors[table][:2] = 3
    tensors[copy] = tensors['roberta.embeddings.word_embeddings.weight']
    tensors[spare] = np.arange(5)
    for name in tensors:
      tensors[name] = tensors[name].astype(np.float16)
    for old, new in (('.weight', '.gamma'), ('.bias', '.beta')):
      tensors[norm + new] = tensors.pop(norm + old)

  stored = safetensors.numpy.load_file(
    with_tensors(folder, change) / 'model.safetensors'
  )
  written = saved(folder, tmp_path / 'second')
  assert set(written) == {*exact, copy, spare}
  for name, x in written.items():
    assert x.dtype == (np.float16 if name == spare else np.float32), name
    if name.startswith(norm):
      old = name.replace('.weight', '.gamma').replace('.bias', '.beta')
      np.testing.assert_array_equal(x, stored[old])
    elif name == table:
      assert stored[name][:2].all()
      assert not x[:2].any()
      np.testing.assert_array_equal(x[2:], stored[name][2:])
    else:
      np.testing.assert_array_equal(x, stored[name], err_msg=name)


def test_a_folder_that_cannot_be_written(bert, tmp_path):
  model = pretrained.load(bert)
  file = tmp_path / 'file'
  file.write_text('')
  full = tmp_path / 'full'
  (full / 'model.safetensors').mkdir(parents=True)
  for folder in (file, file / 'new', full):
    with pytest.raises(CheckpointError, match='cannot write the model to') as e:
      pretrained.save(model, folder)
    assert str(folder) in str(e.value)
  assert file.read_text() == ''
  assert [path.name for path in full.iterdir()] == ['model.safetensors']


def test_a_full_disk_leaves_what_was_there(bert, tmp_path, monkeypatch):
  new = tmp_path / 'new'
  pretrained.save(pretrained.load(bert), new)
  before = {path.name: path.read_bytes() for path in new.iterdir()}
  other = pretrained.load(bert)
  other = other._replace(params=jax.tree.map(lambda x: x + 1, other.params))

  def fsync(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', fsync)
  for folder in (new, tmp_path / 'newer'):
    with pytest.raises(CheckpointError, match='No space left'):
      pretrained.save(other, folder)
  assert {path.name: path.read_bytes() for path in new.iterdir()} == before
  assert list((tmp_path / 'newer').iterdir()) == []


def test_a_write_that_ends_between_the_files_is_seen(
  bert, tmp_path, monkeypatch
):
  model, put, new = pretrained.load(bert), durable.put, tmp_path / 'new'

  def once(path, data):
    put(path, data)
    raise KeyboardInterrupt

  monkeypatch.setattr(durable, 'put', once)
  with pytest.raises(KeyboardInterrupt):
    pretrained.save(model, new)
  assert [path.name for path in new.iterdir()] == ['model.safetensors']
  assert 'no such file' in refusal(new)


def test_a_changed_architecture_has_no_place_in_their_form(bert, tmp_path):
  model = pretrained.load(bert)
  other = model._replace(
    config=config_lib.changed(model.config, {'model.mlp_width': 5})
  )
  with pytest.raises(ConfigError, match=r'model\.mlp_width'):
    pretrained.save(other, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()
