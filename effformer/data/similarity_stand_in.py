"""Generated pairs of sentences with scores, for machines without own pairs.

A stand-in that trains and tests the whole path of the task `similarity`; scores
on it say nothing about STS-B. A sentence says who does what with which thing
and where, each in one of several wordings; of a pair the score is 5 times the
share of these four that mean the same.

Pair i is a pure function of i; see `stand_in` for the numbers.
"""

import random
from collections.abc import Iterator, Mapping, Sequence

from effformer.data import stand_in
from effformer.data.dataset import Example, numbered
from effformer.data.sentence_pairs import HIGHEST, PER_POINT

SIZES = {'train': 4_000, 'validation': 500, 'test': 1_000}
# What a part may mean, and the wordings of each meaning.
PARTS = (
  (
    ('a man', 'a gentleman', 'some guy'),
    ('a woman', 'a lady', 'some woman'),
    ('a child', 'a kid', 'a small boy'),
    ('a dog', 'a puppy', 'a small hound'),
    ('two students', 'a pair of pupils', 'two young learners'),
    ('a scientist', 'a researcher', 'someone from the laboratory'),
  ),
  (
    ('is looking at', 'watches', 'is staring at'),
    ('is carrying', 'holds', 'is bringing'),
    ('is painting', 'colours', 'is drawing'),
    ('is repairing', 'fixes', 'is mending'),
    ('is hiding', 'conceals', 'is burying'),
  ),
  (
    ('a car', 'an automobile', 'a vehicle'),
    ('a guitar', 'a musical instrument', 'an old guitar'),
    ('a book', 'a novel', 'a printed story'),
    ('some bread', 'a loaf', 'a piece of bread'),
    ('a boat', 'a small ship', 'a sailing vessel'),
    ('a phone', 'a telephone', 'a mobile'),
  ),
  (
    ('in the street', 'on the road', 'outside on the pavement'),
    ('in the kitchen', 'where meals are cooked', 'beside the stove'),
    ('on the beach', 'by the sea', 'at the shore'),
    ('in the garden', 'among the flowers', 'on the lawn'),
    ('in the snow', 'on a winter day', 'in the cold'),
  ),
)


def pair(number: int) -> Example:
  """Pair `number`; its label is the score in thousandths, see `similarity`."""
  draw = random.Random(f'effformer stand-in similarity {number}').random
  same = number % (len(PARTS) + 1)
  order = sorted((draw(), part) for part in range(len(PARTS)))
  alike = {part for _, part in order[:same]}
  first, second = [], []
  for part, meanings in enumerate(PARTS):
    one = _below(draw, len(meanings))
    other = one
    if part not in alike:
      other = (one + 1 + _below(draw, len(meanings) - 1)) % len(meanings)
    first.append(stand_in.pick(draw, meanings[one]))
    second.append(stand_in.pick(draw, meanings[other]))
  return {
    'text': _sentence(first),
    'other': _sentence(second),
    'label': HIGHEST * PER_POINT * same // len(PARTS),
    'id': f'stand_in/{number}',
  }


def splits() -> Mapping[str, Iterator[Example]]:
  """The splits, one after the other by pair number."""
  return numbered(pair, SIZES)


def _sentence(parts: Sequence[str]) -> bytes:
  text = ' '.join(parts)
  return f'{text[0].upper()}{text[1:]}.'.encode()


def _below(draw, count: int) -> int:
  return int(draw() * count)
