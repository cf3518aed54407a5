"""IMDb reviews as bytes, from the official archive aclImdb_v1.tar.gz.

Maas et al., 2011 (ACL). 25,000 labelled reviews for training and 25,000 for
testing, half of each positive; the unlabelled ones are not read. LRA selects
models on the test split. Here a validation split is carved from train by a
hash of the text (`dataset.bucket` is 0): 2,454 of the 25,000, which leaves
22,546; copies of a text never part.
"""

import pathlib
import re
from collections.abc import Iterator

from effformer.data.archives import Archive
from effformer.data.dataset import Example, bucket

# The hash is that of TensorFlow Datasets (imdb_reviews/checksums.tsv).
ARCHIVE = Archive(
  title='IMDb',
  url='https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz',
  sha256='c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe',
  num_bytes=84_125_825,
)
PER_CLASS = 12_500
LABEL_NAMES = ('neg', 'pos')

_MEMBER = re.compile(r'aclImdb/(train|test)/(neg|pos)/(\d{1,6})_\d{1,2}\.txt')
_MAX_REVIEW_BYTES = 1 << 20


def read_archive(path: pathlib.Path) -> dict[str, list[Example]]:
  """Splits of the archive; by label, then by the number in the file name.

  Raises:
    DataError: not a readable archive, unsafe, or reviews are missing.
  """
  found = {'train': [], 'test': []}
  for split, label, number, name, text in _reviews(path):
    found[split].append((label, number, name, text))
  for split, reviews in found.items():
    for label, label_name in enumerate(LABEL_NAMES):
      count = sum(review[0] == label for review in reviews)
      if count != PER_CLASS:
        raise ARCHIVE.bad(
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


def _reviews(path: pathlib.Path) -> Iterator[tuple[str, int, int, str, bytes]]:
  for member, text in ARCHIVE.members(path, _MAX_REVIEW_BYTES):
    match = _MEMBER.fullmatch(member)
    if not match:
      continue
    if len(text) > _MAX_REVIEW_BYTES:
      raise ARCHIVE.bad(
        path, f'{member} has more than {_MAX_REVIEW_BYTES} bytes'
      )
    split, label_name, number = match.groups()
    name = member.removeprefix('aclImdb/').removesuffix('.txt')
    yield split, LABEL_NAMES.index(label_name), int(number), name, text
