"""The command line: what it does, what it prints, how it exits."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from effformer.data import (
  __main__,
  builders,
  catalogue,
  cifar,
  dataset,
  image_stand_in,
  imdb,
  stand_in,
)

SIZES = {'train': 30, 'validation': 4, 'test': 5}


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(builders, 'LISTOPS_SIZES', SIZES)
  monkeypatch.setattr(stand_in, 'SIZES', SIZES)
  monkeypatch.setattr(image_stand_in, 'SIZES', SIZES)
  for archive in (imdb.ARCHIVE, cifar.ARCHIVE):
    nowhere = f'http://127.0.0.1:9/{archive.name}'
    monkeypatch.setattr(archive, 'url', nowhere)


@pytest.fixture
def run(tmp_path, capsys):
  def call(*arguments):
    code = __main__.main([*arguments, '--directory', str(tmp_path)])
    return code, *capsys.readouterr()

  return call


def test_prepare_list_verify(run, tmp_path):
  code, out, _ = run('list')
  assert code == 0
  assert out.count('not prepared') == len(catalogue.KNOWN)
  code, out, _ = run('prepare', 'listops')
  assert code == 0
  assert 'train           30 rows' in out
  code, out, _ = run('list')
  assert f'listops: ListOps, LRA rule, seed 0, prepared in {tmp_path}' in out
  assert out.count('not prepared') == len(catalogue.KNOWN) - 1
  code, out, err = run('verify')
  assert (code, err) == (0, '')
  assert out.count('hash, count and labels agree') == 3


def test_what_are_own_files_has_a_stand_in_only(run):
  code, out, err = run('prepare', 'similarity')
  assert code == 3
  assert 'data.train, data.validation and data.test' in err
  code, out, err = run('prepare', 'similarity', '--stand_in')
  assert code == 0
  assert 'STAND-IN' in out
  assert run('verify', 'similarity')[0] == 0


def test_stand_in_is_announced(run):
  code, out, err = run('prepare', 'text')
  assert (code, out.count('rows')) == (3, 0)
  assert 'downloads/manual/aclImdb_v1.tar.gz' in err
  code, out, _ = run('prepare', 'text', '--stand_in')
  assert code == 0
  assert 'STAND-IN' in out
  assert 'STAND-IN' in run('list')[1]
  assert run('verify', 'text')[0] == 0


def test_prepare_replaces_a_stand_in_when_it_can(run, monkeypatch):
  run('prepare', 'text', '--stand_in')
  text = {'text': b'real', 'label': 1, 'id': 'a'}
  archive = imdb.ARCHIVE
  monkeypatch.setattr(archive, 'download', lambda folder: folder / 'archive')
  monkeypatch.setattr(
    imdb, 'read_archive', lambda path: {s: [text] for s in dataset.SPLITS}
  )
  _, out, _ = run('prepare', 'text', '--stand_in')
  assert 'STAND-IN' not in out
  assert '1 rows' in out


def test_one_that_fails_does_not_stop_the_other(run):
  code, out, err = run('prepare')
  assert code == 3
  assert 'listops: ListOps' in out
  names = 'image, language, pair, retrieval, sentence, similarity, text'
  assert f'not prepared: {names}' in err
  assert 'pathfinder32: left out' in out


def test_an_interrupt_is_no_traceback(run, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(builders, '_listops_examples', stop)
  code, _, err = run('prepare', 'listops')
  assert code == 130
  assert err == 'stopped; nothing half-prepared is used\n'


def test_verify_without_data(run):
  code, _, err = run('verify')
  assert (code, err.count('\n')) == (3, 2)
  assert 'nothing is prepared' in err
  code, _, err = run('verify', 'listops')
  assert code == 3
  assert 'prepare listops' in err


def prepare_with(run, monkeypatch, change):
  """Prepares ListOps with `change` applied to the examples of a split."""
  plain = builders._listops_examples
  monkeypatch.setattr(
    builders, '_listops_examples', lambda *args: change(list(plain(*args)))
  )
  run('prepare', 'listops')
  return run('verify', 'listops')


def test_verify_finds_a_wrong_label(run, monkeypatch):
  def change(examples):
    examples[3]['label'] = (examples[3]['label'] + 1) % 10
    return examples

  code, out, err = prepare_with(run, monkeypatch, change)
  assert code == 3
  assert 'BAD: row 3: label' in out
  assert 'listops train: row 3' in err


def test_verify_finds_changed_content(run, monkeypatch):
  builder_digest = builders.Fingerprint.hexdigest
  monkeypatch.setattr(builders.Fingerprint, 'hexdigest', lambda _: 'f' * 64)
  run('prepare', 'listops')
  monkeypatch.setattr(builders.Fingerprint, 'hexdigest', builder_digest)
  code, out, _ = run('verify', 'listops')
  assert code == 3
  assert out.count('SHA-256 differs') == 3


def test_verify_finds_damage(run, tmp_path):
  run('prepare', 'listops')
  [path] = tmp_path.glob('effformer_listops/*/*-train.array_record*')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  code, _, err = run('verify')
  assert code == 3
  assert 'listops train: the prepared data cannot be read' in err


@pytest.mark.parametrize('place', ['downloads/manual', 'downloads'])
@pytest.mark.parametrize(
  ('name', 'archive'), [('image', cifar.ARCHIVE), ('text', imdb.ARCHIVE)]
)
def test_verify_names_a_damaged_archive(run, tmp_path, name, archive, place):
  path = tmp_path / place / archive.name
  path.parent.mkdir(parents=True)
  path.write_bytes(b'junk')
  for names in ((name,), ()):
    code, out, err = run('verify', *names)
    assert code == 3
    # Of two data sets, but one archive.
    assert out.count('BAD') == 1
    assert f'not the official {archive.title} archive: {path}\n' in err
    assert 'download http' in err
    assert len(err.splitlines()) <= 5
  # Other faults are named as well.
  run('prepare', 'listops')
  [prepared] = tmp_path.glob('effformer_listops/*/*-train.array_record*')
  content = bytearray(prepared.read_bytes())
  content[len(content) // 2] ^= 1
  prepared.write_bytes(content)
  code, _, err = run('verify')
  assert code == 3
  assert 'not the official' in err
  assert 'listops train: the prepared data cannot be read' in err
  assert len(err.splitlines()) <= 5


def test_verify_says_that_an_archive_is_the_official_one(
  run, tmp_path, monkeypatch
):
  path = tmp_path / 'downloads' / 'manual' / imdb.ARCHIVE.name
  path.parent.mkdir(parents=True)
  path.write_bytes(b'junk')
  digest = hashlib.sha256(b'junk').hexdigest()
  monkeypatch.setattr(imdb.ARCHIVE, 'sha256', digest)
  code, out, err = run('verify', 'language')
  assert (code, err) == (0, '')
  assert f'IMDb: archive {path}\n  SHA-256 is that of the official' in out


def own(run, name, **files):
  return run('verify', name, *(f'--{k}={path}' for k, path in files.items()))


@pytest.mark.parametrize('name', ['text', 'listops', 'retrieval', 'language'])
def test_verify_names_the_bad_rows_of_own_files(run, tmp_path, name):
  train, test = tmp_path / 'a.jsonl', tmp_path / 'b.jsonl'
  good = [
    {'text': f'[MAX {n % 10} {n // 10} ]', 'other': str(n), 'label': n % 2}
    for n in range(60)
  ]
  rows = [json.dumps(row) for row in good]
  train.write_text('\n'.join(rows) + '\n')
  test.write_text('\n'.join(rows) + '\n')
  code, out, err = own(run, name, train=train, test=test)
  assert (code, err) == (0, '')
  assert f'own files: train {train}, test {test}' in out
  assert 'every row can be read' in out
  assert 'of test are in train, too' in out

  more = ['nothing', '', '{"text": 5, "other": "x", "label": 1}']
  labels = []
  if name != 'language':
    labels = ['{"text": "7", "other": "x", "label": 9}']
  if name == 'listops':
    labels += ['{"text": "[MAX 1", "label": 1}']
  test.write_text('\n'.join([*rows, *more, *labels]) + '\n')
  code, out, err = own(run, name, train=train, test=test)
  assert code == 3
  for number, words in enumerate(
    [
      *('not JSON', 'blank line', 'text is not a string'),
      *("label '9' is not among", 'not a ListOps expression')[: len(labels)],
    ],
    61,
  ):
    assert f'BAD: {test}:{number}: {words}' in out
  assert out.count('BAD') == 3 + len(labels)
  assert f'{3 + len(labels)} bad row(s), the first: {test}:61: not JSON' in err
  assert 'max_bad_fraction' in err


def test_verify_shows_some_of_many_bad_rows(run, tmp_path):
  path = tmp_path / 'a.tsv'
  path.write_text('1\tx\ty\n' * 60)
  code, out, err = own(run, 'retrieval', train=path)
  assert code == 3
  assert out.count('BAD') == __main__.MAX_SHOWN
  assert f'and {60 - __main__.MAX_SHOWN} more' in out
  assert f'60 bad row(s), the first: {path}:1: 3 columns' in err
  documents = tmp_path / 'docs.jsonl'
  documents.write_text('{"id": "x", "text": 5}\n')
  code, _, err = own(run, 'retrieval', train=path, documents=documents)
  assert code == 3
  assert f'{documents}:1: not a document: text is not a string' in err


def test_verify_reads_own_images(run, tmp_path):
  for number in range(60):
    place = tmp_path / 'own' / f'class {number % 2}'
    place.mkdir(parents=True, exist_ok=True)
    picture = np.full((32, 32), number, np.uint8)
    Image.fromarray(picture).save(place / f'{number}.png')
  assert own(run, 'image', train=tmp_path / 'own')[0] == 0
  (place / '1.png').write_bytes(b'junk')
  code, out, err = own(run, 'image', train=tmp_path / 'own')
  assert code == 3
  assert 'class 1/1.png: not an image' in out
  assert len(err.splitlines()) <= 5


def test_wrong_use_of_own_files_is_named(run, tmp_path):
  path = tmp_path / 'a.jsonl'
  assert own(run, 'text', train=path)[0] == 3
  path.write_text('{"text": "x", "label": 0}\n')
  for arguments, words in (
    (('verify', f'--train={path}'), '0 are named'),
    (('verify', 'text', 'image', f'--train={path}'), '2 are named'),
    (('verify', 'text', f'--test={path}'), 'without data.train'),
    (
      ('verify', 'text', f'--train={path}', f'--documents={path}'),
      'no use for it',
    ),
    (('verify', 'text', f'--documents={path}'), 'no use for it'),
  ):
    code, _, err = run(*arguments)
    assert code == 2, arguments
    assert words in err
    assert len(err.splitlines()) <= 5
  code, _, err = own(run, 'text', train=path)
  assert code == 3
  assert 'Two or more classes' in err


@pytest.mark.parametrize('command', ['list', 'verify', 'prepare'])
def test_a_folder_of_nobody_is_named(command, capsys):
  assert __main__.main([command, '--directory=~no-such-user/x']) == 2
  assert 'no-such-user' in capsys.readouterr().err


@pytest.mark.parametrize(
  'arguments', [[], ['verif'], ['list', '--nothing'], ['prepare', 'imdb']]
)
def test_bad_usage(arguments, capsys):
  try:
    code = __main__.main(arguments)
  except SystemExit as error:
    code = error.code
  assert code == 2
  assert capsys.readouterr().err


def test_module_runs_and_debug_has_a_traceback(tmp_path, repository):
  def call(*flags):
    return subprocess.run(
      [sys.executable, '-m', 'effformer.data', 'verify', *flags],
      cwd=repository,
      env=os.environ | {'TFDS_DATA_DIR': str(tmp_path)},
      capture_output=True,
      text=True,
      check=False,
    )

  plain, debug = call(), call('--debug')
  assert (plain.returncode, debug.returncode) == (3, 3)
  assert str(tmp_path) in plain.stderr
  assert 'Traceback' not in plain.stderr
  assert 'Traceback' in debug.stderr


def test_labels_count_for_nothing_where_there_are_none(run):
  """The language of the reviews is prepared with the reviews."""
  run('prepare', 'text', '--stand_in')
  code, out, err = run('verify', 'language')
  assert (code, err) == (0, '')
  assert out.count('hash, count and labels agree') == 3
