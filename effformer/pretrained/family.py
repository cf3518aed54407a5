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
Config = Mapping[str, Any]


class Head(NamedTuple):
  """What stands on the trunk.

  Attributes:
    facts: their config -> values of our config keys, laid over the trunk's.
    rules: of its tensors, with whole names.
    copies: tensors that are another one again, whole name -> name of the rule
      that has it; they must be equal.
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


def number(config: Config, name: str) -> int:
  """A count of their config; CheckpointError where there is none."""
  value = config.get(name)
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise CheckpointError(
      f'config.json of the pretrained model has {name}={value!r}; a whole '
      'number of at least 1 is needed.\nGet the file again.'
    )
  return value


def activation(config: Config, name: str) -> str:
  """Our name of their activation."""
  value = config.get(name)
  if value not in _ACTIVATIONS:
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
