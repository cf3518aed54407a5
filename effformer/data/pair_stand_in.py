"""Generated pairs of texts, for machines where the papers cannot be had.

A stand-in for LRA Retrieval that trains and tests the whole path; scores on it
say nothing about papers. A text has sentences of a topic, one of TOPICS, and
others. In pairs of label 1 both texts are of one topic, else of two.

Pair i is a pure function of i; see `stand_in` for the numbers.
"""

import random
from collections.abc import Iterator, Mapping

from effformer.data import stand_in
from effformer.data.dataset import Example, numbered

SIZES = {'train': 6_000, 'validation': 1_000, 'test': 2_000}
# Of one topic, words that no other has.
TOPICS = (
  'parser grammar syntax treebank',
  'speech phoneme acoustic voice',
  'translation bilingual alignment decoder',
  'summary headline abstract compression',
  'morphology stem suffix inflection',
  'conversation turn speaker intent',
  'coreference pronoun mention anaphora',
  'sentiment polarity opinion review',
)
_WORDS = tuple(words.split() for words in TOPICS)
_FRAMES = (
  'We present a {word} model and compare it with an earlier {word} method',
  'The {word} data were marked by two people',
  'Errors of the {word} part are counted by hand',
  'A better {word} leads to a better {word}',
)
_TOPIC_SHARE = 0.6


def pair(number: int) -> Example:
  """Pair `number`; even numbers have the label 0, odd ones 1."""
  draw = random.Random(f'effformer stand-in pair {number}').random
  label = number % 2
  first = int(draw() * len(TOPICS))
  second = first
  if not label:
    second = (first + 1 + int(draw() * (len(TOPICS) - 1))) % len(TOPICS)
  return {
    'text': _text(draw, first),
    'other': _text(draw, second),
    'label': label,
    'id': f'stand_in/{number}',
  }


def splits() -> Mapping[str, Iterator[Example]]:
  """The splits, one after the other by pair number."""
  return numbered(pair, SIZES)


def _text(draw, topic: int) -> bytes:
  sentences = []
  for _ in range(int(8 + 8 / (0.25 + draw()))):
    if draw() < _TOPIC_SHARE:
      frame = stand_in.pick(draw, _FRAMES)
      sentences.append(stand_in.fill(draw, frame, _WORDS[topic]))
    else:
      frame = stand_in.pick(draw, stand_in.NEUTRAL)
      sentences.append(stand_in.fill(draw, frame, ()))
  return ('. '.join(sentences) + '.').encode()
