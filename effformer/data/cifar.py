"""CIFAR-10 in grey, from the official archive in binary form.

Krizhevsky, 2009. 50,000 images of 32 x 32 for training, 10,000 for testing, as
many of each of 10 classes; here as 1,024 grey values (`images`). The archive
of pickled batches is not read, since reading it could execute anything.

LRA takes the last tenth of train for validation, in the order of TensorFlow
Datasets, which shuffles; here these are the last 5,000 in the order of the
archive: 45,000 are left.
"""

import pathlib
import re

import numpy as np

from effformer.data import images
from effformer.data.archives import Archive
from effformer.data.dataset import Example

# The hash is that of TensorFlow Datasets (cifar10/checksums.tsv).
ARCHIVE = Archive(
  title='CIFAR-10',
  url='https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
  sha256='c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
  num_bytes=170_052_171,
)
SIDE = 32
LABEL_NAMES = (
  *('airplane', 'automobile', 'bird', 'cat', 'deer'),
  *('dog', 'frog', 'horse', 'ship', 'truck'),
)
PER_FILE = 10_000
NUM_VALIDATION = 5_000

_FILES = (*(f'data_batch_{number}' for number in range(1, 6)), 'test_batch')
_MEMBER = re.compile(r'cifar-10-batches-bin/(\w+)\.bin')
# A label, and a plane of each colour.
_ROW_BYTES = 1 + 3 * SIDE * SIDE


def read_archive(path: pathlib.Path) -> dict[str, list[Example]]:
  """Splits of the archive, in its order.

  Raises:
    DataError: not a readable archive, unsafe, or images are missing.
  """
  size = PER_FILE * _ROW_BYTES
  found = {}
  for member, content in ARCHIVE.members(path, size):
    match = _MEMBER.fullmatch(member)
    if not match or match.group(1) not in _FILES:
      continue
    if len(content) != size:
      raise ARCHIVE.bad(path, f'{member} does not have {size} bytes')
    found[match.group(1)] = _examples(match.group(1), content)
  if absent := [name for name in _FILES if name not in found]:
    raise ARCHIVE.bad(path, f'holds no {absent[0]}.bin')
  for name, examples in found.items():
    if max(example['label'] for example in examples) >= len(LABEL_NAMES):
      raise ARCHIVE.bad(path, f'{name}.bin has a label above 9')
  train = [example for name in _FILES[:-1] for example in found[name]]
  return {
    'train': train[:-NUM_VALIDATION],
    'validation': train[-NUM_VALIDATION:],
    'test': found[_FILES[-1]],
  }


def _examples(name: str, content: bytes) -> list[Example]:
  rows = np.frombuffer(content, np.uint8).reshape(-1, _ROW_BYTES)
  planes_N3HW = rows[:, 1:].reshape(-1, 3, SIDE, SIDE)
  grey_NHW = images.grey(np.moveaxis(planes_N3HW, 1, -1))
  return [
    {'text': x_HW.tobytes(), 'label': int(label), 'id': f'{name}/{number}'}
    for number, (x_HW, label) in enumerate(
      zip(grey_NHW, rows[:, 0], strict=True)
    )
  ]
