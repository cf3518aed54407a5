"""What settings of steps are refused for, each in one sentence."""

import typing
from collections.abc import Sequence
from typing import Any

from effformer.errors import ConfigError


def refuse(what: str) -> typing.NoReturn:
  """Raises the ConfigError of a recipe; `what` is without a full stop."""
  raise ConfigError(f'{what}.')


def units(name: str, values: Sequence[str]) -> None:
  """Raises the ConfigError of units that no step knows."""
  known = {'head', 'kv_group', 'mlp'}
  if not values or not set(values) <= known:
    refuse(f'{name}: units={values} have to be of {sorted(known)}')


def searched(name: str, step: Any, counts: Sequence[str]) -> None:
  """Raises the ConfigError of a search: of counts, budget, tolerance."""
  for key in counts:
    at_least_one(name, key, getattr(step, key))
  if not 0 < step.budget < 1:
    refuse(f'{name}: budget={step.budget} has to be above 0 and below 1')
  if not step.tolerance >= 0:
    refuse(f'{name}: tolerance={step.tolerance} has to be at least 0')


def one_of(name: str, key: str, value: str, known: Sequence[str]) -> None:
  """Raises the ConfigError of a value that is not known."""
  if value not in known:
    refuse(f'{name}: {key}={value!r} has to be one of {", ".join(known)}')


def batches(name: str, step: Any, is_read: bool, reader: str) -> None:
  """Raises the ConfigError of `batches` that nothing reads."""
  at_least_one(name, 'batches', step.batches)
  if not is_read and step.batches != type(step).batches:
    refuse(
      f'{name}: batches={step.batches} is read with {reader} only. Leave it out'
    )


def at_least_one(name: str, key: str, value: int) -> None:
  """Raises the ConfigError of a number below 1."""
  if value < 1:
    refuse(f'{name}: {key}={value} has to be at least 1')
