"""IMDb reviews as bytes, from the official archive aclImdb_v1.tar.gz.

Maas et al., 2011 (ACL). 25,000 labelled reviews for training and 25,000 for
testing, half of each positive; the unlabelled ones are not read. LRA selects
models on the test split. Here a validation split is carved from train by a
hash of the text (`dataset.bucket` is 0): 2,454 of the 25,000, which leaves
22,546; copies of a text never part.

The archive is read as a stream and nothing is unpacked to disk. An archive
with links, devices, names that leave its folder or files of implausible size
is refused as a whole.
"""

import hashlib
import http.client
import os
import pathlib
import re
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator

from effformer.data.dataset import Example, bucket
from effformer.errors import DataError

ARCHIVE = 'aclImdb_v1.tar.gz'
URL = f'https://ai.stanford.edu/~amaas/data/sentiment/{ARCHIVE}'
# As published by TensorFlow Datasets (imdb_reviews/checksums.tsv).
SHA256 = 'c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe'
NUM_BYTES = 84_125_825
PER_CLASS = 12_500
LABEL_NAMES = ('neg', 'pos')

_MEMBER = re.compile(r'aclImdb/(train|test)/(neg|pos)/(\d{1,6})_\d{1,2}\.txt')
_MAX_REVIEW_BYTES = 1 << 20
_MAX_MEMBER_BYTES = 1 << 28
_MAX_TOTAL_BYTES = 1 << 30
_MAX_MEMBERS = 200_000
_TIMEOUT_SECONDS = 10
_BLOCK_BYTES = 1 << 20


def read_archive(path: pathlib.Path) -> dict[str, list[Example]]:
  """Splits of the archive; by label, then by the number in the file name.

  Raises:
    DataError: not a readable archive, unsafe, or reviews are missing.
  """
  found = {'train': [], 'test': []}
  try:
    for split, label, number, name, text in _reviews(path):
      found[split].append((label, number, name, text))
  except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
    raise _bad(path, f'cannot be read ({error})') from error
  for split, reviews in found.items():
    for label, label_name in enumerate(LABEL_NAMES):
      count = sum(review[0] == label for review in reviews)
      if count != PER_CLASS:
        raise _bad(
          path, f'holds {count} reviews {split}/{label_name}, not {PER_CLASS}'
        )
  examples = {
    split: [
      {'text': text, 'label': label, 'id': name}
      for label, _, name, text in sorted(reviews)
    ]
    for split, reviews in found.items()
  }
  train, validation = carve(examples['train'])
  return {'train': train, 'validation': validation, 'test': examples['test']}


def carve(train: list[Example]) -> tuple[list[Example], list[Example]]:
  """Train and validation from the official train split; order is kept."""
  parts = ([], [])
  for example in train:
    parts[bucket(example['text']) == 0].append(example)
  return parts


def check_archive(path: pathlib.Path) -> None:
  """Raises DataError unless `path` is the official archive, byte for byte."""
  digest = hashlib.sha256()
  try:
    with open(path, 'rb') as file:
      while block := file.read(_BLOCK_BYTES):
        digest.update(block)
  except OSError as error:
    raise _bad(path, f'cannot be read ({error})') from error
  if digest.hexdigest() != SHA256:
    raise _bad(path, f'has SHA-256 {digest.hexdigest()}, not {SHA256}')


def download(folder: pathlib.Path) -> pathlib.Path:
  """Downloads and checks the archive; `folder` holds it afterwards.

  Raises:
    DataError: no connection within ten seconds, or not the official archive.
  """
  target = folder / ARCHIVE
  if target.exists():
    check_archive(target)
    return target
  # Of this process alone: another one may download at the same time.
  part = folder / f'{ARCHIVE}.{os.getpid()}.part'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise DataError(f'cannot write to {folder}: {error}') from error
  try:
    with (
      urllib.request.urlopen(URL, timeout=_TIMEOUT_SECONDS) as response,
      open(part, 'wb') as file,
    ):
      num_bytes = 0
      while block := response.read(_BLOCK_BYTES):
        num_bytes += len(block)
        if num_bytes > NUM_BYTES:
          raise DataError(f'{URL} sends more than {NUM_BYTES} bytes.')
        file.write(block)
    check_archive(part)
    part.rename(target)
  except (OSError, http.client.HTTPException) as error:
    raise DataError(f'cannot download {URL}: {error}') from error
  finally:
    part.unlink(missing_ok=True)
  return target


def _reviews(path: pathlib.Path) -> Iterator[tuple[str, int, int, str, bytes]]:
  total = 0
  with tarfile.open(path, 'r|gz') as archive:
    for count, member in enumerate(archive):
      total += member.size
      _check_member(path, member, count, total)
      match = _MEMBER.fullmatch(member.name)
      if not match or not member.isfile():
        continue
      if member.size > _MAX_REVIEW_BYTES:
        raise _bad(path, f'{member.name} has {member.size} bytes')
      text = archive.extractfile(member).read()
      split, label_name, number = match.groups()
      name = member.name.removeprefix('aclImdb/').removesuffix('.txt')
      yield split, LABEL_NAMES.index(label_name), int(number), name, text


def _check_member(path, member: tarfile.TarInfo, count: int, total: int):
  name = member.name
  if name.startswith('/') or '..' in name.split('/') or '\\' in name:
    raise _bad(path, f'holds a file named {name[:80]!r}')
  if not (member.isfile() or member.isdir()):
    raise _bad(path, f'holds a link or device {name[:80]!r}')
  if member.size > _MAX_MEMBER_BYTES or total > _MAX_TOTAL_BYTES:
    raise _bad(path, f'grows implausibly large at {name[:80]!r}')
  if count >= _MAX_MEMBERS:
    raise _bad(path, f'holds more than {_MAX_MEMBERS} files')


def _bad(path: pathlib.Path, reason: str) -> DataError:
  return DataError(
    f'not the official IMDb archive: {path}\n{reason}.\n'
    f'Delete it, and download {URL} again.'
  )
