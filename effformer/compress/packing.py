"""Codes of few bits as bytes: code i stands at the bits i b to (i + 1) b - 1.

Bits are counted from the lowest of the first byte on; what is left of the last
byte is 0. A code has the bits of the number (code - low) / stride. So n codes
of b bits are ceil(n b / 8) bytes, and nothing else.
"""

import numpy as np

# Codes that are packed together, to bound the memory that this takes.
_PIECE = 1 << 20


def num_bytes(count: int, bits: int) -> int:
  """Bytes of so many codes."""
  return -(-count * bits // 8)


def pack(codes: np.ndarray, bits: int, low: int, stride: int = 1) -> np.ndarray:
  """uint8 of the codes low, low + stride ..., 2^bits of them, in C order.

  Raises:
    ValueError: a code is none of these.
  """
  flat = np.ravel(codes).astype(np.int64)
  least, greatest = (flat.min(), flat.max()) if flat.size else (low, low)
  flat, rest = np.divmod(flat - low, stride)
  if rest.any() or least < low or (greatest - low) // stride >= 1 << bits:
    raise ValueError(
      f'codes from {least} to {greatest} do not fit {bits} bits from {low} on '
      f'in steps of {stride}'
    )
  # A multiple of 8 codes is whole bytes.
  pieces = [
    np.packbits(
      (flat[start : start + _PIECE, None] >> np.arange(bits) & 1).astype(
        np.uint8
      ),
      bitorder='little',
    )
    for start in range(0, flat.size, _PIECE)
  ]
  return np.concatenate([np.zeros(0, np.uint8), *pieces])


def unpack(
  data: np.ndarray,
  bits: int,
  low: int,
  shape: tuple[int, ...],
  stride: int = 1,
) -> np.ndarray:
  """The codes, int16.

  Raises:
    ValueError: `data` are not the bytes of so many codes.
  """
  count = int(np.prod(shape, dtype=np.int64))
  if data.dtype != np.uint8 or data.shape != (num_bytes(count, bits),):
    raise ValueError(
      f'{count} codes of {bits} bits are {num_bytes(count, bits)} bytes, got '
      f'{data.dtype} {data.shape}'
    )
  step = _PIECE * bits // 8
  pieces = []
  for start in range(0, data.size, step):
    own = min(_PIECE, count - start * 8 // bits)
    raw = np.unpackbits(
      data[start : start + step], count=own * bits, bitorder='little'
    )
    weights = 1 << np.arange(bits, dtype=np.int16)
    pieces.append(raw.reshape(own, bits) @ weights)
  flat = np.concatenate([np.zeros(0, np.int16), *pieces])
  return (flat * stride + low).astype(np.int16).reshape(shape)
