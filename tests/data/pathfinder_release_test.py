"""Pathfinder: the release's folders, what is wrong with some, and ours."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from effformer import data
from effformer.data import __main__ as data_main
from effformer.data import (
  builders,
  catalogue,
  dataset,
  pathfinder,
  pathfinder_release,
)
from effformer.data.dataset import SPLITS
from effformer.errors import DataError

SIZES = {'train': 5, 'validation': 2, 'test': 3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(builders, 'PATHFINDER_SIZES', SIZES)
  monkeypatch.setattr(builders, '_CHUNK', 3)


def pictures():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (30, 32, 32), dtype=np.uint8)


@pytest.fixture
def release(tmp_path):
  """Thirty images in two folders, 2 and 10; returns the data folder."""
  place = tmp_path / 'downloads/manual/lra_release/lra_release/pathfinder32'
  place = place / 'curv_contour_length_14'
  lines = {'2': [], '10': []}
  for number, x_HW in enumerate(pictures()):
    folder = '2' if number < 12 else '10'
    path = place / 'imgs' / folder / f'sample_{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x_HW).save(path)
    lines[folder].append(
      f'imgs/{folder} sample_{number}.png {number} {number % 2} 1.0 14 5'
    )
  (place / 'metadata').mkdir()
  for folder, rows in lines.items():
    (place / 'metadata' / f'{folder}.npy').write_text('\n'.join(rows) + '\n')
  return tmp_path, place


def load(folder):
  return data.load('pathfinder32', directory=str(folder))


def examples(loaded):
  return {
    split: [source[i] for i in range(len(source))]
    for split, source in loaded.splits.items()
  }


def test_release_is_split_in_a_fixed_order(release):
  folder, _ = release
  loaded = load(folder)
  assert not loaded.stand_in
  assert 'release of LRA' in loaded.origin
  found = examples(loaded)
  assert [len(found[split]) for split in SPLITS] == [24, 3, 3]
  every = {e['id']: e for split in SPLITS for e in found[split]}
  assert len(every) == 30
  for number, x_HW in enumerate(pictures()):
    name = f'imgs/{"2" if number < 12 else "10"}/sample_{number}.png'
    assert every[name]['text'] == x_HW.tobytes()
    assert every[name]['label'] == number % 2
  # By number of the folder, not by its letters; then shuffled.
  numbers = [
    int(e['id'].partition('sample_')[2].removesuffix('.png'))
    for split in SPLITS
    for e in found[split]
  ]
  assert numbers == dataset.fixed_order(30).tolist() != list(range(30))


def test_empty_image_is_named_and_left_out(release, capsys):
  folder, place = release
  (place / 'imgs/2/sample_3.png').write_bytes(b'')
  found = examples(load(folder))
  assert 'imgs/2/sample_3.png' in capsys.readouterr().err
  assert sum(map(len, found.values())) == 29


def test_defects_are_named(release):
  folder, place = release
  meta = place / 'metadata/10.npy'
  good = meta.read_text()
  for old, new, reason in (
    ('14.png 14 0', '14.png 14 7', '3\nno label'),
    (
      'sample_14.png',
      'sample_99.png',
      '3\n.*sample_99.png, which is not there',
    ),
    ('imgs/10 sample_15.png', '../../x sample_15.png', '4\nit names'),
    ('imgs/10 sample_12.png', 'imgs/10', '1\nno label'),
  ):
    meta.write_text(good.replace(old, new, 1))
    with pytest.raises(DataError, match=rf'10.npy:{reason}'):
      load(folder)
  meta.write_text(good)
  Image.new('L', (32, 31)).save(place / 'imgs/10/sample_20.png')
  with pytest.raises(DataError, match=r'sample_20.png\n31 x 32, not 32 x 32'):
    load(folder)
  for path in (place / 'metadata').iterdir():
    path.unlink()
  with pytest.raises(DataError, match='names no images'):
    load(folder)


def verify(folder):
  return data_main.main(['verify', 'pathfinder32', '--directory', str(folder)])


def test_verify_finds_every_defect_of_a_release(release, capsys, monkeypatch):
  monkeypatch.setattr(pathfinder_release, 'COUNT', 30)
  folder, place = release
  assert verify(folder) == 0
  assert 'every image can be read, and no two' in capsys.readouterr().out

  meta = place / 'metadata/10.npy'
  meta.write_text(meta.read_text().replace('14.png 14 0', '14.png 14 7'))
  (place / 'imgs/2/sample_3.png').write_bytes(b'')
  (place / 'imgs/2/sample_4.png').write_bytes(b'no image')
  Image.new('L', (32, 31)).save(place / 'imgs/10/sample_20.png')
  shutil.copy(place / 'imgs/10/sample_21.png', place / 'imgs/10/sample_25.png')
  (place / 'imgs/10/sample_29.png').unlink()
  monkeypatch.setattr(pathfinder_release, 'COUNT', 31)
  assert verify(folder) == 3
  out, err = capsys.readouterr()
  for words in (
    'metadata/10.npy:3: no label',
    'sample_3.png: an empty file',
    'sample_4.png: not an image',
    'sample_20.png: 31 x 32, not 32 x 32',
    'sample_25.png: the same image as imgs/10/sample_21.png',
    '10.npy:18: it names imgs/10/sample_29.png, which is not there',
    'metadata: 30 images, not 31',
  ):
    assert words in out, words
  assert out.count('BAD') == 7
  assert '(and 6 more)' in err
  monkeypatch.setattr(data_main, 'MAX_SHOWN', 2)
  assert verify(folder) == 3
  out, _ = capsys.readouterr()
  assert out.count('BAD') == 2
  assert 'and 5 more' in out


def test_without_the_release_the_images_are_ours_and_say_so(tmp_path):
  loaded = load(tmp_path)
  assert not loaded.stand_in
  assert 'by our generator' in loaded.origin
  assert 'not the images of the release' in loaded.origin
  found = examples(loaded)
  assert [len(found[split]) for split in SPLITS] == [5, 2, 3]
  setting = pathfinder.SETTINGS[32, 'hard']
  images_NHW, labels_N = pathfinder.generate(setting, 0, 0, 10)
  every = [e for split in SPLITS for e in found[split]]
  assert [e['text'] for e in every] == [x.tobytes() for x in images_NHW]
  assert [e['label'] for e in every] == labels_N.tolist()
  assert catalogue.prepared('pathfinder32', tmp_path)[0].origin == loaded.origin


@pytest.mark.slow
def test_a_long_preparation_says_how_far_it_is(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(builders, '_TELL_EVERY', 0)
  load(tmp_path)
  err = capsys.readouterr().err
  assert 'pathfinder32: 3 of 5 images of this split are made' in err


def test_a_worker_that_is_killed_is_named():
  calls = [(9,), (os.getpid(),)]
  assert list(builders._in_processes(abs, calls)) == [9, os.getpid()]
  with pytest.raises(DataError, match='killed from outside'):
    list(builders._in_processes(os._exit, calls))


def is_alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.slow
def test_no_worker_outlives_its_parent(tmp_path, repository):
  program = (
    'import os, time\n'
    'from effformer.data import builders\n'
    "if __name__ == '__main__':\n"
    '  pids = builders._in_processes(divmod, [(1, 1)] * 50)\n'
    '  next(pids)\n'
    '  print([c.pid for c in builders.multiprocessing.active_children()])\n'
    '  os.kill(os.getpid(), 9)\n'
  )
  path = tmp_path / 'program.py'
  path.write_text(program)
  output = tmp_path / 'pids'
  with output.open('w') as file:
    # Not a pipe, which workers that live on would hold open.
    subprocess.run(
      [sys.executable, path], stdout=file, check=False,
      env={**os.environ, 'PYTHONPATH': str(repository)},
    )  # fmt: skip
  pids = json.loads(output.read_text())
  assert pids
  end = time.monotonic() + 20
  while left := [pid for pid in pids if is_alive(pid)]:
    assert time.monotonic() < end, f'still running: {left}'
    time.sleep(0.1)


@pytest.mark.slow
def test_the_release_comes_before_ours(release):
  folder, place = release
  hidden = folder / 'hidden'
  place.parent.rename(hidden)
  assert 'by our generator' in load(folder).origin
  hidden.rename(place.parent)
  assert 'release of LRA' in load(folder).origin


def test_the_largest_images_are_fewer(monkeypatch):
  monkeypatch.setattr(builders, 'PATHFINDER_SIZES', {'train': 50})
  assert builders.pathfinder_sizes(128) == {'train': 50}
  assert builders.pathfinder_sizes(256) == {'train': 5}
