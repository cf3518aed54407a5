"""From text to ids: bytes, and the symbols of ListOps. Id 0 is padding."""

from typing import ClassVar, Protocol

import numpy as np

from effformer.errors import DataError

PADDING = 0
# The order is part of the format: a symbol's id is its place here plus one.
LISTOPS_SYMBOLS = (
  *(b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'8', b'9'),
  *(b'[MIN', b'[MAX', b'[MED', b'[SM', b']'),
)


class Tokenizer(Protocol):
  """Maps text to ids 1 .. vocab_size - 1 and back."""

  vocab_size: int

  def encode(self, text: bytes, max_length: int | None = None) -> np.ndarray:
    """int32 [T] ids of the first `max_length` tokens (None: of all)."""

  def decode(self, ids_T: np.ndarray) -> bytes:
    """The text of `ids_T`; padding is left out."""


class ByteTokenizer:
  """Byte b has id b + 1: 257 ids with padding, as in LRA."""

  vocab_size = 257

  def encode(self, text: bytes, max_length: int | None = None) -> np.ndarray:
    return np.frombuffer(text[:max_length], np.uint8).astype(np.int32) + 1

  def decode(self, ids_T: np.ndarray) -> bytes:
    ids_T = np.asarray(ids_T)
    return (ids_T[ids_T != PADDING] - 1).astype(np.uint8).tobytes()


class ListOpsTokenizer:
  """15 symbols with single spaces between them: 16 ids with padding.

  Brackets stay, since without them the task cannot be solved
  (google-research/long-range-arena#6, #14, #20).
  """

  vocab_size = len(LISTOPS_SYMBOLS) + 1

  _ids: ClassVar = {symbol: i + 1 for i, symbol in enumerate(LISTOPS_SYMBOLS)}

  def encode(self, text: bytes, max_length: int | None = None) -> np.ndarray:
    # No symbol is longer than 4 bytes and a space: what lies further away
    # than that cannot be among the first `max_length`.
    if max_length is not None and len(text) > 5 * max_length:
      text = text[: 5 * max_length].rpartition(b' ')[0]
    symbols = text.split(b' ')[:max_length]
    try:
      return np.fromiter(
        map(self._ids.__getitem__, symbols), np.int32, len(symbols)
      )
    except KeyError as error:
      raise DataError(
        f'unknown ListOps symbol {error.args[0][:40]!r}; known are '
        + b' '.join(LISTOPS_SYMBOLS).decode()
        + ', with single spaces between them.'
      ) from None

  def decode(self, ids_T: np.ndarray) -> bytes:
    return b' '.join(LISTOPS_SYMBOLS[i - 1] for i in ids_T if i != PADDING)
