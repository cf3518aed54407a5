"""The command line: what it does, what it prints, how it exits."""

import os
import subprocess
import sys

import pytest

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
  assert 'not prepared: image, language, retrieval, text' in err
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
