"""Files that are whole: what is left when a write fails, what is no JSON."""

import errno
import os

import pytest

from effformer import durable
from effformer.errors import CheckpointError


def test_new_content_takes_the_place_of_old(tmp_path):
  path = tmp_path / 'facts.json'
  for data in (b'{"a": 1}', b'{}'):
    durable.put(path, data)
    assert path.read_bytes() == data
  assert [x.name for x in tmp_path.iterdir()] == ['facts.json']


@pytest.mark.parametrize('name', ['fsync', 'rename'])
def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch, name):
  path = tmp_path / 'facts.json'
  path.write_bytes(b'old')

  def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, name, full)
  with pytest.raises(OSError, match='No space left'):
    durable.put(path, b'new')
  with pytest.raises(CheckpointError, match=r'cannot write .*facts\.json: No '):
    durable.replace(path, b'new')
  assert path.read_bytes() == b'old'
  assert [x.name for x in tmp_path.iterdir()] == ['facts.json']


@pytest.mark.parametrize('text', ['{"a"', '[1]', '[' * 100_000, '\xff'])
def test_what_is_no_json_object_is_refused(tmp_path, text):
  path = tmp_path / 'facts.json'
  assert durable.read_json(path) is None
  path.write_bytes(text.encode('latin-1'))
  with pytest.raises(CheckpointError, match=r'facts\.json cannot be read'):
    durable.read_json(path)
