"""Pairs of papers: the release, own pairs, and rows that are not right."""

import gzip
import json
import os
import pathlib
import tracemalloc

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


def test_texts_of_five_columns_are_those_of_the_row(write):
  rows = [f'{n % 2}\tx\ty\tone {n}\tother {n}\n' for n in range(60)]
  assert triples(every(load(write('own.tsv', ''.join(rows))))) == sorted(
    (b'one %d' % n, b'other %d' % n, n % 2) for n in range(60)
  )


def test_texts_of_three_columns_are_those_of_the_documents(write):
  rows = '0\tx\ty\ttheir own\ttext\n' + '1\tx\ty\n' * 2
  path = write('own.tsv', rows)
  with pytest.raises(DataError, match=r'own.tsv:2: 3 columns') as raised:
    load(path)
  assert 'set data.documents' in str(raised.value)
  documents = '{"id": "x", "text": "X"}\n{"id": "y", "text": "Y"}\n'
  documents = write('docs.jsonl', documents)
  found = list(aan.of_pairs(documents)(pathlib.Path(path), 'train'))
  assert [(row.text, row.other) for row in found] == [
    (b'their own', b'text'), (b'X', b'Y'), (b'X', b'Y')
  ]  # fmt: skip


BAD = {
  'p1\tp2': '2 columns, not 5',
  '1.0\tp1\tp2\ttext': '4 columns, not 5',
  'yes\tp1\tp2\ta\tb': "label 'yes' is not a number",
  '2\tp1\tp2\ta\tb': "label '2' is neither 0 nor 1",
  'nan\tp1\tp2\ta\tb': "label 'nan' is neither 0 nor 1",
  '1\tp1\tp2': '3 columns and no data.documents: set data.documents',
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
  three = write('three.tsv', '1\ta\tnowhere\n0\ta\tb\n')
  documents = '{"id": "a", "text": "A"}\n{"id": "b", "text": " "}\n'
  documents = write('docs.jsonl', documents)
  with pytest.raises(DataError, match="1: no document 'nowhere'"):
    load(three, documents)
  three = write('three.tsv', '0\ta\tb\n')
  with pytest.raises(DataError, match="1: the document 'b' is empty"):
    load(three, documents)
  with pytest.raises(DataError, match=r'nope\nCorrect .*data\.documents'):
    load(str(pathlib.Path(good).with_name('nope')))
  with pytest.raises(DataError, match='is a folder'):
    load(str(pathlib.Path(good).parent))
  with pytest.raises(ConfigError, match=r'data\.documents'):
    data.load('text', train=good, documents='docs.jsonl')
  with pytest.raises(ConfigError, match=r'data\.documents'):
    data.load('retrieval', documents='docs.jsonl')


BAD_DOCUMENTS = {
  '{"id": "b"}': 'no text',
  '{"text": "b"}': 'no id',
  '{"id": "b", "text": null}': 'no text',
  '{"id": "b", "text": 5}': 'text is not a string',
  '{"id": "b", "text": ["x"]}': 'text is not a string',
  '{"id": "b", "text": {"x": "y"}}': 'text is not a string',
  '{"id": "b", "text": "\\ud800"}': 'not UTF-8',
  '{"id": 5, "text": "b"}': 'id is not a string',
  '{"id": ["b"], "text": "b"}': 'id is not a string',
  '{"id": "a", "text": "other"}': "the id 'a' has another text further up",
  '["b", "text"]': 'not a JSON object',
  'text': 'not JSON',
  '[' * 100_000: 'not JSON',
  '': 'blank line',
}


@pytest.mark.parametrize('line', BAD_DOCUMENTS, ids=range(len(BAD_DOCUMENTS)))
def test_bad_documents_are_named(write, line):
  documents = write('docs.jsonl', '{"id": "a", "text": "A"}\n' + line + '\n')
  with pytest.raises(DataError) as raised:
    load(write('three.tsv', '1\ta\tb\n'), documents)
  assert f'{documents}:2: not a document: {BAD_DOCUMENTS[line]}' in str(
    raised.value
  )
  assert len(str(raised.value).splitlines()) <= 5


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

  counts = {'train': 20, 'validation': 4, 'test': 5}
  monkeypatch.setattr(aan, 'COUNTS', counts)
  whole = {
    'train': release_rows(PAIRS[:20]), 'eval': release_rows(PAIRS[20:24]),
    'test': release_rows(PAIRS[24:29]),
  }  # fmt: skip
  folder = release(write, True, whole)
  assert verify(folder) == 0
  assert 'no pair occurs twice, and each paper' in capsys.readouterr().out
  rows = release_rows(PAIRS[20:24]).splitlines()
  rows[1] = rows[1].replace('\t', ' ', 1)
  rows[3] = 'x' + rows[3]
  change = {
    **whole, 'eval': '\n'.join(rows) + '\n',
    'test': release_rows(PAIRS[24:27])[:-30],
  }  # fmt: skip
  assert verify(release(write, True, change)) == 3
  out, _ = capsys.readouterr()
  for words in (
    'pairs.eval.tsv:2: 4 columns',
    "pairs.eval.tsv:4: label 'x",
    'pairs.test.tsv:3: 4 columns',
    'pairs.test.tsv:3: the last row has no line end',
    'pairs.test.tsv: 3 rows, not 5',
  ):
    assert words in out, words
  assert out.count('BAD') == 5
  path = f'{folder}/downloads/manual/lra_release/lra_release/tsv_data'
  os.remove(f'{path}/new_aan_pairs.eval.tsv')
  assert verify(folder) == 3
  assert 'not whole' in capsys.readouterr().err


def test_verify_finds_what_repeats_and_what_is_cut_off(write, monkeypatch):
  counts = {'train': 4, 'validation': 3, 'test': 2}
  monkeypatch.setattr(aan, 'COUNTS', counts)
  # Longer than what is kept, and other only there.
  long = 'long ' * aan.MAX_BYTES
  change = {
    'train': (
      '1.0\ta\tb\tA\tB\n0.0\ta\tc\tA\tC\n0.0\ta\tb\tA\tB\n'
      f'0.0\tl\ta\t{long}\tA\n'
    ),
    # Other ids of the same texts, one id with a second and a third text.
    'eval': (
      f'1.0\tv\tw\tA\tC\n1.0\tb\ta\tB\tanother\n0.0\tl\ta\t{long}x\tthird\n'
    ),
    'test': '1.0\td\te\tD\tE\n1.0\tf\tg\tF\tcut o',
  }
  place = pathlib.Path(release(write, True, change)) / 'downloads/manual'
  found = list(aan.faults(place / 'lra_release' / 'lra_release'))
  shown = [
    fault.rpartition('/')[2].replace('new_aan_pairs.', '') for fault in found
  ]
  assert shown == [
    'train.tsv:3: the pair of train.tsv:1 once more',
    'eval.tsv:1: the pair of train.tsv:2 once more',
    "eval.tsv:2: the text of 'a' is not that of train.tsv:1",
    "eval.tsv:3: the text of 'l' is not that of train.tsv:4",
    "eval.tsv:3: the text of 'a' is not that of train.tsv:1",
    'eval.tsv:3: the pair of train.tsv:4 once more',
    'test.tsv:2: the last row has no line end; cut off?',
  ]


def test_the_memory_of_verify_does_not_grow_with_the_texts(tmp_path):
  place = tmp_path / 'tsv_data'
  place.mkdir()
  size = 1 << 20
  for name in ('train', 'eval', 'test'):
    with (place / f'new_aan_pairs.{name}.tsv').open('w') as file:
      for n in range(20):
        file.write(f'1.0\t{name}{n}\tb{name}{n}\t{n}{"x" * size}\t{name}\n')
  tracemalloc.start()
  assert len(list(aan.faults(tmp_path))) == 3
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 10 * size


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
