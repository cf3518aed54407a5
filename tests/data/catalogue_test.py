"""Preparing and loading: the order of sources, damage, several processes."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from effformer import data
from effformer.data import builders, catalogue, dataset, imdb, listops, stand_in
from effformer.errors import ConfigError, DataError

SIZES = {'train': 30, 'validation': 4, 'test': 5}
NO_NETWORK = 'http://127.0.0.1:9/none.tar.gz'

PROGRAM = """
import sys
from effformer import data
from effformer.data import imdb, stand_in
imdb.ARCHIVE.url = 'http://127.0.0.1:9/none.tar.gz'
stand_in.SIZES = {'train': 2000, 'validation': 3, 'test': 3}
loaded = data.load('text', directory=sys.argv[1], stand_in=True)
with data.train_batches(
  loaded.splits['train'], data.ByteTokenizer().encode, seed=0, batch_size=4,
  max_length=9, start_step=0, num_steps=3, num_threads=1, prefetch=1,
) as batches:
  assert len(list(batches)) == 3
for module in ('tensorflow', 'torch', 'tensorflow_text'):
  assert module not in sys.modules, module
print(loaded.fingerprints['train'])
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(builders, 'LISTOPS_SIZES', SIZES)
  monkeypatch.setattr(stand_in, 'SIZES', SIZES)
  monkeypatch.setattr(imdb.ARCHIVE, 'url', NO_NETWORK)


@pytest.fixture(scope='module')
def listops_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(builders, 'LISTOPS_SIZES', SIZES)
    data.load('listops', directory=str(folder))
  return folder


def test_listops_rows_are_the_generated_ones(listops_folder):
  loaded = data.load('listops', directory=str(listops_folder))
  start = 0
  for split, size in SIZES.items():
    source = loaded.splits[split]
    assert len(source) == size
    expected = [
      {'text': text, 'label': label, 'id': str(start + i)}
      for i, (text, label) in enumerate(
        listops.generate(builders.LISTOPS_SEED, start, start + size)
      )
    ]
    assert list(data.read_all(source)) == expected
    assert source[size - 1] == expected[-1]
    assert loaded.fingerprints[split] == dataset.fingerprint(expected)
    start += size
  assert (loaded.num_classes, loaded.stand_in) == (10, False)


def test_prepared_data_are_not_prepared_again(listops_folder, monkeypatch):
  def fail(*_, **__):
    raise AssertionError('generated again')

  monkeypatch.setattr(listops, 'generate', fail)
  data.load('listops', directory=str(listops_folder))


def test_environment_names_the_folder(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/somewhere')
  assert data.data_folder() == pathlib.Path('/somewhere')
  assert data.data_folder('/else') == pathlib.Path('/else')
  monkeypatch.delenv('TFDS_DATA_DIR')
  assert data.data_folder() == pathlib.Path.home() / 'tensorflow_datasets'


def test_limits_take_a_fixed_part(listops_folder):
  whole = data.load('listops', directory=str(listops_folder))
  part = data.load(
    'listops', directory=str(listops_folder), train_examples=7, test_examples=99
  )
  order = dataset.permutation(30, dataset._FIXED_ORDER_KEY)
  expected = [whole.splits['train'][i] for i in order[:7]]
  assert list(data.read_all(part.splits['train'])) == expected
  assert [part.splits['train'][i] for i in range(7)] == expected
  assert len(part.splits['test']) == 5
  assert 'fewer than data.test_examples=99' in part.notes[0]
  assert part.fingerprints['train'] != whole.fingerprints['train']
  assert part.fingerprints['test'] == whole.fingerprints['test']


def test_permutation_never_changes():
  np.testing.assert_array_equal(
    dataset.permutation(8, (1, 2)), [4, 2, 0, 6, 1, 5, 7, 3]
  )


def test_stand_in_only_where_allowed_and_never_silent(tmp_path):
  with pytest.raises(DataError) as error:
    data.load('text', directory=str(tmp_path))
  manual = tmp_path / 'downloads' / 'manual' / imdb.ARCHIVE.name
  assert str(manual) in str(error.value)
  assert 'data.stand_in=True' in str(error.value)
  assert len(str(error.value).splitlines()) <= 5

  loaded = data.load('text', directory=str(tmp_path), stand_in=True)
  assert loaded.stand_in
  assert loaded.origin.startswith('STAND-IN: generated data')
  assert 'say nothing about IMDb' in loaded.notes[0]
  assert {s: len(source) for s, source in loaded.splits.items()} == SIZES
  # Again it needs leave, and no other download is tried with it.
  with pytest.raises(DataError):
    data.load('text', directory=str(tmp_path))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(imdb.ARCHIVE, 'download', lambda _: pytest.fail('tried'))
    again = data.load('text', directory=str(tmp_path), stand_in=True)
  assert again.fingerprints == loaded.fingerprints


def test_manual_archive_comes_before_the_stand_in(tmp_path, monkeypatch):
  text = {'text': b'\xff official', 'label': 1, 'id': 'train/pos/0_9'}
  read = {'train': [text], 'validation': [text], 'test': [text] * 2}
  manual = tmp_path / 'downloads' / 'manual' / imdb.ARCHIVE.name
  manual.parent.mkdir(parents=True)
  manual.write_bytes(b'not it')
  with pytest.raises(DataError, match='SHA-256'):
    data.load('text', directory=str(tmp_path), stand_in=True)
  monkeypatch.setattr(imdb.ARCHIVE, 'check', lambda path: None)
  monkeypatch.setattr(
    imdb, 'read_archive', lambda path: read if path == manual else None
  )
  loaded = data.load('text', directory=str(tmp_path), stand_in=True)
  assert not loaded.stand_in
  assert loaded.label_names == ('neg', 'pos')
  assert loaded.splits['train'][0] == text
  manual.unlink()
  assert not data.load('text', directory=str(tmp_path)).stand_in


def test_a_split_beyond_the_memory_of_tfds_needs_no_tensorflow(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 100)
  loaded = data.load('listops', directory=str(tmp_path))
  assert len(loaded.splits['train']) == SIZES['train']
  assert shuffle.MAX_MEM_BUFFER_SIZE == 100


def test_own_files_come_first(tmp_path):
  path = tmp_path / 'a.tsv'
  path.write_text('text\tlabel\n[SM 1 2 ]\t0\n[MIN 1 2 ]\t1\n[FOO 1 ]\t1\n')
  paths = dict.fromkeys(dataset.SPLITS, str(path))
  with pytest.raises(DataError, match=r'a.tsv:4: unknown ListOps symbol'):
    data.load('listops', directory='/nowhere', **paths)
  loaded = data.load(
    'listops', directory='/nowhere', max_bad_fraction=0.5, **paths
  )
  assert len(loaded.splits['train']) == 2


@pytest.mark.parametrize('text', ['[SM 1 2', '] ]', '[MIN ]', '1 2'])
def test_a_malformed_expression_is_a_bad_row(tmp_path, text):
  path = tmp_path / 'a.tsv'
  path.write_text(f'text\tlabel\n[SM 1 2 ]\t0\n[MIN 1 2 ]\t1\n{text}\t1\n')
  paths = dict.fromkeys(dataset.SPLITS, str(path))
  with pytest.raises(DataError, match=r'a.tsv:4: not a ListOps expression'):
    data.load('listops', **paths)
  loaded = data.load('listops', max_bad_fraction=0.5, **paths)
  assert len(loaded.splits['train']) == 2


def every(source):
  return list(data.read_all(source))


def check_is_validated_on_test(loaded):
  test, prints = loaded.splits['test'], loaded.fingerprints
  assert every(loaded.splits['validation']) == every(test) != []
  assert prints['validation'] == prints['test'] != prints['train']
  [note] = [note for note in loaded.notes if 'validate_on_test' in note]
  assert 'validation is the test split' in note


@pytest.mark.parametrize('name', ['listops', 'text'])
def test_validation_on_the_test_split(tmp_path, name):
  settings = {'directory': str(tmp_path), 'stand_in': True}
  plain = data.load(name, **settings)
  assert every(plain.splits['validation']) != every(plain.splits['test'])
  assert not any('validate_on_test' in note for note in plain.notes)
  loaded = data.load(name, validate_on_test=True, **settings)
  check_is_validated_on_test(loaded)
  for split in ('train', 'test'):
    assert every(loaded.splits[split]) == every(plain.splits[split])
    assert loaded.fingerprints[split] == plain.fingerprints[split]
  assert loaded.stand_in == plain.stand_in
  # Of a part of test a part, and never more.
  settings |= {'validate_on_test': True, 'test_examples': 3}
  check_is_validated_on_test(data.load(name, **settings))
  check_is_validated_on_test(data.load(name, validation_examples=4, **settings))
  part = data.load(name, validation_examples=2, **settings)
  validation, test = (
    every(part.splits[split]) for split in ('validation', 'test')
  )
  assert len(validation) == 2
  assert all(example in test for example in validation)
  assert part.fingerprints['validation'] != part.fingerprints['test']


def test_validation_on_the_test_split_of_own_files(tmp_path):
  rows = [f'{n}\t{n % 2}\n' for n in range(60)]
  train, test = tmp_path / 'a.tsv', tmp_path / 'b.tsv'
  train.write_text('text\tlabel\n' + ''.join(rows[:50]))
  test.write_text('text\tlabel\n' + ''.join(rows[48:]))
  loaded = data.load(
    'text', train=str(train), test=str(test), validate_on_test=True
  )
  check_is_validated_on_test(loaded)
  # No row of train is carved out for nothing.
  sizes = [len(loaded.splits[split]) for split in dataset.SPLITS]
  assert sizes == [50, 12, 12]
  assert loaded.notes[0] == '2 texts of test are in train, too'
  assert 'carved' not in loaded.origin
  alone = data.load('text', train=str(train), validate_on_test=True)
  check_is_validated_on_test(alone)
  assert 'test carved from train' in alone.origin
  assert len(alone.splits['train']) + len(alone.splits['test']) == 50
  with pytest.raises(ConfigError, match='Leave one of them out'):
    data.load(
      'text', train=str(train), validation=str(test), validate_on_test=True
    )


def test_validation_on_the_test_split_of_one_file_of_images(tmp_path):
  x_NHW = np.random.default_rng(0).integers(0, 256, (60, 32, 32), np.uint8)
  arrays = {}
  for n, split in enumerate(dataset.SPLITS):
    arrays |= {f'{split}_x': x_NHW[20 * n :][:20], f'{split}_y': np.arange(20)}
  # Not read, and so not spoken of.
  arrays['validation_x'] = arrays['train_x']
  np.savez(tmp_path / 'a.npz', **arrays)
  path = str(tmp_path / 'a.npz')
  loaded = data.load('image', train=path, validate_on_test=True)
  check_is_validated_on_test(loaded)
  assert [len(source) for source in loaded.splits.values()] == [20, 20, 20]
  assert len(loaded.notes) == 1
  assert f'validation {path}' not in loaded.origin


def test_from_config_passes_every_key(listops_folder):
  config = {
    'directory': str(listops_folder),
    **dict.fromkeys(dataset.SPLITS, ''),
    'documents': '',
    'stand_in': False,
    'max_bad_fraction': 0.0,
    'validate_on_test': False,
    'train_examples': 3,
    'validation_examples': 2,
    'test_examples': 1,
    'max_length': 5,
  }
  loaded = data.from_config('listops', config)
  assert [len(s) for s in loaded.splits.values()] == [3, 2, 1]


def test_unknown_name():
  with pytest.raises(ConfigError, match=r'image, language, listops, .*, text'):
    data.load('imdb')


def test_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(DataError, match='cannot write prepared data'):
    data.load('listops', directory=str(tmp_path / 'file' / 'sub'))


def test_interrupted_preparing_is_redone(tmp_path, monkeypatch):
  def stop_half_way(seed, start, stop):
    yield from list(listops_generate(seed, start, stop))[:3]
    raise KeyboardInterrupt

  listops_generate = listops.generate
  with monkeypatch.context() as patch:
    patch.setattr(listops, 'generate', stop_half_way)
    with pytest.raises(KeyboardInterrupt):
      data.load('listops', directory=str(tmp_path))
  assert catalogue.prepared('listops', tmp_path) == []
  left_over = tmp_path / 'effformer_listops' / 'incomplete.AB_1.0.0'
  left_over.mkdir(parents=True)
  (left_over.parent / '1.0.0').mkdir()
  loaded = data.load('listops', directory=str(tmp_path))
  assert len(loaded.splits['train']) == 30
  assert os.listdir(left_over.parent) == ['1.0.0']


def test_missing_shard_is_prepared_again(tmp_path):
  data.load('listops', directory=str(tmp_path))
  [shard] = tmp_path.glob('effformer_listops/*/*-test.array_record*')
  shard.unlink()
  loaded = data.load('listops', directory=str(tmp_path))
  assert loaded.splits['test'][4]['id'] == '38'


@pytest.mark.parametrize('file', ['*-train.array_record*', 'dataset_info.json'])
def test_damaged_prepared_data(tmp_path, file):
  data.load('listops', directory=str(tmp_path))
  [path] = tmp_path.glob(f'effformer_listops/*/{file}')
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 64] = bytes(64)
  path.write_bytes(content)
  with pytest.raises(DataError, match='Delete that folder') as error:
    list(
      data.read_all(
        data.load('listops', directory=str(tmp_path)).splits['train']
      )
    )
  assert 'effformer_listops' in str(error.value)


def test_processes_at_once_and_no_tensorflow(tmp_path, repository):
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, str(tmp_path)],
      cwd=repository,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  outputs = [process.communicate(timeout=120) for process in processes]
  assert [p.returncode for p in processes] == [0, 0], outputs
  assert outputs[0][0] == outputs[1][0]
  assert os.listdir(tmp_path / 'effformer_text_stand_in') == ['1.0.0']
