"""Own pairs of sentences: both forms of files, and bad rows."""

import json

import pytest

from effformer import data
from effformer.data import catalogue, rows, sentence_pairs
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


def read_scored(path):
  return list(sentence_pairs.read_scored(path, 'train'))


def test_scores_are_kept_in_thousandths(tmp_path):
  scores = ('0', '5', '5.000', '2.333', '3.8', '1e-1', '0.0006')
  kept = [0, 5000, 5000, 2333, 3800, 100, 1]
  path = tmp_path / 'pairs.tsv'
  lines = [f'x\t{s}\ta {n}\t"b {n}' for n, s in enumerate(scores)]
  path.write_text('\n'.join(['id\tscore\tsentence1\tsentence2', *lines]))
  found = read_scored(path)
  assert [row.label for row in found] == kept
  assert (found[3].text, found[3].other) == (b'a 3', b'"b 3')
  path = tmp_path / 'pairs.jsonl'
  path.write_text(
    ''.join(
      f'{{"text": "a", "other": "b", "score": {score}}}\n' for score in scores
    )
  )
  assert [row.label for row in read_scored(path)] == kept


@pytest.mark.parametrize(
  ('score', 'reason'),
  [
    ('', 'no score'),
    ('good', "score 'good' is not a number"),
    ('nan', 'score nan is not from 0 to 5'),
    ('inf', 'score inf is not from 0 to 5'),
    ('5.001', 'score 5.001 is not from 0 to 5'),
    ('-0.2', 'score -0.2 is not from 0 to 5'),
  ],
)
def test_what_is_no_score_is_a_bad_row(tmp_path, score, reason):
  path = tmp_path / 'pairs.tsv'
  lines = [f'a {n}\tb\t{n % 6}' for n in range(30)]
  lines.insert(2, f'a\tb\t{score}')
  path.write_text('\n'.join(['sentence1\tsentence2\tscore', *lines]))
  assert [r.reason for r in read_scored(path) if r.reason] == [reason]
  with pytest.raises(DataError, match=rf'bad row .*pairs\.tsv:4: {reason}'):
    data.load('similarity', train=str(path))
  faults = list(
    catalogue.own_faults(
      'similarity', {'train': str(path), 'validation': '', 'test': ''}
    )
  )
  assert faults == [f'{path}:4: {reason}']
  loaded = data.load('similarity', train=str(path), max_bad_fraction=0.1)
  assert reason in loaded.notes[0]


@pytest.mark.parametrize(
  ('fields', 'reason'),
  [
    ('', 'no score'),
    (', "label": 1', 'no score'),
    (', "score": null', 'no score'),
    (', "score": true', "score 'True' is not a number"),
    (', "score": [1]', "score '[1]' is not a number"),
    (', "score": 1' + '0' * 400, f"score '1{'0' * 39}' is not a number"),
    (', "score": NaN', 'score nan is not from 0 to 5'),
  ],
)
def test_what_is_no_score_in_json(tmp_path, fields, reason):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(f'{{"text": "a", "other": "b"{fields}}}\n')
  assert [row.reason for row in read_scored(path)] == [reason]


def test_scores_are_no_classes(tmp_path):
  """Those of test need not be in train, and one is enough."""
  paths = {}
  for split, label in (('train', 2.5), ('validation', 0.125), ('test', 4)):
    path = tmp_path / f'{split}.tsv'
    path.write_text(f'sentence1\tsentence2\tscore\na\tb\t{label}\n')
    paths[split] = str(path)
  loaded = data.load('similarity', **paths)
  assert loaded.num_classes == 1
  assert [loaded.splits[s][0]['label'] for s in paths] == [2500, 125, 4000]
  assert list(catalogue.own_faults('similarity', paths)) == []


def test_a_file_without_scores(tmp_path):
  path = tmp_path / 'pairs.tsv'
  path.write_text('sentence1\tsentence2\tlabel\na\tb\t1\n')
  with pytest.raises(DataError, match='other and score'):
    read_scored(path)


def test_files_of_another_kind(tmp_path):
  path = tmp_path / 'pairs.tsv'
  path.write_text('sentence1\tlabel\nx\t1\n')
  with pytest.raises(DataError, match='sentence2 or other'):
    read(path)
  (tmp_path / 'pairs.csv').touch()
  with pytest.raises(ConfigError, match='unknown kind of file'):
    read(tmp_path / 'pairs.csv')
  assert rows.LABEL == ('label',)
