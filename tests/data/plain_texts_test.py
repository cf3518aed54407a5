"""Own texts without labels: for models that guess tokens."""

import gzip
import json

import pytest

from effformer.data import catalogue, rows
from effformer.data.dataset import read_all
from effformer.errors import ConfigError, DataError


def texts_of(path):
  return [row.text for row in rows.of_plain_texts(path, 'train')]


@pytest.mark.parametrize('suffix', ['.txt', '.txt.gz'])
def test_a_plain_file_is_cut_and_nothing_is_lost(tmp_path, monkeypatch, suffix):
  monkeypatch.setattr(rows, 'PLAIN_BYTES', 4)
  text = b'\xff any\nbytes\r\n'
  path = tmp_path / f'x{suffix}'
  path.write_bytes(gzip.compress(text) if suffix.endswith('gz') else text)
  pieces = texts_of(path)
  assert [len(piece) for piece in pieces] == [4, 4, 4, 1]
  assert b''.join(pieces) == text


def test_labels_are_not_needed_and_count_for_nothing(tmp_path):
  jsonl, tsv = tmp_path / 'x.jsonl', tmp_path / 'x.tsv'
  jsonl.write_text('{"text": "a"}\n{"text": "b", "label": "z"}\n{}\n')
  tsv.write_text('id\ttext\n1\ta\n2\tb\n3\n')
  for path in (jsonl, tsv):
    found = list(rows.of_plain_texts(path, 'train'))
    assert [row.text for row in found] == [b'a', b'b', b'']
    assert [int(row.label) for row in found] == [0, 0, 0]
    assert [bool(row.reason) for row in found] == [False, False, True]


def test_with_labels_they_are_still_needed(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"text": "a"}\n')
  assert next(rows.of_texts(path, 'train')).reason == 'no label'


def test_kinds_are_named(tmp_path):
  for name in ('x.txt', 'x.pdf', 'x'):
    with pytest.raises(DataError, match='no such file'):
      texts_of(tmp_path / name)
    (tmp_path / name).touch()
  for name in ('x.pdf', 'x'):
    with pytest.raises(ConfigError, match=r'\.jsonl, \.tsv, \.txt'):
      texts_of(tmp_path / name)
  with pytest.raises(ConfigError, match=r'\.jsonl, \.tsv, or'):
    next(rows.of_texts(tmp_path / 'x.txt', 'train'))


def test_a_data_set_of_one_class(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, 'PLAIN_BYTES', 3)
  path = tmp_path / 'x.txt'
  path.write_text(json.dumps(list(range(200))))
  dataset = catalogue.load('language', train=str(path))
  assert (dataset.num_classes, dataset.classes) == (1, ('0',))
  parts = [
    {e['text'] for e in read_all(dataset.splits[split])}
    for split in ('train', 'validation', 'test')
  ]
  assert all(parts)
  assert not parts[0] & parts[1]
