"""Outputs of a teacher on disk: the same numbers, and nothing damaged."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress.distill import cache
from effformer.errors import CheckpointError, ConfigError

N, B, T, D, C = 11, 4, 3, 5, 2
FACTS = cache.Facts('a' * 64, 'b' * 64, {'max_length': 8, 'what': ['x']}, N)


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'logits_BC': rng.normal(size=(N, C)).astype('f4'),
    'states_BTD': 100 * rng.normal(size=(N, T, D)).astype('f4'),
    'keep_BT': rng.random((N, T)) < 0.5,
    'label_B': rng.integers(0, 9, N).astype('i4'),
  }


class Teacher:
  """Batches in order, the last one filled up; counts how often it is asked."""

  def __init__(self, outputs=None):
    self.outputs = arrays() if outputs is None else outputs
    self.asked = 0

  def __call__(self):
    self.asked += 1
    for first in range(0, N, B):
      index_B = np.arange(first, first + B)
      last_B = np.minimum(index_B, N - 1)
      yield (
        np.where(index_B < N, index_B, -1),
        {name: x[last_B] for name, x in self.outputs.items()},
      )


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
  monkeypatch.setattr(cache, 'ROWS_PER_FILE', 3)


def place_of(folder, facts=FACTS):
  return folder / facts.digest[:32]


def check_rows(found, dtype):
  index_B = np.array([7, 0, 7, 10, -1])
  for name, x in found.rows(index_B).items():
    expected = arrays()[name]
    if expected.dtype == np.float32:
      expected = expected.astype(dtype).astype('f4')
    assert x.dtype == expected.dtype
    np.testing.assert_array_equal(x, expected[[7, 0, 7, 10, 10]])


@pytest.mark.parametrize('dtype', cache.DTYPES)
def test_the_teacher_is_asked_once(tmp_path, dtype):
  facts, teacher = FACTS._replace(dtype=dtype), Teacher()
  folder = tmp_path / 'kept'
  for _ in range(2):
    found = cache.load_or_make(folder, facts, teacher)
    assert found.remade == ''
    assert found.arrays['logits_BC'].dtype == dtype
    check_rows(found, dtype)
  assert teacher.asked == 1
  # Three rows a file; nothing beside.
  names = [f'part-0000{part}.npz' for part in range(4)]
  assert sorted(p.name for p in place_of(folder, facts).iterdir()) == [
    cache.MANIFEST,
    *names,
  ]
  sizes = [
    len(np.load(place_of(folder, facts) / name)['label_B']) for name in names
  ]
  assert sizes == [3, 3, 3, 2]


def test_half_precision_is_half_the_size(tmp_path):
  sizes = []
  for dtype in cache.DTYPES:
    facts = FACTS._replace(dtype=dtype)
    cache.load_or_make(tmp_path, facts, Teacher())
    files = place_of(tmp_path, facts).glob('*.npz')
    sizes.append(sum(path.stat().st_size for path in files))
  assert sizes[1] - sizes[0] == 2 * N * (C + T * D)


@pytest.mark.parametrize(
  'other',
  [
    {'params_sha256': 'c' * 64}, {'data_sha256': 'c' * 64},
    {'settings': {'max_length': 9, 'what': ['x']}}, {'dtype': 'float16'},
  ],
  ids=str,
)  # fmt: skip
def test_another_teacher_has_another_place(tmp_path, other):
  first, second = Teacher(), Teacher()
  cache.load_or_make(tmp_path, FACTS, first)
  facts = FACTS._replace(**other)
  assert cache.load_or_make(tmp_path, facts, second).remade == ''
  assert second.asked == 1
  assert len(list(tmp_path.iterdir())) == 2
  cache.load_or_make(tmp_path, FACTS, first)
  assert first.asked == 1


def test_settings_are_compared_by_what_they_say(tmp_path):
  teacher = Teacher()
  cache.load_or_make(tmp_path, FACTS, teacher)
  same = FACTS._replace(settings={'what': ('x',), 'max_length': 8})
  check_rows(cache.load_or_make(tmp_path, same, teacher), 'float32')
  assert teacher.asked == 1


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def without_hashes(path):
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps({**manifest, 'parts': []}))


def with_fewer_parts(path):
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps({**manifest, 'parts': manifest['parts'][:2]}))


def of_other_data(path):
  manifest = json.loads(path.read_text())
  manifest['facts']['data_sha256'] = 'e' * 64
  path.write_text(json.dumps(manifest))


DAMAGE = {
  'bits': ('part-00001.npz', flip, 'part-00001.npz is not the file'),
  'cut': (
    'part-00002.npz',
    lambda p: p.write_bytes(p.read_bytes()[:50]),
    'part-00002.npz is not the file',
  ),
  'lost': ('part-00003.npz', lambda p: p.unlink(), 'No such file'),
  'no manifest': (cache.MANIFEST, lambda p: p.unlink(), 'was not finished'),
  'no json': (
    cache.MANIFEST, lambda p: p.write_text('{'), 'manifest.json cannot be read'
  ),
  'no parts': (cache.MANIFEST, without_hashes, 'names no parts'),
  'fewer parts': (cache.MANIFEST, with_fewer_parts, 'a row for each example'),
  'foreign': (cache.MANIFEST, of_other_data, 'is of another teacher'),
}  # fmt: skip


@pytest.mark.parametrize('name', DAMAGE)
def test_what_is_damaged_is_named_and_made_again(tmp_path, name):
  file, damage, message = DAMAGE[name]
  teacher = Teacher()
  cache.load_or_make(tmp_path, FACTS, teacher)
  damage(place_of(tmp_path) / file)
  found = cache.load_or_make(tmp_path, FACTS, teacher)
  assert message in found.remade
  assert str(place_of(tmp_path)) in found.remade
  assert teacher.asked == 2
  check_rows(found, 'float32')
  # And is whole now.
  again = cache.load_or_make(tmp_path, FACTS, teacher)
  assert (again.remade, teacher.asked) == ('', 2)
  check_rows(again, 'float32')


def test_a_teacher_that_is_interrupted_leaves_nothing_that_is_read(tmp_path):
  def interrupted():
    yield from list(Teacher()())[:2]
    raise KeyboardInterrupt

  for before in ('nothing', 'a whole cache that is damaged'):
    if before != 'nothing':
      cache.load_or_make(tmp_path, FACTS, Teacher())
      flip(place_of(tmp_path) / 'part-00000.npz')
    with pytest.raises(KeyboardInterrupt):
      cache.load_or_make(tmp_path, FACTS, interrupted)
    assert not (place_of(tmp_path) / cache.MANIFEST).exists()
    assert any(place_of(tmp_path).iterdir())
    found = cache.load_or_make(tmp_path, FACTS, Teacher())
    assert 'was not finished' in found.remade
    check_rows(found, 'float32')


def test_bfloat16_is_kept_as_float32(tmp_path):
  low = {
    'logits_BC': np.asarray(jnp.asarray(arrays()['logits_BC'], 'bfloat16'))
  }
  found = cache.load_or_make(tmp_path, FACTS, Teacher(low))
  assert found.arrays['logits_BC'].dtype == np.float32
  np.testing.assert_array_equal(
    found.rows(np.arange(N))['logits_BC'], low['logits_BC'].astype('f4')
  )


def test_numbers_that_half_precision_cannot_hold(tmp_path):
  outputs = arrays()
  outputs['states_BTD'][9, 1, 2] = -70_000
  facts = FACTS._replace(dtype='float16')
  with pytest.raises(ConfigError, match=r'states_BTD .* 7e\+04, too large'):
    cache.load_or_make(tmp_path, facts, Teacher(outputs))
  assert cache.load_or_make(tmp_path, FACTS, Teacher(outputs)).remade == ''


def test_examples_that_are_not_in_order(tmp_path):
  batches = list(Teacher()())
  one_more = np.array([11]), {n: x[:1] for n, x in batches[0][1].items()}
  for wrong, message in (
    (batches[1:], 'came where 0 and those after'),
    ([batches[0], batches[0]], 'came where 4'),
    (batches[:2], '8 examples came of 11'),
    ([*batches, one_more], '12 examples came'),
    ([batches[0], (np.arange(4, 8), {})], 'not all parts have the same'),
  ):
    with pytest.raises(ValueError, match=message):
      cache.load_or_make(tmp_path, FACTS, lambda given=wrong: given)


def test_examples_that_do_not_exist(tmp_path):
  found = cache.load_or_make(tmp_path, FACTS, Teacher())
  for index in (N, -2):
    with pytest.raises(ValueError, match='of 11 examples'):
      found.rows(np.array([0, index]))
  with pytest.raises(ValueError, match='no outputs of 0 examples'):
    cache.load_or_make(tmp_path, FACTS._replace(num_examples=0), Teacher())
  with pytest.raises(ConfigError, match="not as 'int8'"):
    cache.load_or_make(tmp_path, FACTS._replace(dtype='int8'), Teacher())


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='cannot keep outputs of the teach'):
    cache.load_or_make(tmp_path / 'file' / 'kept', FACTS, Teacher())


def test_errors_of_the_teacher_are_its_own(tmp_path):
  def without_data():
    yield from list(Teacher()())[:1]
    raise FileNotFoundError('the examples')

  with pytest.raises(FileNotFoundError, match='the examples'):
    cache.load_or_make(tmp_path, FACTS, without_data)
