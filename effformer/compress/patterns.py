"""Patterns: n of every m weights of an output stay, the others are 0.

The groups lie along the inputs of a matrix [k, n]. The last one may have fewer
than m: n of these stay, all if there are no more (Mishra et al. 2021,
2104.08378, have 2 of 4).

Stored is, for each weight that stays, its code and its place in the group: J
rows of N outputs, group after group, places from the least up. 2 of 4 codes of
8 bits are 2 (8 + 2) = 20 bits for 4 weights.
"""

import jax.numpy as jnp
import numpy as np

from effformer.shapes import Array

# Of a group: places are at most a byte.
MOST = 256
# As many are compared with each other rather than sorted.
_FEW = 32


def check(n: int, m: int, tile: int = 0) -> None:
  """Refuses what is no pattern, with tiles of so many inputs or without.

  Raises:
    ValueError: not 1 <= n < m <= `MOST`, or a tile has parts of groups.
  """
  if not 1 <= n < m <= MOST:
    raise ValueError(
      f'a pattern keeps n of every m weights with 1 <= n < m <= {MOST}, got '
      f'{n} of {m}'
    )
  if tile % m:
    raise ValueError(
      f'the pattern {n} of {m} needs tiles of whole groups: tile={tile} is no '
      f'multiple of {m}'
    )


def highest(x_N: Array, count: int | Array) -> Array:
  """Where the `count` highest along the last axis stand; it may be traced.

  Of equal ones the earlier are taken.
  """
  length = x_N.shape[-1]
  if length <= _FEW:
    # As many comparisons are faster than a sort.
    x_N1, x_1N = x_N[..., :, None], x_N[..., None, :]
    is_earlier_NN = np.tri(length, k=-1, dtype=bool)[(None,) * (x_N.ndim - 1)]
    is_ahead_NN = jnp.where(is_earlier_NN, x_1N >= x_N1, x_1N > x_N1)
    return is_ahead_NN.sum(axis=-1) < count
  order_N = jnp.argsort(-x_N, axis=-1, stable=True)
  return jnp.argsort(order_N, axis=-1) < count


def stays(score_KN: Array, n: int, m: int) -> Array:
  """Where the n highest of every m inputs of an output stand, bool [k, n]."""
  inputs, outputs = score_KN.shape
  padded_KN = jnp.pad(
    score_KN, ((0, -inputs % m), (0, 0)), constant_values=-jnp.inf
  )
  score_NGM = padded_KN.T.reshape(outputs, -1, m)
  return highest(score_NGM, n).reshape(outputs, -1).T[:inputs]


def largest(w_KN: Array, n: int, m: int) -> Array:
  """The weights, 0 where they are not of the n of greatest size of every m."""
  # What is not a number stays and is seen.
  size_KN = jnp.where(jnp.isnan(w_KN), jnp.inf, jnp.abs(w_KN))
  return jnp.where(stays(size_KN, n, m), w_KN, 0.0)


def num_stay(inputs: int | Array, n: int, m: int) -> int | Array:
  """How many of the first so many inputs of an output stay."""
  rest = inputs % m
  return inputs // m * n + rest - (rest > n) * (rest - n)


def place_bits(m: int) -> int:
  """Bits of a place in a group, ceil(log2 m)."""
  return (m - 1).bit_length()


def taken(codes_KN: np.ndarray, n: int, m: int) -> tuple[np.ndarray, ...]:
  """The codes that are stored, and their places, [J, n].

  Where fewer than n of a group are not 0, zeros are stored, too, the first
  ones.

  Raises:
    ValueError: more than n of a group are not 0.
  """
  inputs, outputs = codes_KN.shape
  codes_KN = np.pad(codes_KN, ((0, -inputs % m), (0, 0)))
  codes_GMN = codes_KN.reshape(-1, m, outputs)
  is_zero_GMN = codes_GMN == 0
  most = m - is_zero_GMN.sum(axis=1).min(initial=m)
  if most > n:
    raise ValueError(f'{most} of {m} codes are not 0, and {n} of {m} stay')
  # What fills up the last group comes behind its own zeros.
  order_GMN = np.argsort(is_zero_GMN, axis=1, kind='stable')
  place_GJN = np.sort(order_GMN[:, :n], axis=1)
  stored_GJN = np.take_along_axis(codes_GMN, place_GJN, axis=1)
  count = num_stay(inputs, n, m)
  return tuple(x.reshape(-1, outputs)[:count] for x in (stored_GJN, place_GJN))


def placed(
  stored_JN: np.ndarray, place_JN: np.ndarray, inputs: int, n: int, m: int
) -> np.ndarray:
  """The codes [k, n]; the inverse of `taken`.

  Raises:
    ValueError: places are not in their groups, or not from the least up.
  """
  count, outputs = place_JN.shape
  row_JN = (np.arange(count) // n * m)[:, None] + place_JN
  is_behind = (place_JN < 0) | (place_JN >= m) | (row_JN >= inputs)
  if is_behind.any() or (np.diff(row_JN, axis=0) <= 0).any():
    raise ValueError(
      f'the places of {n} of {m} codes are not in their groups, one after the '
      'other'
    )
  codes_KN = np.zeros((inputs, outputs), stored_JN.dtype)
  codes_KN[row_JN, np.arange(outputs)] = stored_JN
  return codes_KN
