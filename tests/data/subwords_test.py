"""Subword tokenizers: special tokens, cutting, pairs, and damaged files."""

import os

import numpy as np
import pytest
import tokenizers

from effformer import durable
from effformer.data.subwords import SubwordTokenizer
from effformer.errors import DataError
from tests.subwords import CLS, SEP, SPECIAL, save_tokenizer

WORDS = (*SPECIAL, *'abcdefghij')


def ids_of(text):
  return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def path(tmp_path):
  return save_tokenizer(tmp_path, tuple('abcdefghij'))


def test_special_tokens_stand_around_a_text(path):
  tokenizer = SubwordTokenizer(path)
  assert tokenizer.vocab_size == len(WORDS)
  ids_T = tokenizer.encode(b'a b c d e f')
  assert ids_T.dtype == np.int32
  assert ids_T.tolist() == [CLS, *ids_of('a b c d e f'), SEP]
  assert tokenizer.encode(b'a zz').tolist() == [CLS, *ids_of('a [UNK]'), SEP]
  assert tokenizer.encode(b'').tolist() == [CLS, SEP]
  assert tokenizer.decode(ids_T) == b'a b c d e f'


@pytest.mark.parametrize('length', range(2, 9))
def test_they_remain_where_a_text_is_cut(path, length):
  ids_T = SubwordTokenizer(path).encode(b'a b c d e', length)
  words = ids_of('a b c d e')[: length - 2]
  assert ids_T.tolist() == [CLS, *words, SEP]


@pytest.mark.parametrize(
  ('length', 'first', 'second'),
  [
    (None, 'a b c d e', 'f g'),
    (10, 'a b c d e', 'f g'),
    (9, 'a b c d', 'f g'),
    (7, 'a b', 'f g'),
    (6, 'a b', 'f'),
    (5, 'a', 'f'),
    (3, '', ''),
  ],
)
def test_of_a_pair_the_longer_text_is_cut_first(path, length, first, second):
  tokenizer = SubwordTokenizer(path)
  ids_T, types_T = tokenizer.encode_pair(b'a b c d e', b'f g', length)
  one, two = [CLS, *ids_of(first), SEP], [*ids_of(second), SEP]
  assert ids_T.tolist() == one + two
  assert types_T.tolist() == [0] * len(one) + [1] * len(two)
  # And the other way round.
  ids_T, _ = tokenizer.encode_pair(b'f g', b'a b c d e', length)
  if length != 6:
    assert ids_T.tolist() == [CLS, *ids_of(second), SEP, *ids_of(first), SEP]


def test_bytes_that_are_no_text(path):
  assert SubwordTokenizer(path).encode(b'a \xff b')[0] == CLS


@pytest.mark.parametrize('content', ['', '{', '[1]', '{"model": 3}'])
def test_a_damaged_file(tmp_path, content):
  path = tmp_path / 'tokenizer.json'
  path.write_text(content)
  with pytest.raises(DataError, match=r'cannot be read as a tokenizer\.json'):
    SubwordTokenizer(path)


def test_a_file_that_is_too_large_is_not_read(path, monkeypatch):
  def from_file(path):
    raise AssertionError(path)

  monkeypatch.setattr(tokenizers, 'Tokenizer', from_file)
  os.truncate(path, durable.MAX_JSON_BYTES + 1)
  with pytest.raises(DataError, match=r'tokenizer\.json has 67,108,865 bytes'):
    SubwordTokenizer(path)


def test_a_missing_file(tmp_path):
  with pytest.raises(DataError, match='no such file'):
    SubwordTokenizer(tmp_path / 'tokenizer.json')
