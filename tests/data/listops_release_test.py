"""ListOps of the release: parentheses dropped, defects named."""

import pytest

from effformer import data
from effformer.data import __main__ as data_main
from effformer.data import builders, listops_release
from effformer.data.dataset import SPLITS
from effformer.errors import DataError

# As the release writes them, what is read of it, and the value.
ROWS = {
  '( ( ( [MAX 2 ) 9 ) ] )': ('[MAX 2 9 ]', 9),
  '( ( ( [SM ( ( ( [MIN 4 ) 7 ) ] ) ) 8 ) ] )': ('[SM [MIN 4 7 ] 8 ]', 2),
  '( ( ( ( [MED 5 ) 1 ) 6 ) ] )': ('[MED 5 1 6 ]', 5),
  '( ( ( [MIN 3 ) 3 ) ] )': ('[MIN 3 3 ]', 3),
}
NAMES = {'train': 'train', 'validation': 'val', 'test': 'test'}


def content(sources):
  rows = [f'{source}\t{ROWS[source][1]}' for source in sources]
  return '\n'.join(['Source\tTarget', *rows]) + '\n'


def release(folder, change=None, depth=2):
  """Unpacked into the manual folder; `change` is split -> content or None."""
  sources = list(ROWS)
  parts = {
    'train': content(sources[:2]), 'validation': content(sources[2:3]),
    'test': content(sources[3:]), **(change or {}),
  }  # fmt: skip
  place = folder / 'downloads' / 'manual'
  place = place.joinpath(*('lra_release',) * depth, 'listops-1000')
  place.mkdir(parents=True, exist_ok=True)
  for split, text in parts.items():
    path = place / f'basic_{NAMES[split]}.tsv'
    if text is None:
      path.unlink(missing_ok=True)
    else:
      path.write_text(text)
  return str(folder)


def verify(folder):
  return data_main.main(['verify', 'listops', '--directory', folder])


@pytest.mark.parametrize('depth', [1, 2])
def test_the_release_is_read_before_anything_is_generated(tmp_path, depth):
  loaded = data.load('listops', directory=release(tmp_path, depth=depth))
  assert 'release of LRA' in loaded.origin
  assert not loaded.stand_in
  found = [
    (loaded.splits[split][i]['text'].decode(), loaded.splits[split][i]['label'])
    for split in SPLITS
    for i in range(len(loaded.splits[split]))
  ]
  assert found == list(ROWS.values())
  assert loaded.splits['test'][0]['id'] == 'basic_test:2'


def test_without_it_the_data_are_generated_and_named(tmp_path, monkeypatch):
  sizes = {'train': 3, 'validation': 1, 'test': 1}
  monkeypatch.setattr(builders, 'LISTOPS_SIZES', sizes)
  loaded = data.load('listops', directory=str(tmp_path))
  assert loaded.origin.startswith('ListOps, LRA rule, seed 0')
  # The release takes their place as soon as it is there.
  assert 'release' in data.load('listops', directory=release(tmp_path)).origin


BAD = {
  '( [MAX 2 ) 9 )\t9\tx': '3 columns',
  '[MAX 2 9 ]\t12': "'12' is no digit",
  '[MAX 2 9 ]\t²': 'is no digit',
  '[MAX 2 [AVG 9 ] ]\t9': 'unknown ListOps symbol',
  '( [MAX 2 ) 9\t9': 'not a ListOps expression',
  '': 'blank line',
}


@pytest.mark.parametrize('row', BAD)
def test_a_bad_row_is_named(tmp_path, row):
  text = content(list(ROWS)[:1]) + row + '\n'
  folder = release(tmp_path, {'validation': text})
  with pytest.raises(DataError, match=rf'basic_val.tsv:3: .*{BAD[row]}'):
    data.load('listops', directory=folder)


def test_files_that_are_not_those_of_the_release(tmp_path):
  folder = release(tmp_path, {'train': content(ROWS).partition('\n')[2]})
  with pytest.raises(DataError, match=r'basic_train\.tsv:1: the heading'):
    data.load('listops', directory=folder)
  folder = release(tmp_path, {'test': None})
  with pytest.raises(DataError, match='not whole: listops-1000/basic_test'):
    data.load('listops', directory=folder)


def test_verify_finds_every_defect(tmp_path, monkeypatch, capsys):
  counts = {'train': 2, 'validation': 1, 'test': 1}
  monkeypatch.setattr(listops_release, 'COUNTS', counts)
  folder = release(tmp_path)
  assert verify(folder) == 0
  assert 'no expression occurs twice' in capsys.readouterr().out
  sources = list(ROWS)
  change = {
    'validation': content(sources[2:3]).replace('\t5', '\t4'),
    'test': (
      content([sources[0], sources[3]]) + '[MAX 2 9\t9\n[MED 5 1 6 ]\t5\n'
    ),
  }
  assert verify(release(tmp_path, change)) == 3
  out = capsys.readouterr().out
  for words in (
    'basic_val.tsv:2: 4 stands there, not 5',
    'basic_test.tsv:2: the expression of',
    'basic_test.tsv:4: not a ListOps expression',
    # Of one whose value is wrong.
    'basic_test.tsv:5: the expression of',
    'basic_test.tsv: 4 rows, not 1',
  ):
    assert words in out, words
  assert out.count('BAD') == 5
