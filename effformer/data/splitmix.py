"""Random words by number: the stream of (seed, i), word n, in any order.

SplitMix64 (Steele, Lea and Flood, 2014) counts in steps of an odd constant and
scrambles the count, so that word n of a stream needs no other word. Only
integers take part: the words are the same everywhere.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
  """The output function of SplitMix64 on uint64 (variant 13 of Stafford)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def keys(seed: int, numbers: np.ndarray) -> np.ndarray:
  """Keys of the streams of (seed, number), uint64; seed modulo 2^64."""
  root = mix(np.array([seed & ((1 << 64) - 1)], np.uint64) + GOLDEN)
  return mix((root ^ mix(numbers.astype(np.uint64))) + GOLDEN)


def words(key: np.ndarray, numbers) -> np.ndarray:
  """Words `numbers` (integers from 0) of the streams `key`, uint64."""
  return mix(key + GOLDEN * np.asarray(numbers + 1, np.uint64))


def below(word: np.ndarray, shift: int, bound) -> np.ndarray:
  """Uniform integers below `bound` from 20 bits of `word`, int64.

  Args:
    word: uint64.
    shift: of the lowest of the bits; numbers from bits apart are independent.
    bound: integers, powers of two or far below 2^20.
  """
  bits = (word >> np.uint64(shift)) & np.uint64(0xFFFFF)
  return bits.astype(np.int64) * bound >> np.int64(20)
