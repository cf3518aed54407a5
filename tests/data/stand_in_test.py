"""The generated reviews: fixed bytes, plausible, learnable by words only."""

import hashlib
import itertools

import numpy as np

from effformer.data import stand_in


def test_first_bytes_never_change():
  texts = [stand_in.review(i)['text'] for i in range(100)]
  assert hashlib.sha256(b'\n'.join(texts)).hexdigest() == (
    '04e28876d4855343e3d638d22529337791ec50ad32ab219e46865a643a93fd3e'
  )


def test_splits_are_disjoint_and_balanced():
  splits = {s: list(rows) for s, rows in stand_in.splits().items()}
  assert {s: len(rows) for s, rows in splits.items()} == stand_in.SIZES
  texts = [row['text'] for rows in splits.values() for row in rows]
  assert len(set(texts)) == len(texts)
  for rows in splits.values():
    assert np.mean([row['label'] for row in rows]) == 0.5


def test_lengths_are_like_reviews():
  lengths = [len(stand_in.review(i)['text']) for i in range(500)]
  assert min(lengths) > 300
  assert 800 < np.median(lengths) < 1100
  assert max(lengths) > 2000


def test_no_word_is_on_both_sides():
  negative, positive = (set(words) for words in stand_in._WORDS)
  assert len(negative) == len(positive)
  assert not negative & positive


def test_words_give_the_label_away():
  hits = []
  for review in map(stand_in.review, range(400)):
    words = review['text'].decode().replace('!', '.').replace('.', ' ').split()
    votes = [sum(w in side for w in words) for side in stand_in._WORDS]
    if votes[0] != votes[1]:
      hits.append((votes[1] > votes[0]) == review['label'])
  assert len(hits) > 350
  assert np.mean(hits) > 0.9


def test_templates_are_filled():
  for review in map(stand_in.review, range(50)):
    assert not set(b'{}') & set(review['text'])
  places = itertools.chain(*stand_in._CHOICES.values())
  assert all(word.isalpha() for word in places)
