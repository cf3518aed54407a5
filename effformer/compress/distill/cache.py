"""What a teacher says of each example, computed once and kept.

    FOLDER/DIGEST/part-00000.npz ...   rows in the order of the examples
    FOLDER/DIGEST/manifest.json        of what they are, and their hashes

DIGEST is of the teacher's parameters, the data and the settings: another
teacher has another place. The manifest is written last and nothing is read
before all hashes agree; a cache that is damaged, cut off or another's is named
and made again. All of it is held in memory.
"""

import contextlib
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from effformer import durable
from effformer.errors import CheckpointError, ConfigError

FORMAT = 'effformer teacher outputs 1'
MANIFEST = 'manifest.json'
DTYPES = ('float16', 'float32')
ROWS_PER_FILE = 4096

# Batches of a teacher: numbers of the examples [B], -1 for a row that fills up
# a batch, and its arrays by name, [B, ...].
Outputs = Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]


class Facts(NamedTuple):
  """What decides what a teacher says.

  Attributes:
    params_sha256: `state.digest` of its parameters.
    data_sha256: of the examples, in order.
    settings: all else: length of texts, what was captured; JSON values.
    num_examples: N.
    dtype: of stored floats, 'float16' or 'float32'.
  """

  params_sha256: str
  data_sha256: str
  settings: Mapping[str, Any]
  num_examples: int
  dtype: str = 'float32'

  @property
  def body(self) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps({'format': FORMAT, **self._asdict()}))

  @property
  def digest(self) -> str:
    """SHA-256 of all facts."""
    text = json.dumps(self.body, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Cache(NamedTuple):
  """Outputs of a teacher.

  Attributes:
    arrays: by name, [N, ...], as they are stored.
    remade: why what lay there could not be used, '' if it was used or if
      there was nothing.
  """

  arrays: dict[str, np.ndarray]
  remade: str = ''

  def rows(self, index_B: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of these examples, floats as float32.

    Args:
      index_B: numbers of examples, `index_B` of a batch. -1, of rows that fill
        up a batch with copies of the last example, is the last example.

    Raises:
      ValueError: there is no such example.
    """
    index_B = np.asarray(index_B)
    number = len(next(iter(self.arrays.values())))
    if index_B.size and not -1 <= index_B.min() <= index_B.max() < number:
      raise ValueError(
        f'examples {index_B.min()} to {index_B.max()} of {number} examples'
      )
    found = {name: x[index_B] for name, x in self.arrays.items()}
    return {
      name: x.astype(np.float32) if _is_float(x) else x
      for name, x in found.items()
    }


def load_or_make(
  folder: str | pathlib.Path, facts: Facts, make: Callable[[], Outputs]
) -> Cache:
  """The outputs of a teacher, read if they are there.

  Args:
    folder: of caches; made if it is not there.
    facts: what they are outputs of.
    make: asks the teacher; every example once, in order.

  Raises:
    ConfigError: no such type, or a number is too large for it.
    CheckpointError: the cache cannot be written.
    ValueError: `make` leaves out an example, or gives others than it should.
  """
  if facts.num_examples < 1:
    raise ValueError(f'no outputs of {facts.num_examples} examples')
  if facts.dtype not in DTYPES:
    raise ConfigError(
      f'outputs of a teacher are kept as {" or ".join(DTYPES)}, not as '
      f'{facts.dtype!r}.'
    )
  place = pathlib.Path(folder) / facts.digest[:32]
  remade = ''
  if place.exists():
    arrays, reason = _read(place, facts)
    if not reason:
      return Cache(arrays)
    remade = f'{place} {reason}; it is made again'
  return Cache(_write(place, facts, make()), remade)


def _read(place, facts):
  """Arrays by name, and '' or why they cannot be used."""
  try:
    manifest = durable.read_json(place / MANIFEST)
  except CheckpointError:
    return {}, f'is damaged: {MANIFEST} cannot be read'
  if manifest is None:
    return {}, f'was not finished: it has no {MANIFEST}'
  if manifest.get('facts') != facts.body:
    return {}, 'is of another teacher, other data or settings'
  hashes, parts = manifest.get('parts'), []
  if not isinstance(hashes, list) or not hashes:
    return {}, f'is damaged: {MANIFEST} names no parts'
  for number, expected in enumerate(hashes):
    name = _name(number)
    try:
      data = (place / name).read_bytes()
      if hashlib.sha256(data).hexdigest() != expected:
        return {}, f'is damaged: {name} is not the file that was written'
      with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        parts.append(dict(arrays))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      return {}, f'is damaged: {name}: {durable.reason(error)}'
  arrays = _joined(parts)
  if any(len(x) != facts.num_examples for x in arrays.values()):
    return {}, 'is damaged: it has not a row for each example'
  return arrays, ''


def _write(place, facts, outputs):
  with _writing(place):
    place.mkdir(parents=True, exist_ok=True)
    # Without it nothing is read: what follows may be cut off anywhere.
    (place / MANIFEST).unlink(missing_ok=True)
    durable.sync(place)
  parts, hashes = [], []
  for part in _parts(facts, outputs):
    buffer = io.BytesIO()
    np.savez(buffer, **part)
    with _writing(place):
      durable.put(place / _name(len(parts)), buffer.getvalue())
    hashes.append(hashlib.sha256(buffer.getvalue()).hexdigest())
    parts.append(part)
  manifest = {'facts': facts.body, 'parts': hashes}
  text = json.dumps(manifest, indent=1, sort_keys=True) + '\n'
  with _writing(place):
    durable.put(place / MANIFEST, text.encode())
  return _joined(parts)


@contextlib.contextmanager
def _writing(place):
  try:
    yield
  except OSError as error:
    raise CheckpointError(
      f'cannot keep outputs of the teacher in {place}: '
      f'{durable.reason(error)}\n'
      'Free space or choose another folder; what is there is not used.'
    ) from error


def _parts(facts, outputs):
  """Arrays of at most `ROWS_PER_FILE` rows, as they are stored."""
  batches, waiting, done = [], 0, 0
  for index_B, arrays in outputs:
    index_B = np.asarray(index_B)
    is_real_B = index_B >= 0
    number = int(is_real_B.sum())
    expected = np.arange(done, done + number)
    if not np.array_equal(index_B[is_real_B], expected):
      raise ValueError(
        f'examples {index_B[is_real_B].tolist()} came where {done} and those '
        'after it should'
      )
    done, waiting = done + number, waiting + number
    batches.append(
      {
        name: _stored(name, np.asarray(x)[is_real_B], facts.dtype)
        for name, x in arrays.items()
      }
    )
    while waiting >= ROWS_PER_FILE:
      whole = _joined(batches)
      yield {name: x[:ROWS_PER_FILE] for name, x in whole.items()}
      batches = [{name: x[ROWS_PER_FILE:] for name, x in whole.items()}]
      waiting -= ROWS_PER_FILE
  if done != facts.num_examples:
    raise ValueError(f'{done} examples came of {facts.num_examples}')
  if waiting:
    yield _joined(batches)


def _stored(name, x, dtype):
  if not _is_float(x):
    return x
  with np.errstate(over='ignore'):
    stored = x.astype(dtype)
  if not np.array_equal(np.isfinite(stored), np.isfinite(x)):
    raise ConfigError(
      f'{name} of the teacher has numbers as large as '
      f'{np.abs(x[np.isfinite(x)]).max():.3g}, too large for {dtype}.\n'
      'Keep them as float32.'
    )
  return stored


def _is_float(x):
  # Those of bfloat16 are of another kind to NumPy.
  return x.dtype.kind == 'f' or x.dtype.name == 'bfloat16'


def _joined(parts):
  names = set(parts[0])
  if any(set(part) != names for part in parts):
    raise ValueError('not all parts have the same arrays')
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }


def _name(number):
  return f'part-{number:05}.npz'
