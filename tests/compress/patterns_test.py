"""Patterns: which weights of a group stay, and how these are stored."""

import jax
import numpy as np
import pytest

from effformer.compress import patterns

N = 3
PATTERNS = [(2, 4), (1, 3), (3, 5), (1, 40)]


def stays_by_hand(score_KN, n, m):
  """A stable sort of each group, one after the other."""
  keep_KN = np.zeros(score_KN.shape, bool)
  for column in range(score_KN.shape[1]):
    for start in range(0, len(score_KN), m):
      group = range(start, min(start + m, len(score_KN)))
      order = sorted(group, key=lambda i: (-score_KN[i, column], i))
      keep_KN[order[:n], column] = True
  return keep_KN


def weights(inputs, levels=0):
  """Normal numbers, or few whole ones, so that there are ties and zeros."""
  rng = np.random.default_rng(inputs)
  if levels:
    return rng.integers(-levels, levels + 1, (inputs, N)).astype('f4')
  return rng.normal(size=(inputs, N)).astype('f4')


@pytest.mark.parametrize('levels', [0, 1])
@pytest.mark.parametrize('inputs', [2, 4, 10, 41])
@pytest.mark.parametrize(('n', 'm'), PATTERNS)
def test_those_of_greatest_size_stay(n, m, inputs, levels):
  w_KN = weights(inputs, levels)
  keep_KN = stays_by_hand(np.abs(w_KN), n, m)
  thin_KN = jax.jit(lambda w: patterns.largest(w, n, m))(w_KN)
  np.testing.assert_array_equal(thin_KN, np.where(keep_KN, w_KN, 0))
  number = patterns.num_stay(inputs, n, m)
  np.testing.assert_array_equal(keep_KN.sum(axis=0), number)
  assert int(jax.jit(lambda k: patterns.num_stay(k, n, m))(inputs)) == number


@pytest.mark.parametrize('levels', [0, 1])
@pytest.mark.parametrize('inputs', [2, 4, 10, 41])
@pytest.mark.parametrize(('n', 'm'), PATTERNS)
def test_placing_gives_the_codes_that_were_taken(n, m, inputs, levels):
  w_KN = weights(inputs, levels)
  codes_KN = np.where(
    stays_by_hand(np.abs(w_KN), n, m), np.round(9 * w_KN), 0
  ).astype('i1')
  stored_JN, place_JN = patterns.taken(codes_KN, n, m)
  assert stored_JN.shape == place_JN.shape == (
    patterns.num_stay(inputs, n, m), N,
  )  # fmt: skip
  assert place_JN.max() < min(m, 2 ** patterns.place_bits(m))
  again_KN = patterns.placed(stored_JN, place_JN, inputs, n, m)
  np.testing.assert_array_equal(again_KN, codes_KN)
  assert again_KN.dtype == codes_KN.dtype


def test_the_layout():
  # Two zeros are stored: one in the second group, the first there is, and one
  # in the last, where there is nothing else.
  codes_K = [0, 7, 0, -5, 0, 0, 3, 0, 0, 1]
  stored_J1, place_J1 = patterns.taken(np.array(codes_K)[:, None], 2, 4)
  assert stored_J1.ravel().tolist() == [7, -5, 0, 3, 0, 1]
  assert place_J1.ravel().tolist() == [1, 3, 0, 2, 0, 1]


def test_bits_of_places():
  found = {m: patterns.place_bits(m) for m in (2, 3, 4, 5, 8, 256)}
  assert found == {2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 256: 8}


def test_codes_without_the_pattern_are_refused():
  codes_K1 = np.array([1, 0, 2, 3, 0])[:, None]
  with pytest.raises(ValueError, match='3 of 4 codes are not 0, and 2 of 4'):
    patterns.taken(codes_K1, 2, 4)


@pytest.mark.parametrize(
  ('inputs', 'places'),
  [
    (6, [1, 1, 0, 1]), (6, [3, 1, 0, 1]), (6, [-1, 2, 0, 1]),
    # Of the next group, and behind the last.
    (8, [0, 5, 2, 3]), (6, [0, 1, 0, 2]),
  ],
)  # fmt: skip
def test_places_that_cannot_be_are_refused(inputs, places):
  stored_J1, place_J1 = np.ones((4, 1), int), np.array(places)[:, None]
  good_J1 = np.array([0, 3, 0, 1])[:, None]
  found_K1 = patterns.placed(stored_J1, good_J1, 6, 2, 4)
  assert found_K1.ravel().tolist() == [1, 0, 0, 1, 1, 1]
  with pytest.raises(ValueError, match='not in their groups'):
    patterns.placed(stored_J1, place_J1, inputs, 2, 4)
