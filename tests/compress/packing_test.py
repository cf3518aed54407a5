"""Codes as bytes."""

import numpy as np
import pytest

from effformer.compress import packing


@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('shape', [(0,), (1,), (7,), (3, 5), (2, 4, 3)])
def test_unpacking_gives_the_codes(bits, shape):
  rng = np.random.default_rng(bits)
  low = -(1 << bits - 1)
  codes = rng.integers(low, low + (1 << bits), shape)
  data = packing.pack(codes, bits, low)
  assert data.nbytes == packing.num_bytes(codes.size, bits)
  assert data.nbytes == int(np.ceil(codes.size * bits / 8))
  found = packing.unpack(data, bits, low, shape)
  np.testing.assert_array_equal(found, codes)


def test_the_layout():
  # 1, 2, 3 of three bits: 001, 010, 011, from the lowest bit on.
  assert packing.pack(np.array([1, 2, 3]), 3, 0).tolist() == [0b11010001, 0]
  assert packing.pack(np.array([-1, 0, 1, -1]), 2, -1).tolist() == [0b00100100]


def test_codes_that_are_not_neighbours():
  codes = np.array([[-1, 1, 1], [-1, -1, 1], [1, -1, -1]])
  data = packing.pack(codes, 1, -1, 2)
  assert data.tolist() == [0b01100110, 0]
  found = packing.unpack(data, 1, -1, (3, 3), 2)
  np.testing.assert_array_equal(found, codes)
  for wrong in (0, 3, -3):
    with pytest.raises(ValueError, match='in steps of 2'):
      packing.pack(np.array([1, wrong]), 1, -1, 2)


def test_pieces_join(monkeypatch):
  codes = np.random.default_rng(0).integers(0, 8, 100)
  whole = packing.pack(codes, 3, 0)
  monkeypatch.setattr(packing, '_PIECE', 16)
  np.testing.assert_array_equal(packing.pack(codes, 3, 0), whole)
  np.testing.assert_array_equal(packing.unpack(whole, 3, 0, (100,)), codes)


def test_what_does_not_fit_is_refused():
  for codes in ([-4], [4]):
    with pytest.raises(ValueError, match='do not fit 2 bits'):
      packing.pack(np.array(codes), 2, -2)
  data = packing.pack(np.arange(4), 2, 0)
  with pytest.raises(ValueError, match='5 codes of 2 bits are 2 bytes'):
    packing.unpack(data, 2, 0, (5,))
  with pytest.raises(ValueError, match='got int8'):
    packing.unpack(data.astype(np.int8), 2, 0, (4,))
