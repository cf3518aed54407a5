"""What a family of published models is: facts, rules, heads."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from effformer.errors import CheckpointError
from effformer.pretrained.rules import Rule

# Their names of f in the feed-forward part -> ours.
_ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
}
# More than any count of a published model.
_LARGEST = 1 << 24
Config = Mapping[str, Any]


class Head(NamedTuple):
  """What stands on the trunk.

  Attributes:
    facts: their config -> values of our config keys, laid over the trunk's.
    rules: of its tensors, with whole names.
    copies: tensors that are another one again, whole name -> name of the rule
      that has it, with the prefix if it is the trunk's; they must be equal.
  """

  facts: Callable[[Config], dict[str, Any]]
  rules: Callable[[Config], Iterable[Rule]]
  copies: Mapping[str, str] = {}


class Family(NamedTuple):
  """Models that share their names.

  Attributes:
    prefix: before the names of the trunk's tensors where a head stands on it.
    facts: their config -> values of our config keys.
    rules: their config -> the trunk's tensors, without the prefix.
    heads: kind -> head; an embedder has none.
    spare: patterns of further tensors, which have no meaning here and are kept
      as they are.
    is_causal: whether tokens see only themselves and earlier ones.
    vocabulary_size: of the ids, where their config does not say.
  """

  prefix: str
  facts: Callable[[Config], dict[str, Any]]
  rules: Callable[[Config], Iterable[Rule]]
  heads: Mapping[str, Head]
  spare: tuple[str, ...]
  is_causal: bool = False
  vocabulary_size: int | None = None

  def is_spare(self, name: str) -> bool:
    """Whether a tensor may be left aside."""
    return any(re.fullmatch(pattern, name) for pattern in self.spare)


def number(
  config: Config, name: str, least: int = 1, most: int = _LARGEST
) -> int:
  """A count of their config; CheckpointError where there is none."""
  value = config.get(name)
  if type(value) is not int or not least <= value <= most:
    raise CheckpointError(
      f'config.json of the pretrained model has {name}={value!r}; a whole '
      f'number from {least} to {most} is needed.\nGet the file again.'
    )
  return value


def fraction(config: Config, name: str, default: float) -> float:
  """A probability or an epsilon; what is not said is the default.

  Raises:
    CheckpointError: it is no number from 0 to below 1.
  """
  value = config.get(name, default)
  if type(value) not in (int, float) or not 0 <= value < 1:
    raise CheckpointError(
      f'config.json of the pretrained model has {name}={value!r}; a number '
      'from 0 to below 1 is needed.\nGet the file again.'
    )
  return value


def heads(config: Config, name: str, width: str) -> int:
  """The number of heads; CheckpointError where it does not divide the width."""
  num_heads, num_features = number(config, name), number(config, width)
  if num_features % num_heads:
    raise CheckpointError(
      f'config.json of the pretrained model has {name}={num_heads}, which does '
      f'not divide {width}={num_features}.\nGet the file again.'
    )
  return num_heads


def activation(config: Config, name: str) -> str:
  """Our name of their activation."""
  value = config.get(name)
  if not isinstance(value, str) or value not in _ACTIVATIONS:
    raise CheckpointError(
      f'config.json of the pretrained model has {name}={value!r}; known: '
      f'{", ".join(_ACTIVATIONS)}.'
    )
  return _ACTIVATIONS[value]


def only(config: Config, name: str, *allowed: Any) -> None:
  """Refuses a model with another value; what is not said is the first."""
  value = config.get(name, allowed[0])
  if value not in allowed:
    raise CheckpointError(
      f'config.json of the pretrained model has {name}={value!r}; such models '
      f'are read with {name}={allowed[0]!r} only.'
    )


def layers(config: Config, name: str) -> range:
  """Numbers of the layers."""
  return range(number(config, name))


def num_classes(config: Config) -> int:
  """Of a classifier; 2 where the config does not say."""
  if 'num_labels' in config:
    return number(config, 'num_labels')
  names = config.get('id2label')
  return len(names) if isinstance(names, dict) and names else 2
