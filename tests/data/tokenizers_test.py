"""Tokenizers: round trip, order of the ids, cutting, refusal."""

import numpy as np
import pytest

from effformer.data import tokenizers
from effformer.errors import DataError

EXPRESSION = b'[SM 3 [MAX 1 [MED 4 [MIN 0 9 ] ] ] 5 ]'


def test_bytes_round_trip():
  text = bytes(range(256))
  ids_T = tokenizers.ByteTokenizer().encode(text)
  np.testing.assert_array_equal(ids_T, np.arange(1, 257))
  assert ids_T.dtype == np.int32
  assert tokenizers.ByteTokenizer().decode(ids_T) == text


def test_bytes_cut_and_padding():
  tokenizer = tokenizers.ByteTokenizer()
  ids_T = tokenizer.encode(b'abcdef', 4)
  assert tokenizer.decode(np.append(ids_T, [0, 0])) == b'abcd'


def test_listops_order_is_constant():
  tokenizer = tokenizers.ListOpsTokenizer()
  ids_T = tokenizer.encode(b'0 1 2 3 4 5 6 7 8 9 [MIN [MAX [MED [SM ]')
  np.testing.assert_array_equal(ids_T, np.arange(1, 16))
  assert tokenizer.vocab_size == 16


def test_listops_round_trip():
  tokenizer = tokenizers.ListOpsTokenizer()
  ids_T = tokenizer.encode(EXPRESSION)
  assert tokenizer.decode(np.append(ids_T, 0)) == EXPRESSION


@pytest.mark.parametrize('max_length', range(1, 20))
def test_listops_cut_is_a_prefix(max_length):
  tokenizer = tokenizers.ListOpsTokenizer()
  np.testing.assert_array_equal(
    tokenizer.encode(EXPRESSION, max_length),
    tokenizer.encode(EXPRESSION)[:max_length],
  )


@pytest.mark.parametrize('max_length', [None, 2])
def test_listops_names_the_unknown_symbol(max_length):
  with pytest.raises(DataError, match=r'\[FOO'):
    tokenizers.ListOpsTokenizer().encode(b'[SM [FOO 3 ]', max_length)
