"""Few values that stand for many: k-means of numbers.

Weight sharing of Deep Compression (Han et al. 2016, 1510.00149, section 3):
a weight is the nearest value of a codebook c of V = 2^b values, and these have
a small squared error (equation 2), with weights h where some count more,

    sum_i h_i (w_i - c_v(i))^2,      v(i) = argmin_v |w_i - c_v|

Lloyd's algorithm starts with values that are evenly spaced from the least to
the greatest ('linear', which did best in the paper), and takes turns:

    c_v = sum_{i: v(i) = v} h_i w_i / sum_{i: v(i) = v} h_i

until no weight changes its value. No turn makes the error greater, so that it
is never above that of the even spacing; it need not be the least there is. A
value that no weight is nearest to stays where it is. In the middle between two
values the lower one is taken. Numbers with no more than V different ones have
these as codebook, without an error: so rounding twice is rounding once.

The numbers of a group are sorted once. A value then stands for a range of them,
the bounds of which are found by bisection, and sums over ranges from sums over
blocks of 1, 2, 4 ... numbers: in an order that no compiler changes, and without
differences of great sums. Time T log T, and V log T for each turn; memory 3 T,
weighted 6 T.
"""

import functools

import jax
import jax.numpy as jnp

from effformer.shapes import Array

# Of turns; thousands of numbers need some tens to hundreds.
MOST_TURNS = 1000


@functools.partial(jax.jit, static_argnames='bits')
def codebook(
  w_TN: Array,
  bits: int,
  h_TN: Array | None = None,
  *,
  start_VN: Array | None = None,
  most_turns: int | Array = MOST_TURNS,
) -> Array:
  """Codebooks of the columns, from the least value up, float32 [V, n].

  Args:
    w_TN: float32.
    bits: b; V = 2^b.
    h_TN: what each number counts, 0 or more; None for 1.
    start_VN: values to start with, from the least up; None for even spacing.
    most_turns: after so many it ends in any case; 0 for the start.
  """
  length, number = w_TN.shape[0], 1 << bits
  mass_PN = None
  if h_TN is None:
    w_TN = jnp.sort(w_TN, axis=0)
  else:
    w_TN, h_TN = jax.lax.sort((w_TN, h_TN), dimension=0)
    mass_PN = _block_sums(h_TN)
  sum_PN = _block_sums(w_TN if h_TN is None else h_TN * w_TN)

  def bounds(codebook_VN):
    """The first number of each value, and of the next one."""
    lower_UN, upper_UN = codebook_VN[:-1], codebook_VN[1:]

    def is_nearer_to_upper(index_UN):
      own_UN = _at(w_TN, index_UN)
      return own_UN - lower_UN > upper_UN - own_UN

    first_UN = _first(is_nearer_to_upper, length, lower_UN.shape)
    low_VN = jnp.pad(first_UN, ((1, 0), (0, 0)))
    return low_VN, jnp.pad(first_UN, ((0, 1), (0, 0)), constant_values=length)

  def turn(state):
    turns, codebook_VN, (low_VN, high_VN), _ = state
    mass_VN = (high_VN - low_VN).astype(jnp.float32)
    if mass_PN is not None:
      mass_VN = _range_sums(mass_PN, low_VN, high_VN)
    mean_VN = _range_sums(sum_PN, low_VN, high_VN) / mass_VN
    # A sum's last bits would take it out of its range.
    mean_VN = jnp.clip(mean_VN, _at(w_TN, low_VN), _at(w_TN, high_VN - 1))
    codebook_VN = jnp.where(mass_VN == 0, codebook_VN, mean_VN)
    ranges = bounds(codebook_VN)
    return turns + 1, codebook_VN, ranges, jnp.any(ranges[0] != low_VN)

  if start_VN is None:
    step_V1 = jnp.linspace(0.0, 1.0, number)[:, None]
    start_VN = w_TN[:1] + (w_TN[-1:] - w_TN[:1]) * step_V1
  state = jnp.int32(0), start_VN, bounds(start_VN), jnp.bool_(True)
  _, found_VN, _, _ = jax.lax.while_loop(
    lambda state: (state[0] < most_turns) & state[3], turn, state
  )
  rank_TN = _rank(w_TN)
  # What is not a number stands last, and is to be seen.
  is_few_1N = (rank_TN[-1:] < number) & ~jnp.isnan(w_TN[-1:])
  return jnp.where(is_few_1N, _different(w_TN, rank_TN, number), found_VN)


def encode(w_TN: Array, codebook_VN: Array) -> Array:
  """Which value of its column each number is nearest to, int32 [T, n].

  Args:
    w_TN: float32.
    codebook_VN: from the least value up, V a power of two.
  """
  codes_TN = jnp.zeros(w_TN.shape, jnp.int32)
  for bit in reversed(range(len(codebook_VN).bit_length() - 1)):
    upper_TN = codes_TN + (1 << bit)
    below_TN = w_TN - _at(codebook_VN, upper_TN - 1)
    is_upper_TN = below_TN > _at(codebook_VN, upper_TN) - w_TN
    codes_TN = jnp.where(is_upper_TN, upper_TN, codes_TN)
  return codes_TN


def decode(codes_TN: Array, codebook_VN: Array) -> Array:
  """c_v(i), float32 [T, n].

  The derivative for a value is the sum of those of the numbers that it stands
  for (equation 3 of the paper).
  """
  return _at(codebook_VN, codes_TN.astype(jnp.int32))


def _at(x_TN, index_SN):
  return jnp.take_along_axis(x_TN, index_SN, axis=0, mode='clip')


def _rank(w_TN):
  """How many different ones are below each of sorted numbers."""
  is_new_TN = jnp.diff(w_TN, axis=0) != 0
  return jnp.pad(jnp.cumsum(is_new_TN, axis=0), ((1, 0), (0, 0)))


def _different(w_TN, rank_TN, number):
  """The first different ones of sorted numbers; the last fills up."""
  length, n = w_TN.shape
  wanted_V1 = jnp.arange(number)[:, None]
  first_VN = _first(
    lambda index_VN: _at(rank_TN, index_VN) >= wanted_V1, length, (number, n)
  )
  return _at(w_TN, jnp.minimum(first_VN, length - 1))


def _first(is_from, length, shape):
  """The index from which on it is true, `length` for none; by bisection."""

  def halve(_, ends):
    low, high = ends
    middle = (low + high) // 2
    is_true = is_from(middle)
    is_open = low < high
    low = jnp.where(is_open & ~is_true, middle + 1, low)
    return low, jnp.where(is_open & is_true, middle, high)

  ends = jnp.zeros(shape, jnp.int32), jnp.full(shape, length, jnp.int32)
  return jax.lax.fori_loop(0, length.bit_length(), halve, ends)[0]


def _block_sums(x_TN):
  """Sums of blocks, [2P, n]: of i those of 2i and 2i + 1, from P on numbers."""
  length, n = x_TN.shape
  size = 1 << (length - 1).bit_length()
  levels = [jnp.pad(x_TN, ((0, size - length), (0, 0)))]
  while len(levels[-1]) > 1:
    x_A2N = levels[-1].reshape(-1, 2, n)
    levels.append(x_A2N[:, 0] + x_A2N[:, 1])
  return jnp.concatenate([jnp.zeros((1, n)), *reversed(levels)])


def _range_sums(sum_PN, low_VN, high_VN):
  """Of the numbers from low on, up to the one before high, [V, n]."""
  size = len(sum_PN) // 2

  def climb(_, state):
    total_VN, low_VN, high_VN = state
    is_open_VN = low_VN < high_VN
    has_low_VN = is_open_VN & (low_VN % 2 == 1)
    has_high_VN = is_open_VN & (high_VN % 2 == 1)
    total_VN += jnp.where(has_low_VN, _at(sum_PN, low_VN), 0.0)
    total_VN += jnp.where(has_high_VN, _at(sum_PN, high_VN - 1), 0.0)
    return total_VN, (low_VN + has_low_VN) // 2, (high_VN - has_high_VN) // 2

  none_VN = jnp.zeros(low_VN.shape, jnp.float32)
  state = none_VN, low_VN + size, high_VN + size
  return jax.lax.fori_loop(0, size.bit_length(), climb, state)[0]
