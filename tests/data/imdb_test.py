"""The IMDb archive: what is read, and what is refused."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import tarfile

import pytest

from effformer.data import imdb
from effformer.data.dataset import bucket
from effformer.errors import DataError

PER_CLASS = 12


def member(name, content=b'x', **changes):
  info = tarfile.TarInfo(name)
  info.size = len(content)
  for key, value in changes.items():
    setattr(info, key, value)
  return info, content


def reviews():
  """Out of order, as in the archive; two copies of each text in train."""
  found = [member('aclImdb', b'', type=tarfile.DIRTYPE)]
  for split in ('train', 'test'):
    for name in imdb.LABEL_NAMES:
      for number in reversed(range(PER_CLASS)):
        text = f'{split} {name} {number // 2} \xe9'.encode('latin-1')
        path = f'aclImdb/{split}/{name}/{number}_{number % 10}.txt'
        found.append(member(path, text))
  found.append(member('aclImdb/train/unsup/0_0.txt', b'no label'))
  found.append(member('aclImdb/README', b'read me'))
  return found


@pytest.fixture
def archive(tmp_path, monkeypatch):
  monkeypatch.setattr(imdb, 'PER_CLASS', PER_CLASS)

  def write(members):
    path = tmp_path / imdb.ARCHIVE.name
    with tarfile.open(path, 'w:gz') as file:
      for info, content in members:
        file.addfile(info, io.BytesIO(content))
    return path

  return write


def test_reads_every_review_in_order(archive):
  splits = imdb.read_archive(archive(reviews()))
  assert [e['id'] for e in splits['test']] == [
    f'test/{name}/{number}_{number % 10}'
    for name in ('neg', 'pos')
    for number in range(PER_CLASS)
  ]
  assert splits['test'][PER_CLASS + 2] == {
    'text': b'test pos 1 \xe9',
    'label': 1,
    'id': 'test/pos/2_2',
  }
  assert sum(map(len, splits.values())) == 4 * PER_CLASS


def test_copies_never_part(archive):
  splits = imdb.read_archive(archive(reviews()))
  texts = {s: {e['text'] for e in examples} for s, examples in splits.items()}
  assert texts['validation']
  assert not texts['train'] & texts['validation']
  assert {bucket(text) for text in texts['validation']} == {0}


NAMED, LINK = 'holds a file named', 'holds a link or device'
HOSTILE = {
  'parent': (NAMED, member('aclImdb/../../evil.txt')),
  'absolute': (NAMED, member('/etc/evil')),
  'backslash': (NAMED, member('aclImdb\\..\\evil')),
  'symlink': (
    LINK,
    member('aclImdb/a', b'', type=tarfile.SYMTYPE, linkname='/etc'),
  ),
  'hardlink': (
    LINK,
    member('aclImdb/b', b'', type=tarfile.LNKTYPE, linkname='x'),
  ),
  'device': (LINK, member('aclImdb/c', b'', type=tarfile.CHRTYPE)),
  'pipe': (LINK, member('aclImdb/d', b'', type=tarfile.FIFOTYPE)),
  'long review': (
    '9_9.txt has more than 1048576 bytes',
    member('aclImdb/test/pos/9_9.txt', b'x' * 2**21),
  ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_member_is_refused(archive, tmp_path, name):
  reason, hostile = HOSTILE[name]
  path = archive([*reviews(), hostile])
  with pytest.raises(DataError, match=reason):
    imdb.read_archive(path)
  assert os.listdir(tmp_path) == [imdb.ARCHIVE.name]


def test_bomb_is_refused_before_it_is_read(archive, monkeypatch):
  monkeypatch.setattr(imdb.ARCHIVE, 'max_member_bytes', 10_000)
  path = archive([member('aclImdb/vocab', bytes(10_001)), *reviews()])
  with pytest.raises(DataError, match='implausibly large'):
    imdb.read_archive(path)


def test_too_many_members_are_refused(archive, monkeypatch):
  monkeypatch.setattr(imdb.ARCHIVE, 'max_members', 20)
  with pytest.raises(DataError, match='more than 20 files'):
    imdb.read_archive(archive(reviews()))


def test_missing_review_is_refused(archive):
  without = [m for m in reviews() if m[0].name != 'aclImdb/test/pos/3_3.txt']
  with pytest.raises(DataError, match='holds 11 reviews test/pos'):
    imdb.read_archive(archive(without))


@pytest.mark.parametrize('share', [0.0, 0.3, 0.6])
def test_truncated_archive_is_refused(archive, share):
  path = archive(reviews())
  content = path.read_bytes()
  path.write_bytes(content[: int(share * len(content))])
  with pytest.raises(DataError, match='not the official IMDb archive'):
    imdb.read_archive(path)


def test_check_archive(archive, monkeypatch):
  path = archive(reviews())
  with pytest.raises(DataError, match='SHA-256'):
    imdb.ARCHIVE.check(path)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setattr(imdb.ARCHIVE, 'sha256', digest)
  imdb.ARCHIVE.check(path)


def test_download(archive, tmp_path, monkeypatch):
  served = archive(reviews())
  content = served.read_bytes()
  monkeypatch.setattr(imdb.ARCHIVE, 'url', served.as_uri())
  folder = tmp_path / 'downloads'
  with pytest.raises(DataError, match='SHA-256'):
    imdb.ARCHIVE.download(folder)
  assert os.listdir(folder) == []
  digest = hashlib.sha256(content).hexdigest()
  monkeypatch.setattr(imdb.ARCHIVE, 'sha256', digest)
  assert imdb.ARCHIVE.download(folder).read_bytes() == content
  assert os.listdir(folder) == [imdb.ARCHIVE.name]


def test_download_that_is_too_long_or_impossible(
  archive, tmp_path, monkeypatch
):
  monkeypatch.setattr(imdb.ARCHIVE, 'url', archive(reviews()).as_uri())
  monkeypatch.setattr(imdb.ARCHIVE, 'num_bytes', 10)
  with pytest.raises(DataError, match='more than 10 bytes'):
    imdb.ARCHIVE.download(tmp_path / 'downloads')
  monkeypatch.setattr(imdb.ARCHIVE, 'url', 'http://127.0.0.1:9/a.tar.gz')
  with pytest.raises(DataError, match='cannot download'):
    imdb.ARCHIVE.download(tmp_path / 'downloads')
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(DataError, match='cannot write'):
    imdb.ARCHIVE.download(tmp_path / 'file' / 'downloads')


def test_validation_split_of_the_real_reviews():
  """The counts that imdb.py documents."""
  folder = pathlib.Path(os.environ.get('EFFFORMER_TEST_DATA', ''))
  path = folder / 'imdb_train.jsonl.gz'
  if not path.is_file():
    pytest.skip('EFFFORMER_TEST_DATA names no folder with the real reviews')
  with gzip.open(path) as lines:
    texts = [json.loads(line)['text'].encode() for line in lines]
  train, validation = imdb.carve(
    [{'text': text, 'label': 0, 'id': ''} for text in texts]
  )
  assert (len(train), len(validation)) == (22_546, 2_454)
