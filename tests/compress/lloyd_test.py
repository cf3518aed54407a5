"""Codebooks against Lloyd's algorithm as it is written, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import lloyd

T, N = 45, 3


def numbers(seed=0, length=T):
  """Of three clouds, unequal in size."""
  rng = np.random.default_rng(seed)
  w_TN = rng.normal(size=(length, N))
  w_TN[: length // 3] *= 0.1
  w_TN[-length // 5 :] += 4
  return rng.permuted(w_TN, axis=0).astype('f4')


def weights(seed=1, length=T):
  return np.random.default_rng(seed).exponential(size=(length, N)).astype('f4')


def even(w, number):
  return np.linspace(w.min(), w.max(), number)


def nearest(w, values):
  """By all distances; the lower one of two that are as near."""
  return np.abs(w[:, None].astype('f8') - values[None]).argmin(axis=1)


def by_hand(w, h, bits, start=None):
  """One column, by the two steps in turns."""
  w, h = w.astype('f8'), h.astype('f8')
  values = even(w, 2**bits) if start is None else start.copy()
  while True:
    codes, before = nearest(w, values), values.copy()
    for v in set(codes):
      own = codes == v
      if h[own].sum() > 0:
        values[v] = (h[own] * w[own]).sum() / h[own].sum()
    if np.array_equal(values, before):
      return values


def error(w_TN, codebook_VN, h_TN=1.0):
  """By each column, with the nearest value of each number."""
  distance_TVN = np.abs(w_TN[:, None].astype('f8') - codebook_VN[None])
  return (h_TN * distance_TVN.min(axis=1) ** 2).sum(axis=0)


@pytest.mark.parametrize('bits', [1, 2, 4])
@pytest.mark.parametrize('is_weighted', [False, True])
def test_the_values_are_those_of_the_algorithm(bits, is_weighted):
  w_TN, h_TN = numbers(), weights()
  found_VN = lloyd.codebook(w_TN, bits, h_TN if is_weighted else None)
  assert found_VN.shape == (2**bits, N)
  assert found_VN.dtype == jnp.float32
  for n in range(N):
    h_T = h_TN[:, n] if is_weighted else np.ones(T)
    expected_V = by_hand(w_TN[:, n], h_T, bits)
    np.testing.assert_allclose(found_VN[:, n], expected_V, rtol=1e-5, atol=1e-6)


def test_it_starts_with_what_is_given():
  w_TN = numbers()
  start_VN = np.sort(np.random.default_rng(6).normal(size=(4, N)), axis=0)
  found_VN = lloyd.codebook(w_TN, 2, start_VN=start_VN.astype('f4'))
  for n in range(N):
    expected_V = by_hand(w_TN[:, n], np.ones(T), 2, start_VN[:, n])
    np.testing.assert_allclose(found_VN[:, n], expected_V, rtol=1e-5)
  assert np.any(np.abs(found_VN - lloyd.codebook(w_TN, 2)) > 1e-3)


def test_it_starts_evenly_and_no_turn_is_worse():
  w_TN = numbers(length=400)
  errors = []
  for turns in range(8):
    found_VN = lloyd.codebook(w_TN, 3, most_turns=turns)
    errors.append(error(w_TN, found_VN))
    if not turns:
      expected = [even(w_TN[:, n], 8) for n in range(N)]
      np.testing.assert_allclose(found_VN, np.transpose(expected), rtol=1e-5)
  errors.append(error(w_TN, lloyd.codebook(w_TN, 3)))
  for before, after in itertools.pairwise(errors):
    assert np.all(after <= before * (1 + 1e-6))
  assert np.all(errors[1] < errors[0])
  assert np.all(errors[-1] < 0.8 * errors[0])


@pytest.mark.parametrize('is_weighted', [False, True])
def test_it_ends_where_nothing_changes(is_weighted):
  w_TN = numbers(length=400)
  h_TN = weights(length=400) if is_weighted else np.ones((400, N), 'f4')
  found_VN = np.asarray(lloyd.codebook(w_TN, 3, h_TN if is_weighted else None))
  assert np.all(np.diff(found_VN, axis=0) > 0)
  for n in range(N):
    codes_T = nearest(w_TN[:, n], found_VN[:, n])
    mass_V = np.bincount(codes_T, h_TN[:, n], 8)
    mean_V = np.bincount(codes_T, h_TN[:, n] * w_TN[:, n], 8) / mass_V
    np.testing.assert_allclose(found_VN[:, n], mean_V, rtol=1e-5, atol=1e-6)


def best(w, number):
  """The least error of all: clusters of sorted numbers are ranges."""
  w = np.sort(w.astype('f8'))
  return min(
    sum(((own - own.mean()) ** 2).sum() for own in np.split(w, ends))
    for ends in itertools.combinations(range(1, len(w)), number - 1)
  )


def test_the_least_error_is_found_where_clusters_are_apart():
  rng = np.random.default_rng(2)
  w_TN = np.concatenate(
    [x + 0.1 * rng.normal(size=(3, N)) for x in (-2, 0, 3, 5)]
  ).astype('f4')
  found = error(w_TN, lloyd.codebook(w_TN, 2))
  for n in range(N):
    np.testing.assert_allclose(found[n], best(w_TN[:, n], 4), rtol=1e-5)
  # Without clusters it may be missed, and never undercut.
  w_TN = rng.normal(size=(12, N)).astype('f4')
  found = error(w_TN, lloyd.codebook(w_TN, 2))
  least = [best(w_TN[:, n], 4) for n in range(N)]
  assert np.all(found >= np.multiply(least, 1 - 1e-6))


def test_a_number_in_the_middle_goes_to_the_lower_value():
  found_V1 = lloyd.codebook(np.array([[0], [1], [4], [8]], 'f4'), 1)
  np.testing.assert_allclose(np.ravel(found_V1), [5 / 3, 8], rtol=1e-6)


def test_the_mean_of_equal_numbers_is_that_number():
  """Their sum has other last bits, and would leave its range."""
  low_1N = np.random.default_rng(0).uniform(1, 2, size=(1, 40)).astype('f4')
  w_TN = np.concatenate([np.repeat(low_1N, 11, axis=0), low_1N + 8, low_1N + 9])
  found_VN = lloyd.codebook(w_TN, 1)
  np.testing.assert_array_equal(found_VN[:1], low_1N)


def test_weights_are_repetitions():
  rng = np.random.default_rng(0)
  times_T = rng.integers(0, 4, T)
  w_TN = numbers()
  # Those that do not count are still between the ends.
  times_T[np.r_[w_TN.argmin(axis=0), w_TN.argmax(axis=0)]] = 1
  h_TN = np.repeat(times_T[:, None], N, axis=1).astype('f4')
  np.testing.assert_allclose(
    lloyd.codebook(w_TN, 2, h_TN),
    lloyd.codebook(np.repeat(w_TN, times_T, axis=0), 2),
    rtol=1e-5,
  )


def test_a_value_that_stands_for_nothing_stays():
  # Evenly spaced 0, 4, 8, 12: nothing is near to 4, and 8 counts nothing.
  w_T1 = np.array([[0], [0.1], [0.2], [1], [8.5], [11], [12], [12.1]], 'f4')
  w_T1[-1] = 12
  found_V1 = lloyd.codebook(w_T1, 2)
  np.testing.assert_allclose(
    np.ravel(found_V1), [1.3 / 4, 4, 8.5, 35 / 3], rtol=1e-6
  )
  h_T1 = np.ones_like(w_T1)
  h_T1[4] = 0
  found_V1 = lloyd.codebook(w_T1, 2, h_T1)
  np.testing.assert_allclose(
    np.ravel(found_V1), [1.3 / 4, 4, 8, 35 / 3], rtol=1e-6
  )


@pytest.mark.parametrize('different', [1, 3, 8])
def test_few_different_numbers_are_the_codebook(different):
  """And so what is rounded once stays as it is."""
  # Evenly spaced values would put the first ones together.
  values = np.geomspace(1, 1e4, different).astype('f4')
  w_TN = np.random.default_rng(0).choice(values, (T, N))
  w_TN[:different] = values[:, None]
  found_VN = lloyd.codebook(w_TN, 3)
  for n in range(N):
    np.testing.assert_array_equal(np.unique(found_VN[:, n]), values)
  again_TN = lloyd.decode(lloyd.encode(w_TN, found_VN), found_VN)
  np.testing.assert_array_equal(again_TN, w_TN)


@pytest.mark.parametrize('bits', [1, 3, 8])
def test_rounding_twice_is_rounding_once(bits):
  w_TN = numbers(length=400)

  def rounded(w_TN):
    found_VN = lloyd.codebook(w_TN, bits)
    return np.asarray(lloyd.decode(lloyd.encode(w_TN, found_VN), found_VN))

  once = rounded(w_TN)
  assert len(np.unique(once[:, 0])) <= 2**bits
  assert rounded(once).tobytes() == once.tobytes()


def test_each_number_has_its_nearest_value():
  rng = np.random.default_rng(3)
  codebook_VN = np.sort(rng.normal(size=(16, N)), axis=0).astype('f4')
  # Of two that are one, and of two between which there is no number.
  codebook_VN[5] = codebook_VN[4]
  codebook_VN[9] = np.nextafter(codebook_VN[8], np.float32(9))
  w_TN = np.concatenate(
    [codebook_VN, 2 * rng.normal(size=(50, N)).astype('f4')]
  )
  codes_TN = np.asarray(lloyd.encode(w_TN, codebook_VN))
  assert codes_TN.dtype == np.int32
  found_TN = np.asarray(lloyd.decode(codes_TN, codebook_VN))
  for n in range(N):
    expected_T = codebook_VN[nearest(w_TN[:, n], codebook_VN[:, n]), n]
    np.testing.assert_array_equal(found_TN[:, n], expected_T)
  np.testing.assert_array_equal(found_TN[:16], codebook_VN)
  halves_T1 = np.array([[0.5], [1.5], [2.5]], 'f4')
  codes_T1 = lloyd.encode(halves_T1, np.arange(4.0, dtype='f4')[:, None])
  assert np.ravel(codes_T1).tolist() == [0, 1, 2]


def test_sums_of_many_lose_nothing_of_few():
  """Not by differences of sums, whose last bits are those of the whole."""
  w_T1 = np.random.default_rng(0).normal(1e3, size=(20_001, 1)).astype('f4')
  w_T1[:3] = [[-1e3], [-1e3 - 0.5], [-1e3 + 0.25]]
  found_V1 = np.asarray(lloyd.codebook(w_T1, 1))
  np.testing.assert_allclose(found_V1[0], w_T1[:3].mean(), rtol=2e-7)
  np.testing.assert_allclose(
    found_V1[1], w_T1[3:].astype('f8').mean(), rtol=5e-7
  )


def test_a_value_has_the_sum_of_the_gradients_of_its_numbers():
  """Equation 3 of the paper."""
  w_TN = numbers()
  codebook_VN = lloyd.codebook(w_TN, 2)
  codes_TN = np.asarray(lloyd.encode(w_TN, codebook_VN)).astype('u1')
  direction_TN = np.random.default_rng(4).normal(size=(T, N)).astype('f4')
  gradient_VN = jax.grad(
    lambda c: (jnp.sin(lloyd.decode(codes_TN, c)) * direction_TN).sum()
  )(codebook_VN)
  each_TN = direction_TN * np.cos(lloyd.decode(codes_TN, codebook_VN))
  for n in range(N):
    expected_V = np.bincount(codes_TN[:, n], each_TN[:, n], 4)
    np.testing.assert_allclose(gradient_VN[:, n], expected_V, rtol=1e-5)


def test_what_is_not_a_number_is_in_all_values():
  w_TN = numbers()
  w_TN[4, 1] = np.nan
  found_VN = np.asarray(lloyd.codebook(w_TN, 6))
  assert np.isnan(found_VN[:, 1]).all()
  assert np.isfinite(found_VN[:, [0, 2]]).all()
