"""Own pairs of sentences: both forms of files, and bad rows."""

import json

import pytest

from effformer import data
from effformer.data import rows, sentence_pairs
from effformer.errors import ConfigError, DataError

ROWS = [(f'one {n}', f'two {n}', n % 3) for n in range(90)]


def read(path):
  return list(sentence_pairs.read(path, 'train'))


@pytest.mark.parametrize(
  'header', ['sentence1\tsentence2\tlabel', 'label\tid\ttext\tother']
)
def test_columns_are_found_by_their_names(tmp_path, header):
  path = tmp_path / 'pairs.tsv'
  names = header.split('\t')
  places = {name: place for place, name in enumerate(names)}
  first = places.get('sentence1', places.get('text'))
  second = places.get('sentence2', places.get('other'))
  lines = [header]
  for one, two, label in ROWS:
    fields = ['x'] * len(names)
    fields[first], fields[second] = one, two
    fields[places['label']] = str(label)
    lines.append('\t'.join(fields))
  path.write_text('\n'.join(lines))
  assert [(r.text.decode(), r.other.decode(), r.label) for r in read(path)] == (
    ROWS
  )
  loaded = data.load('pair', train=str(path))
  assert loaded.num_classes == 3
  assert set(loaded.splits['test'][0]) == {'text', 'other', 'label', 'id'}
  assert not loaded.stand_in


def test_rows_of_json(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(
    ''.join(
      json.dumps({'text': one, 'other': two, 'label': str(label)}) + '\n'
      for one, two, label in ROWS
    )
  )
  found = [
    (r.text.decode(), r.other.decode(), int(r.label)) for r in read(path)
  ]
  assert found == ROWS


def test_bad_rows_say_why(tmp_path):
  path = tmp_path / 'pairs.tsv'
  path.write_text('sentence1\tsentence2\tlabel\na\t\t1\n\tb\t1\na\tb\t\na\tb\n')
  assert [row.reason for row in read(path)] == [
    'empty sentence2', 'empty sentence1', 'no label', '2 columns, not 3',
  ]  # fmt: skip
  assert [row.number for row in read(path)] == [2, 3, 4, 5]
  path = tmp_path / 'pairs.jsonl'
  path.write_text('{"text": "a", "label": 1}\n')
  assert [row.reason for row in read(path)] == ['no other']


def test_files_of_another_kind(tmp_path):
  path = tmp_path / 'pairs.tsv'
  path.write_text('sentence1\tlabel\nx\t1\n')
  with pytest.raises(DataError, match='sentence2 or other'):
    read(path)
  (tmp_path / 'pairs.csv').touch()
  with pytest.raises(ConfigError, match='unknown kind of file'):
    read(tmp_path / 'pairs.csv')
  assert rows.LABEL == ('label',)
