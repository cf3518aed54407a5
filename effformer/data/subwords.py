"""Subword tokenizers of published models, from their tokenizer.json."""

import pathlib

import numpy as np
import tokenizers

from effformer import durable
from effformer.errors import DataError


class SubwordTokenizer:
  """Text to ids and back, by the rules of a tokenizer.json.

  The special tokens of its model stand around each text ([CLS], [SEP]) and
  remain where a text is cut; padding and cutting of the file itself are off.

  Attributes:
    vocab_size: ids are below.
  """

  def __init__(self, path: str | pathlib.Path):
    """Reads the file.

    Raises:
      DataError: it is missing, too large, or no tokenizer.json.
    """
    path = pathlib.Path(path)
    if not path.is_file():
      raise DataError(
        f'no such file: {path}\nA model of texts comes with a tokenizer.json.'
      )
    largest = durable.MAX_JSON_BYTES
    if (size := path.stat().st_size) > largest:
      raise DataError(
        f'{path} has {size:,} bytes; no tokenizer.json of a model has more '
        f'than {largest:,}.\nGet the file again.'
      )
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # The library raises no class below it, whatever is wrong with the file.
    except Exception as error:
      raise DataError(
        f'{path} cannot be read as a tokenizer.json: {error}\n'
        'Get the file again.'
      ) from None
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self.vocab_size = self._tokenizer.get_vocab_size()

  def encode(self, text: bytes, max_length: int | None = None) -> np.ndarray:
    """int32 [T] ids, special tokens among them, T at most `max_length`."""
    (first,) = self._plain(text)
    room = self._room(max_length, is_pair=False)
    if room is not None:
      first.truncate(room)
    whole = self._tokenizer.post_process(first)
    return np.array(whole.ids, np.int32)

  def encode_pair(
    self, text: bytes, other: bytes, max_length: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """int32 [T] ids of two texts in one row, and the types of the tokens.

    Where they are too long together, the longer one is cut first.
    """
    first, second = self._plain(text, other)
    room = self._room(max_length, is_pair=True)
    if room is not None:
      lengths = len(first.ids), len(second.ids)
      first.truncate(max(room - lengths[1], (room + 1) // 2))
      second.truncate(max(room - lengths[0], room // 2))
    whole = self._tokenizer.post_process(first, second)
    return np.array(whole.ids, np.int32), np.array(whole.type_ids, np.int32)

  def decode(self, ids_T: np.ndarray) -> bytes:
    """The text of `ids_T`, without special tokens."""
    return self._tokenizer.decode(np.asarray(ids_T).tolist()).encode()

  def _plain(self, *texts):
    return self._tokenizer.encode_batch(
      [text.decode('utf-8', 'replace') for text in texts],
      add_special_tokens=False,
    )

  def _room(self, max_length, is_pair):
    if max_length is None:
      return None
    num_special = self._tokenizer.num_special_tokens_to_add(is_pair)
    return max(0, max_length - num_special)
