"""A release of LRA in another place than expected is named, not passed over."""

import os
import pathlib

import pytest

from effformer import data
from effformer.data import __main__ as data_main
from effformer.data import builders, pair_stand_in, releases
from effformer.errors import DataError

HARD = 'curv_contour_length_14'
NESTED = 'lra_release/lra_release'
# Data set: files and folders of its part of the release.
PARTS = {
  'listops': [f'listops-1000/basic_{s}.tsv' for s in ('train', 'val', 'test')],
  'retrieval': [
    f'tsv_data/new_aan_pairs.{s}.tsv' for s in ('train', 'eval', 'test')
  ],
  'pathfinder32': [
    f'pathfinder32/{HARD}/imgs/0/sample_0.png',
    f'pathfinder32/{HARD}/metadata/0.npy',
  ],
}
TOPS = {name: parts[0].partition('/')[0] for name, parts in PARTS.items()}


@pytest.fixture(autouse=True)
def nothing_is_generated(monkeypatch):
  def fail(*_, **__):
    raise AssertionError('generated')

  monkeypatch.setattr(builders, '_listops_examples', fail)
  monkeypatch.setattr(builders, '_pathfinder_examples', fail)
  monkeypatch.setattr(pair_stand_in, 'splits', fail)


def put(manual, names):
  for name in names:
    path = manual / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')


def refusals(folder, name, capsys):
  """What `verify`, `prepare` and a run say; all of them have to stop."""
  found = []
  for command in ('verify', 'prepare'):
    arguments = [command, name, '--directory', str(folder)]
    assert data_main.main(arguments) == 3, command
    found.append(capsys.readouterr().err)
  with pytest.raises(DataError) as raised:
    data.load(name, directory=str(folder), stand_in=True)
  found.append(str(raised.value))
  assert all(len(words.strip().splitlines()) <= 5 for words in found)
  return found


@pytest.mark.parametrize('name', PARTS)
@pytest.mark.parametrize('inside', ['', f'{NESTED}/lra_release/', 'x/y/'])
def test_another_folder_is_named(tmp_path, capsys, name, inside):
  manual = tmp_path / 'downloads' / 'manual'
  put(manual, [inside + part for part in PARTS[name]])
  for words in refusals(tmp_path, name, capsys):
    assert f'than expected: {manual}/{inside}{TOPS[name]}\n' in words
    assert f'Move it to {manual}/{NESTED}/{TOPS[name]}\n' in words
  # Done as it was said, it is found.
  place = manual / NESTED / TOPS[name]
  place.parent.mkdir(parents=True, exist_ok=True)
  os.rename(manual / inside / TOPS[name], place)
  known = data.KNOWN[name].release
  assert releases.find(known, manual) == manual / NESTED


@pytest.mark.parametrize('name', PARTS)
def test_the_content_without_its_folder_is_named(tmp_path, capsys, name):
  manual = tmp_path / 'downloads' / 'manual'
  put(manual, [part.partition('/')[2] for part in PARTS[name]])
  for words in refusals(tmp_path, name, capsys):
    assert f'than expected: {manual}/' in words
    assert f'Move it to {manual}/{NESTED}/{TOPS[name]}/' in words


def test_a_folder_of_other_images_only_is_named(tmp_path, capsys):
  manual = tmp_path / 'downloads' / 'manual'
  put(manual, [f'{NESTED}/pathfinder32/curv_baseline/imgs/0/sample_0.png'])
  for words in refusals(tmp_path, 'pathfinder32', capsys):
    assert f'not whole: pathfinder32/{HARD}/imgs is missing' in words
  put(manual, ['pathfinder64/curv_baseline/imgs/0/sample_0.png'])
  for words in refusals(tmp_path, 'pathfinder64', capsys):
    assert f'than expected: {manual}/pathfinder64\n' in words


@pytest.mark.parametrize('name', PARTS)
@pytest.mark.parametrize(
  'packed',
  ['lra_release.gz', 'lra_release.tar.gz', 'lra_release', 'x/lra_release.tgz'],
)
def test_a_packed_release_is_named(tmp_path, capsys, name, packed):
  manual = tmp_path / 'downloads' / 'manual'
  put(manual, [packed])
  for words in refusals(tmp_path, name, capsys):
    assert f'still packed: {manual}/{packed}\n' in words
    assert f'tar -xf {manual}/{packed} -C {manual}\n' in words


def test_one_packed_release_is_told_once(tmp_path, capsys):
  put(tmp_path / 'downloads' / 'manual', ['lra_release.gz'])
  assert data_main.main(['verify', '--directory', str(tmp_path)]) == 3
  out, err = capsys.readouterr()
  assert out.count('still packed') == err.count('still packed') == 1
  assert 'listops, pair, pathfinder128, pathfinder256, pathfinder32' in out


@pytest.mark.parametrize('place', ['lra_release', NESTED])
def test_one_in_its_place_is_taken_whatever_else_lies_there(tmp_path, place):
  put(tmp_path, [f'{place}/{part}' for part in PARTS['listops']])
  put(tmp_path, ['lra_release.gz', *PARTS['listops'], *PARTS['retrieval']])
  known = data.KNOWN['listops'].release
  assert releases.find(known, tmp_path) == tmp_path / place


def test_other_data_are_left_alone(tmp_path):
  put(
    tmp_path,
    [
      f'pathfinder64/{HARD}/imgs/0/sample_0.png', 'tsv_data/other.tsv',
      'lra_release.txt', 'new_aan_pairs.train.only_ids.tsv', 'imagenet/a.tar',
    ],
  )  # fmt: skip
  (tmp_path / 'pathfinder32').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path)
  (tmp_path / 'lra_release.gz').symlink_to(tmp_path / 'nowhere')
  for name in PARTS:
    assert releases.find(data.KNOWN[name].release, tmp_path) is None
  needed = data.KNOWN['listops'].release
  assert releases.find(needed, tmp_path / 'nowhere') is None


def test_a_search_has_an_end(tmp_path, monkeypatch):
  put(tmp_path, [f'{n}/{n}' for n in range(30)])
  (tmp_path / '0' / 'up').symlink_to(tmp_path)
  below = [entry.path for entry in releases._below(tmp_path)]
  assert len(below) == len(set(below)) == 61
  assert [pathlib.Path(path).parent for path in below[:30]] == [tmp_path] * 30
  for name, value, count in (
    ('_MAX_DEPTH', 1, 30), ('_MAX_ENTRIES', 40, 40), ('_MAX_IN_FOLDER', 5, 10),
  ):  # fmt: skip
    with monkeypatch.context() as patch:
      patch.setattr(releases, name, value)
      assert len(list(releases._below(tmp_path))) == count
