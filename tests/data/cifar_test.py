"""The CIFAR-10 archive: what is read, and what is refused."""

import io
import os
import pathlib
import tarfile

import numpy as np
import pytest

from effformer import data
from effformer.data import cifar, images
from effformer.errors import DataError

PER_FILE = 6


def batch(number, last_label=9):
  """Rows of a label and three planes."""
  rng = np.random.default_rng(number)
  rows = rng.integers(0, 256, (PER_FILE, 1 + 3 * 32 * 32), dtype=np.uint8)
  rows[:, 0] = np.arange(PER_FILE) + number
  rows[-1, 0] = last_label
  return rows


@pytest.fixture
def archive(tmp_path, monkeypatch):
  monkeypatch.setattr(cifar, 'PER_FILE', PER_FILE)
  monkeypatch.setattr(cifar, 'NUM_VALIDATION', 4)

  def write(batches):
    path = tmp_path / cifar.ARCHIVE.name
    with tarfile.open(path, 'w:gz') as file:
      for name, content in batches.items():
        info = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return path

  return write


def batches():
  # Out of order, as they may stand in an archive.
  names = ['test_batch.bin', *(f'data_batch_{n}.bin' for n in (2, 1, 5, 3, 4))]
  found = {name: batch(n).tobytes() for n, name in enumerate(names)}
  return found | {'readme.html': b'read me', 'batches.meta.txt': b'airplane'}


def test_reads_train_in_the_order_of_the_archive(archive):
  splits = cifar.read_archive(archive(batches()))
  assert {s: len(rows) for s, rows in splits.items()} == {
    'train': 26, 'validation': 4, 'test': 6,
  }  # fmt: skip
  assert splits['train'][0]['id'] == 'data_batch_1/0'
  assert splits['validation'][-1]['id'] == 'data_batch_5/5'
  row = batch(2)[1]
  rgb_HW3 = np.moveaxis(row[1:].reshape(3, 32, 32), 0, -1)
  assert splits['train'][1] == {
    'text': images.grey(rgb_HW3).tobytes(),
    'label': int(row[0]),
    'id': 'data_batch_1/1',
  }


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'data_batch_3.bin': None}, 'holds no data_batch_3'),
    ({'test_batch.bin': b'short'}, 'test_batch.bin does not have'),
    ({'test_batch.bin': bytes(20_000)}, 'test_batch.bin does not have'),
    ({'data_batch_4.bin': batch(1, 10).tobytes()}, 'label above 9'),
    ({'../evil': b'x'}, 'holds a file named'),
  ],
)
def test_wrong_archives_are_refused(archive, tmp_path, change, reason):
  content = {**batches(), **change}
  path = archive({k: v for k, v in content.items() if v is not None})
  with pytest.raises(DataError, match=reason):
    cifar.read_archive(path)
  assert os.listdir(tmp_path) == [cifar.ARCHIVE.name]


def test_prepared_images_keep_every_byte(archive, tmp_path, monkeypatch):
  """Zeros at the end of an image would be lost as a NumPy string."""
  content = batches()
  rows = batch(1)
  rows[:, 1:] *= np.arange(3 * 32 * 32) % 1024 < 1000
  content['test_batch.bin'] = rows.tobytes()
  path = archive(content)
  monkeypatch.setattr(cifar.ARCHIVE, 'check', lambda path: None)
  manual = tmp_path / 'data' / 'downloads' / 'manual' / cifar.ARCHIVE.name
  manual.parent.mkdir(parents=True)
  os.rename(path, manual)
  loaded = data.load('image', directory=str(tmp_path / 'data'))
  expected = cifar.read_archive(manual)['test']
  assert not loaded.stand_in
  assert expected[0]['text'].endswith(b'\0' * 24)
  assert [loaded.splits['test'][i] for i in range(PER_FILE)] == expected


def test_real_images_have_the_known_means():
  """Of the copy that a developer may have, in other order."""
  folder = pathlib.Path(os.environ.get('EFFFORMER_TEST_DATA', ''))
  path = folder / 'cifar10_gray.npz'
  if not path.is_file():
    pytest.skip('EFFFORMER_TEST_DATA names no folder with cifar10_gray.npz')
  loaded = data.load('image', train=str(path), test=str(path))
  assert len(loaded.splits['test']) == 10_000
  total = sum(len(source) for source in loaded.splits.values())
  assert total == 60_000
