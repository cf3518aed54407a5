"""Pairs of papers: the release, own pairs, and rows that are not right."""

import gzip
import json
import os

import pytest

from effformer import data
from effformer.data import __main__ as data_main
from effformer.data import aan, builders, files, pair_stand_in
from effformer.data.dataset import SPLITS
from effformer.errors import ConfigError, DataError

TEXTS = {f'p{i}': f'paper {i} "quoted" \u00e9' for i in range(40)}
PAIRS = [(i % 2, f'p{i % 40}', f'p{(7 * i + 1) % 40}') for i in range(80)]


def release_rows(pairs=PAIRS):
  return ''.join(
    f'{label}.0\t{a}\t{b}\t{TEXTS[a]}\t{TEXTS[b]}\n' for label, a, b in pairs
  )


@pytest.fixture
def write(tmp_path):
  def write_file(name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(
      gzip.compress(content) if name.endswith('.gz') else content
    )
    return str(path)

  return write_file


def load(train, documents='', **settings):
  return data.load('retrieval', train=train, documents=documents, **settings)


def every(loaded):
  sources = loaded.splits.values()
  return [source[i] for source in sources for i in range(len(source))]


def expected(pairs=PAIRS):
  return sorted(
    (TEXTS[a].encode(), TEXTS[b].encode(), label) for label, a, b in pairs
  )


def triples(examples):
  return sorted((e['text'], e['other'], e['label']) for e in examples)


def test_five_columns_and_three_with_documents_are_the_same(write):
  five = load(write('five.tsv', release_rows()))
  documents = ''.join(
    json.dumps({'id': name, 'text': text, 'year': 1}) + '\n'
    for name, text in TEXTS.items()
  )
  rows = ''.join(f'{label}\t{a}\t{b}\n' for label, a, b in PAIRS)
  three = load(write('three.tsv.gz', rows), write('docs.jsonl.gz', documents))
  assert triples(every(five)) == triples(every(three)) == expected()
  assert five.fingerprints == three.fingerprints
  assert five.num_classes == 2
  # A first text is in one split only.
  firsts = [{e['text'] for e in five.splits[split]} for split in SPLITS]
  assert not firsts[0] & firsts[1]
  assert not firsts[0] & firsts[2]


def test_json_rows(write):
  rows = [
    {'text': TEXTS[a], 'other': TEXTS[b], 'label': label}
    for label, a, b in PAIRS
  ]
  path = write('own.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))
  assert triples(every(load(path))) == expected()


def test_long_texts_are_cut_and_held_once(write, monkeypatch):
  monkeypatch.setattr(aan, 'MAX_BYTES', 8)
  examples = every(load(write('five.tsv', release_rows())))
  assert {e['text'] for e in examples} == {
    text.encode()[:8] for text in TEXTS.values()
  }
  assert len({id(e['text']) for e in examples}) <= len(TEXTS)


BAD = {
  'p1\tp2': '2 columns, not 5',
  '1.0\tp1\tp2\ttext': '4 columns, not 5',
  'yes\tp1\tp2\ta\tb': "label 'yes' is not a number",
  '2\tp1\tp2\ta\tb': "label '2' is neither 0 nor 1",
  'nan\tp1\tp2\ta\tb': "label 'nan' is neither 0 nor 1",
  '1\tp1\tnowhere': "no document 'nowhere' in data.documents",
  '1\tnew\tp2\t \tb': "the document 'new' is empty",
  '': 'blank line',
}


@pytest.mark.parametrize('line', BAD)
def test_bad_rows_are_named(write, line):
  path = write('own.tsv', release_rows() + line + '\n')
  with pytest.raises(DataError, match=f'own.tsv:81: {BAD[line]}'):
    load(path)
  loaded = load(path, max_bad_fraction=0.1)
  assert len(every(loaded)) == 80


def test_bad_files(write):
  good = write('good.tsv', release_rows())
  with pytest.raises(ConfigError, match='unknown kind of file'):
    load(write('own.txt', 'x'))
  with pytest.raises(DataError, match='no such file'):
    load(good, '/nowhere/docs.jsonl')
  with pytest.raises(DataError, match=r'docs.jsonl:1: not a document'):
    load(good, write('docs.jsonl', '{"id": "a"}\n'))
  with pytest.raises(ConfigError, match=r'data\.documents'):
    data.load('text', train=good, documents='docs.jsonl')
  with pytest.raises(ConfigError, match=r'data\.documents'):
    data.load('retrieval', documents='docs.jsonl')


def release(write, nested, change=None):
  """Unpacked into the manual folder; returns the data folder."""
  content = {
    'train': release_rows(), 'eval': release_rows(PAIRS[:4]),
    'test': release_rows(PAIRS[4:9]), **(change or {}),
  }  # fmt: skip
  place = 'downloads/manual/lra_release/' + ('lra_release/' if nested else '')
  for name, rows in content.items():
    if rows is not None:
      path = write(f'{place}tsv_data/new_aan_pairs.{name}.tsv', rows)
  return path.partition('/downloads')[0]


@pytest.mark.parametrize('nested', [True, False])
def test_release_is_prepared_from_the_folder(write, nested):
  folder = release(write, nested)
  loaded = data.load('retrieval', directory=folder)
  assert not loaded.stand_in
  assert triples(every(loaded)) == sorted(expected() + expected(PAIRS[:9]))
  assert [len(loaded.splits[split]) for split in SPLITS] == [80, 4, 5]
  assert loaded.splits['test'][0]['id'] == ' '.join(PAIRS[4][1:])


def test_release_that_is_not_whole_is_named(write):
  folder = release(write, True, {'eval': None})
  with pytest.raises(
    DataError, match=r'not whole: tsv_data/new_aan_pairs\.eval'
  ):
    data.load('retrieval', directory=folder, stand_in=True)


def test_truncated_row_of_the_release_is_named(write):
  folder = release(write, True, {'test': release_rows(PAIRS[:3])[:-30]})
  with pytest.raises(DataError, match=r'pairs.test.tsv:3: 4 columns'):
    data.load('retrieval', directory=folder)


def test_verify_finds_every_defect_of_the_release(write, monkeypatch, capsys):
  def verify(folder):
    return data_main.main(['verify', 'retrieval', '--directory', folder])

  counts = {'train': 80, 'validation': 4, 'test': 5}
  monkeypatch.setattr(aan, 'COUNTS', counts)
  folder = release(write, True)
  assert verify(folder) == 0
  rows = release_rows(PAIRS[:4]).splitlines()
  rows[1] = rows[1].replace('\t', ' ', 1)
  rows[3] = 'x' + rows[3]
  change = {
    'eval': '\n'.join(rows) + '\n', 'test': release_rows(PAIRS[:3])[:-30]
  }  # fmt: skip
  assert verify(release(write, True, change)) == 3
  out, _ = capsys.readouterr()
  for words in (
    'pairs.eval.tsv:2: 4 columns',
    "pairs.eval.tsv:4: label 'x",
    'pairs.test.tsv:3: 4 columns',
    'pairs.test.tsv: 3 rows, not 5',
  ):
    assert words in out, words
  assert out.count('BAD') == 4
  path = f'{folder}/downloads/manual/lra_release/lra_release/tsv_data'
  os.remove(f'{path}/new_aan_pairs.eval.tsv')
  assert verify(folder) == 3
  assert 'not whole' in capsys.readouterr().err


def test_stand_in_is_announced(tmp_path, monkeypatch):
  sizes = {'train': 30, 'validation': 4, 'test': 5}
  monkeypatch.setattr(pair_stand_in, 'SIZES', sizes)
  with pytest.raises(DataError, match=r'lra_release\.gz'):
    data.load('retrieval', directory=str(tmp_path))
  loaded = data.load('retrieval', directory=str(tmp_path), stand_in=True)
  assert loaded.stand_in
  assert loaded.splits['train'][3] == pair_stand_in.pair(3)
  assert builders.EffformerRetrieval.texts == ('text', 'other')


def test_texts_of_a_stand_in_pair_share_a_topic_if_cited():
  def topics(text):
    words = set(text.decode().replace('.', ' ').split())
    found = [n for n, w in enumerate(pair_stand_in.TOPICS)
             if words & set(w.split())]  # fmt: skip
    return found

  for number in range(100):
    pair = pair_stand_in.pair(number)
    [first], [second] = topics(pair['text']), topics(pair['other'])
    assert (first == second) == pair['label'] == number % 2


def test_pairs_of_train_in_other_splits_are_counted(write):
  path = write('five.tsv', release_rows())
  loaded = files.load_files(
    'retrieval', {'train': path, 'validation': path, 'test': path},
    read_rows=aan.of_pairs(''),
  )  # fmt: skip
  assert '80 pairs of test are in train' in ' '.join(loaded.notes)
