"""Words of a command line: what they mean, and what is said of wrong ones."""

from collections.abc import Iterable
from typing import Any, NoReturn

from effformer import errors

FLAG = '--config.'
TYPES = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number',
  str: 'text',
  tuple: 'values with commas between them',
}


def read_value(key: str, value: Any, default: Any) -> Any:
  """`value` in the type of `default`; text, as from a flag, is parsed.

  Raises:
    ConfigError: it is of another type.
  """
  kind = type(default)
  try:
    if isinstance(value, str):
      return _parse(value, default)
    if type(value) is int and kind is float:
      return float(value)
    if type(value) is not kind:
      raise ValueError
  except ValueError:
    example = str(default).lower() if kind is bool else default
    refuse(
      f'{key}={value} is not {TYPES[kind]}',
      f'write it like {FLAG}{key}={example}',
    )
  return value


def _parse(text: str, default: Any) -> Any:
  kind = type(default)
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise ValueError
    return text.lower() == 'true'
  if kind is tuple:
    return tuple(_parse(item.strip(), default[0]) for item in text.split(','))
  return kind(text)


def refuse(what: str, remedy: str) -> NoReturn:
  """Raises the ConfigError of these two sentences, given without full stop."""
  raise errors.ConfigError(f'{what}.\n{remedy[0].upper()}{remedy[1:]}.')


def hint(word: str, known: Iterable[str]) -> str:
  """The remedy for a misspelt word: the likely one, and all there are."""
  known = list(known)
  guess = closest(word, known)
  start = f'did you mean {guess!r}? ' if guess else ''
  return f'{start}Known: {", ".join(known)}'


def closest(word: str, known: Iterable[str]) -> str | None:
  """The known word that a wrong one most likely stands for, if any.

  At most two letters are wrong, or the known word ends in the given one, the
  shortest of these.
  """
  known = sorted(known)
  distances = {k: _distance(word.lower(), k.lower()) for k in known}
  best = min(known, key=distances.get, default='')
  if distances.get(best, 3) <= min(2, len(best) - 1):
    return best
  ends = [k for k in known if len(word) > 2 and k.endswith(word)]
  shortest = [k for k in ends if len(k) == min(map(len, ends))]
  return shortest[0] if len(shortest) == 1 else None


def _distance(word: str, other: str) -> int:
  """Letters inserted, deleted, replaced, or swapped with their neighbour."""
  previous, row = [], list(range(len(other) + 1))
  for i, letter in enumerate(word, 1):
    before, previous, row = previous, row, [i]
    for j, other_letter in enumerate(other, 1):
      replaced = previous[j - 1] + (letter != other_letter)
      distance = min(previous[j] + 1, row[-1] + 1, replaced)
      if word[i - 2 : i] == other[j - 2 : j][::-1] and min(i, j) > 1:
        distance = min(distance, before[j - 2] + 1)
      row.append(distance)
  return row[-1]
