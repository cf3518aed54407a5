"""Own files: reading, labels, carving, and rows that are not right."""

import gzip
import json
import pathlib
import random

import pytest

from effformer.data import files, rows
from effformer.data.dataset import bucket
from effformer.errors import ConfigError, DataError

GOOD = [
  {'text': f'row {i} \u00e9', 'label': i % 2, 'id': f'r{i}'} for i in range(60)
]
# What can be wrong with a row, and what is said about it.
BAD_JSON = {
  b'{"text": "\xff\xfe", "label": 1}': 'not UTF-8',
  b'{"text": "\\ud800", "label": 1}': 'not UTF-8',
  b'{"text": "", "label": 1}': 'empty text',
  b'{"text": "  ", "label": 1}': 'empty text',
  b'{"label": 1}': 'no text',
  b'{"text": 5, "label": 1}': 'text is not a string',
  b'{"text": "x"}': 'no label',
  b'{"text": "x", "label": null}': 'no label',
  b'{"text": "x", "label": NaN}': 'neither',
  b'{"text": "x", "label": "\\ud800"}': 'not UTF-8',
  b'{"text": "x", "label": true}': 'neither',
  b'{"text": "x", "label": [1]}': 'neither',
  b'{"text": "x", "label": "yes"}': 'not of the kind',
  b'{"text": "x", "label": -1}': 'not among',
  b'{"text": "x", "label": 9}': 'not among',
  b'{"text": "x", "label": 1': 'not JSON',
  b'["x", 1]': 'not a JSON object',
  b'[' * 100_000: 'not JSON',
  b'{"text": "x", "label": ' + b'9' * 5000 + b'}': 'not JSON',
  b'': 'blank line',
  b'\x00\x01': 'not JSON',
}


def jsonl(rows):
  return b''.join(
    (row if isinstance(row, bytes) else json.dumps(row).encode()) + b'\n'
    for row in rows
  )


@pytest.fixture
def write(tmp_path):
  def write_file(name, content):
    path = tmp_path / name
    path.write_bytes(
      gzip.compress(content) if name.endswith('.gz') else content
    )
    return str(path)

  return write_file


def load(train, validation='', test='', **settings):
  paths = {'train': train, 'validation': validation, 'test': test}
  return files.load_files('text', paths, **settings)


def texts(source):
  return [source[i]['text'].decode() for i in range(len(source))]


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.JSONL'])
def test_jsonl(write, name):
  path = write(name, jsonl(GOOD))
  dataset = load(path, path, path)
  for source in dataset.splits.values():
    assert [source[i] for i in range(len(source))] == [
      row | {'text': row['text'].encode()} for row in GOOD
    ]
  assert dataset.num_classes == 2
  assert dataset.label_names == ()
  assert not dataset.stand_in
  assert path in dataset.origin
  assert len(set(dataset.fingerprints.values())) == 1
  assert '60 texts of test are in train' in ' '.join(dataset.notes)


@pytest.mark.parametrize('name', ['a.tsv', 'a.tsv.gz'])
def test_tsv_with_string_labels(write, name):
  lines = [f't{i}\t{i}\t{("up", "down")[i % 2]}' for i in range(9)]
  content = '\ufefftext\tn\tlabel\r\n' + '\r\n'.join(lines) + '\r\n'
  path = write(name, content.encode())
  dataset = load(path, path, path)
  assert dataset.label_names == ('down', 'up')
  assert dataset.splits['train'][0] == {
    'text': b't0',
    'label': 1,
    'id': f'{name}:2',
  }


def test_tsv_with_integers_keeps_them(write):
  lines = '\n'.join(f't{i}\t{i % 11}' for i in range(60))
  path = write('a.tsv', b'text\tlabel\n' + lines.encode())
  dataset = load(path, path, path)
  assert dataset.num_classes == 11
  assert dataset.splits['train'][10]['label'] == 10


def test_string_labels_of_test_are_numbered_by_train(write):
  train = [{'text': str(i), 'label': 'bca'[i % 3]} for i in range(9)]
  dataset = load(
    write('a.jsonl', jsonl(train)),
    *[write('b.jsonl', jsonl([{'text': 'x', 'label': 'c'}]))] * 2,
  )
  assert dataset.label_names == ('a', 'b', 'c')
  assert dataset.splits['test'][0]['label'] == 2


def test_splits_are_carved_by_text(write):
  rows = [{'text': f'row {i % 150}', 'label': i % 2} for i in range(300)]
  dataset = load(write('a.jsonl', jsonl(rows)))
  by_split = {s: texts(source) for s, source in dataset.splits.items()}
  assert sum(map(len, by_split.values())) == 300
  assert not set(by_split['train']) & set(by_split['validation'])
  assert not set(by_split['train']) & set(by_split['test'])
  assert {bucket(t.encode()) for t in by_split['validation']} == {0}
  assert {bucket(t.encode()) for t in by_split['test']} == {1}
  assert 'carved from train' in dataset.origin


def test_given_test_file_is_not_carved(write):
  path = write('a.jsonl', jsonl(GOOD))
  dataset = load(path, test=write('b.jsonl', jsonl(GOOD[:4])))
  assert len(dataset.splits['test']) == 4
  assert len(dataset.splits['train']) + len(dataset.splits['validation']) == 60
  assert 'validation carved' in dataset.origin


def test_too_few_rows_to_carve(write):
  path = write('a.jsonl', jsonl(GOOD[:2]))
  with pytest.raises(DataError, match='too few rows'):
    load(path)


@pytest.mark.parametrize('row', BAD_JSON, ids=lambda row: repr(row[:40]))
def test_first_bad_row_stops(write, row):
  path = write('a.jsonl', jsonl([*GOOD[:4], row, *GOOD[4:]]))
  with pytest.raises(DataError) as error:
    load(path, path, path)
  message = str(error.value)
  assert f'{path}:5: ' in message
  assert BAD_JSON[row] in message
  assert 'data.max_bad_fraction' in message
  assert len(message.splitlines()) <= 5


def test_hundreds_of_bad_rows_are_skipped_and_counted(write):
  draw = random.Random(0)
  rows = [
    {'text': f'good {i}', 'label': i % 2, 'id': str(i)} for i in range(300)
  ]
  mixed = list(rows)
  for bad in draw.choices(list(BAD_JSON), k=300):
    mixed.insert(draw.randrange(len(mixed)), bad)
  path = write('a.jsonl.gz', jsonl(mixed))
  dataset = load(path, path, path, max_bad_fraction=0.5)
  assert texts(dataset.splits['train']) == [row['text'] for row in rows]
  first = next(i for i, row in enumerate(mixed) if isinstance(row, bytes))
  assert 'skipped 300 bad of 600 rows' in dataset.notes[0]
  assert f'a.jsonl.gz:{first + 1} {BAD_JSON[mixed[first]]}' in dataset.notes[0]
  with pytest.raises(DataError, match='300 of 600 rows are bad'):
    load(path, path, path, max_bad_fraction=0.49)


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    (b'only one', '1 columns, not 2'),
    (b'a\t1\t2', '3 columns, not 2'),
    (b'a\t', 'no label'),
    (b'\t1', 'empty text'),
    (b'a\tx', 'not of the kind'),
    (b'\xc3\t1', 'not UTF-8'),
    (b'', 'blank line'),
  ],
)
def test_bad_tsv_rows(write, line, reason):
  path = write('a.tsv', b'text\tlabel\na\t0\nb\t1\nc\t0\n' + line + b'\nd\t1\n')
  with pytest.raises(DataError, match=reason) as error:
    load(path, path, path)
  assert f'{path}:5: ' in str(error.value)
  skipped = load(path, path, path, max_bad_fraction=0.2)
  assert texts(skipped.splits['test']) == ['a', 'b', 'c', 'd']


def test_unknown_label_of_test_is_a_bad_row(write):
  path = write('a.jsonl', jsonl(GOOD))
  test = write('b.jsonl', jsonl([*GOOD[:3], {'text': 'x', 'label': 2}]))
  with pytest.raises(DataError, match=rf'{test}:4: label .2. is not among'):
    load(path, path, test)


def test_row_that_is_too_long(write, monkeypatch):
  monkeypatch.setattr(rows, '_MAX_ROW_BYTES', 100)
  long = {'text': 'x' * 1000, 'label': 0}
  path = write('a.jsonl', jsonl([*GOOD[:2], long, *GOOD[2:]]))
  dataset = load(path, path, path, max_bad_fraction=0.1)
  assert texts(dataset.splits['train']) == [row['text'] for row in GOOD]
  assert 'a.jsonl:3 longer than' in dataset.notes[0]


def test_text_that_the_task_refuses_is_a_bad_row(write):
  def check(text):
    if b'7' in text:
      raise DataError('no sevens')

  path = write('a.jsonl', jsonl(GOOD))
  with pytest.raises(DataError, match=r'a.jsonl:8: no sevens'):
    load(path, check_text=check)


def test_labels_with_a_gap_at_zero(write):
  rows = [{'text': str(i), 'label': 1 + i % 5} for i in range(60)]
  with pytest.raises(DataError, match='without a gap'):
    load(write('a.jsonl', jsonl(rows)))


def test_truncated_gzip(tmp_path):
  path = tmp_path / 'a.jsonl.gz'
  path.write_bytes(gzip.compress(jsonl(GOOD))[:-30])
  with pytest.raises(DataError, match='damaged gzip'):
    load(str(path))


@pytest.mark.parametrize(('size', 'count'), [(80, 40_000), (4_000_000, 1)])
def test_bomb_of_rows_is_not_unpacked(write, monkeypatch, size, count):
  monkeypatch.setattr(rows, '_MAX_UNPACKED_BYTES', 100_000)
  # A row that is too long is skipped in pieces, which count as well.
  monkeypatch.setattr(rows, '_MAX_ROW_BYTES', 10_000)
  row = {'text': 'a' * size, 'label': 0}
  path = write('bomb.jsonl.gz', jsonl([row] * count))
  with pytest.raises(DataError, match='unpacks to more than') as raised:
    load(path)
  assert path in str(raised.value)
  plain = write('plain.jsonl', jsonl([row] * count))
  found = files.read_file(pathlib.Path(plain), 'train', rows.of_texts)
  assert len(found.rows) == count


def test_no_gzip_at_all(tmp_path):
  path = tmp_path / 'a.tsv.gz'
  path.write_bytes(b'text\tlabel\n')
  with pytest.raises(DataError, match='damaged gzip'):
    load(str(path))


def test_missing_folder_and_empty(tmp_path, write):
  for name in ('b.jsonl', 'nope', 'folder/b.csv'):
    with pytest.raises(DataError, match=f'no such file: .*{name}'):
      load(str(tmp_path / name))
  with pytest.raises(DataError, match='no such file: ~no-such-user/x'):
    load('~no-such-user/x')
  with pytest.raises(DataError, match='is a folder'):
    load(str(tmp_path))
  (tmp_path / 'c.jsonl').mkdir()
  with pytest.raises(DataError, match='is a folder'):
    load(str(tmp_path / 'c.jsonl'))
  with pytest.raises(DataError, match='is empty'):
    load(write('d.jsonl', b''))
  with pytest.raises(DataError, match='is empty'):
    load(write('d.jsonl.gz', b''))


def test_header_without_the_columns(write):
  with pytest.raises(DataError, match=r'a.tsv:1 is no header'):
    load(write('a.tsv', b'words\tlabel\nx\t1\n'))


def test_a_text_may_be_called_a_sentence(write):
  rows = b''.join(b'text %d\t%d\n' % (i, i % 2) for i in range(60))
  loaded = [
    load(write(f'{name}.tsv', name.encode() + b'\tlabel\n' + rows))
    for name in ('text', 'sentence')
  ]
  assert loaded[0].fingerprints == loaded[1].fingerprints


def test_unknown_kind_and_missing_train(write):
  with pytest.raises(ConfigError, match='unknown kind'):
    load(write('a.csv', b'x'))
  with pytest.raises(ConfigError, match=r'without data\.train'):
    load('', test='x.jsonl')
