"""Generated reviews, for machines where the real ones cannot be had.

A stand-in for IMDb that trains and tests the whole path; scores on it say
nothing about IMDb. Each review has neutral sentences and opinions; nine in
ten opinions use a word of the review's side, one in ten a word of the other
side. At 512 bytes the bag-of-bytes floor is 73 %, a vote of the words reaches
95 %: a byte model that finds the words within minutes ends between them. (With
lists of the same letters the floor is 58 %, but then a small model sees nothing
to climb for hundreds of steps.)

Review i is a pure function of i. Only `random.Random.random` of string seeds
is used, which Python keeps the same between versions.
"""

import random
from collections.abc import Iterator, Mapping, Sequence

from effformer.data.dataset import Example, numbered

SIZES = {'train': 6_000, 'validation': 1_000, 'test': 2_000}

_SIDES = (
  'awful boring dull lazy messy painful ugly wretched',
  'brilliant graceful lovely polished smart superb tender witty',
)
_OPINIONS = (
  'I found the {part} {word}',
  'The {part} is {word}, and so is the {part}',
  'What a {word} piece of work',
  'To me it was {word} from the first scene to the last',
  'My {person} called the {part} {word}',
  'There is something {word} about the {part}',
  'It has a {word} {part}',
  'Even the {part} turned out {word}',
)
NEUTRAL = (
  'We saw it on a {day} in a small house near the {place}',
  'The story follows a {job} who comes back to the {place} after years away',
  'A {job} and a {job} share a train and a secret',
  'It runs for about two hours and was shot near a {place}',
  'My {person} had read the book, I had not',
  'The {part} was made by the same people as the one before',
  'Half of it takes place in a {place}, the rest at sea',
  'The {job} has to choose between the {place} and a letter from the {person}',
  'There were perhaps forty people in the room that {day}',
  'Later the {job} meets an old friend at the {place}',
  'It came out some years ago and is shown again this {day}',
  'In the second part the {job} writes to a {person} who never answers',
)
_SLOTS = {
  'part': 'plot music cast ending dialogue camera acting script pace editing '
  'score lighting opening costume',
  'person': 'sister brother neighbour friend father aunt teacher wife husband',
  'day': 'Monday Tuesday Thursday Friday Saturday Sunday holiday evening',
  'place': 'harbour station village bridge market river farm hotel library '
  'forest lighthouse border',
  'job': 'doctor baker sailor lawyer painter clerk farmer nurse pilot singer '
  'detective widow soldier',
}
_WORDS = tuple(words.split() for words in _SIDES)
_CHOICES = {slot: words.split() for slot, words in _SLOTS.items()}

_OWN_SIDE = 0.9
_OPINION_SHARE = 0.35
_EXCLAMATION = (0.10, 0.13)  # of opinions, by label
_BREAK_SHARE = 0.06


def review(number: int) -> Example:
  """Review `number`; even numbers are negative (0), odd ones positive (1)."""
  draw = random.Random(f'effformer stand-in review {number}').random
  label = number % 2
  # Like IMDb: median near 1,000 bytes, a long tail, none very short.
  num_sentences = int(6 + 9 / (0.25 + draw()))
  text = ''
  for _ in range(num_sentences):
    text += _sentence(draw, label)
    text += '<br /><br />' if draw() < _BREAK_SHARE else ' '
  return {
    'text': text.rstrip().encode(),
    'label': label,
    'id': f'stand_in/{number}',
  }


def splits() -> Mapping[str, Iterator[Example]]:
  """The splits, one after the other by review number."""
  return numbered(review, SIZES)


def _sentence(draw, label: int) -> str:
  if draw() < _OPINION_SHARE:
    side = label if draw() < _OWN_SIDE else 1 - label
    end = '!' if draw() < _EXCLAMATION[label] else '.'
    return fill(draw, pick(draw, _OPINIONS), _WORDS[side]) + end
  return fill(draw, pick(draw, NEUTRAL), ()) + '.'


def fill(draw, template: str, words: Sequence[str]) -> str:
  """`template` with its slots filled; {word} from `words`."""
  before, _, rest = template.partition('{')
  if not rest:
    return before
  slot, _, after = rest.partition('}')
  word = pick(draw, words if slot == 'word' else _CHOICES[slot])
  return before + word + fill(draw, after, words)


def pick(draw, choices: Sequence[str]) -> str:
  """One of `choices`, by the next number that is drawn."""
  return choices[int(draw() * len(choices))]
