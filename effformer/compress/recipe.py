"""Steps of a compression, as data, and the orders in which they can work.

    recipe.read([
      {'do': 'drop_layers', 'keep': (0, 2, 5)},
      {'do': 'train', 'steps': 500, 'learning_rate': 1e-4,
       'lesson': {'hard': 0.5, 'soft': 1, 'states': 1}},
      {'do': 'prune', 'units': ('mlp',), 'ratio': 0.25},
      {'do': 'train', 'steps': 500, 'learning_rate': 1e-4},
      {'do': 'round', 'bits': 8},
    ])

Layers leave, become one or narrower, and attention, activations and norms are
swapped before units are pruned or matrices factorised, since these are chosen
by the model that will be; matrices are split in two after that, once they are
ternary; rounding comes last, since codes cannot be trained and scales go stale
when weights move.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from effformer.compress.distill.teaching import Lesson
from effformer.compress.rounding_kinds import ChooseBits, Round
from effformer.compress.step_checks import refuse
from effformer.compress.step_kinds import (
  Bottleneck,
  ChooseUnits,
  DropLayers,
  Factorise,
  Prune,
  Share,
  Simplify,
  Split,
  Swap,
  Train,
)

_MISSING = {dataclasses.MISSING}

Step = (
  DropLayers
  | Swap
  | Bottleneck
  | Share
  | Simplify
  | Prune
  | Factorise
  | ChooseUnits
  | Train
  | Split
  | Round
  | ChooseBits
)
# Steps with a rank come in its order; the others anywhere before the last.
STEPS: dict[str, type] = {
  'drop_layers': DropLayers,
  'swap': Swap,
  'bottleneck': Bottleneck,
  'share': Share,
  'simplify': Simplify,
  'prune': Prune,
  'factorise': Factorise,
  'choose_units': ChooseUnits,
  'train': Train,
  'split': Split,
  'round': Round,
  'choose_bits': ChooseBits,
}


def read(rows: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
  """The steps of a recipe.

  Args:
    rows: {'do': name, ...}; lists stand for tuples, as in JSON.

  Raises:
    ConfigError: an unknown step or setting, a value that it cannot have, or an
      order that cannot work.
  """
  steps = tuple(_step(row) for row in rows)
  if not steps:
    refuse('a recipe needs at least one step')
  check_order(steps)
  return steps


def check_order(steps: Sequence[Step]) -> None:
  """Raises ConfigError where a step comes too late to be of use.

  A split needs weights that were trained to be ternary, unless nothing is
  trained at all, which is the control of that.
  """
  latest, before = 0, ''
  for step in steps:
    name = name_of(step)
    if latest == Round.rank:
      refuse(
        f'{name} comes after {before}: codes cannot be changed any more, so '
        f'{before} has to be the last step'
      )
    if step.rank is not None and step.rank < latest:
      refuse(
        f'{name} comes after {before}, which chose by the model as it was: '
        f'move {name} before it'
      )
    if step.rank is not None:
      latest, before = step.rank, name
    if isinstance(step, Train) and step.rounded:
      _check_rounded(steps[-1])
  if has_split(steps):
    _check_split(steps)


def has_split(steps: Sequence[Step]) -> bool:
  """Whether matrices become sums of two on the way."""
  return any(isinstance(step, Split) for step in steps)


def _check_rounded(last: Step) -> None:
  if not (isinstance(last, Round) and last.method == 'nearest'):
    refuse(
      'train with rounded=True trains for the last step, which then has to be '
      f"round with method='nearest', not {name_of(last)}"
    )


def _check_split(steps: Sequence[Step]) -> None:
  places = [i for i, step in enumerate(steps) if isinstance(step, Split)]
  if len(places) > 1:
    refuse('split comes twice: halves are binary, and are not split again')
  last = steps[-1]
  is_sign = isinstance(last, Round) and last.rule == 'sign'
  if not (is_sign and last.method == 'nearest'):
    refuse(
      'split makes sums of two binary matrices, so the last step has to be '
      "round with bits=1, rule='sign' and method='nearest'"
    )
  before, after = (
    [step for step in own if isinstance(step, Train)]
    for own in (steps[: places[0]], steps[places[0] :])
  )
  if (before or after) and not (before and before[-1].rounded):
    refuse(
      'split is of weights that were trained to be ternary: the last train '
      'before it needs rounded=True'
    )
  if not all(step.rounded for step in after):
    refuse(
      'train after split needs rounded=True: what is trained as numbers is no '
      'sum of binary matrices'
    )


def row_of(step: Step) -> dict[str, Any]:
  """The row that `read` makes the step of, for JSON."""
  return {'do': name_of(step), **dataclasses.asdict(step)}


def chosen(step: Step) -> dict[str, Any]:
  """`row_of` without what is as it is by default."""
  row = {'do': name_of(step)}
  for field in dataclasses.fields(step):
    value = getattr(step, field.name)
    if value in (field.default, {}):
      continue
    if isinstance(value, Lesson):
      # Those of a teacher, who is asked for by name.
      neutral = dataclasses.asdict(Lesson())
      own = dataclasses.asdict(value).items()
      value = {name: x for name, x in own if x != neutral[name]}
    row[field.name] = value
  return row


def name_of(step: Step) -> str:
  """Key of `STEPS`."""
  return next(name for name, cls in STEPS.items() if type(step) is cls)


def _step(row) -> Step:
  settings = dict(row)
  name = settings.pop('do', None)
  if name not in STEPS:
    refuse(f'no step {name!r}; there are {", ".join(STEPS)}')
  cls = STEPS[name]
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for key in settings:
    if key not in fields:
      known = ', '.join(fields) or 'none'
      refuse(f'{name} has no setting {key!r}; it has {known}')
  for key, field in fields.items():
    has_default = {field.default, field.default_factory} != _MISSING
    if key not in settings and not has_default:
      refuse(f'{name} needs {key}')
  return cls(
    **{key: _value(name, key, x, hints[key]) for key, x in settings.items()}
  )


def _value(name, key, value, kind):
  if kind is Lesson:
    return _lesson(name, value)
  if typing.get_origin(kind) is Mapping:
    if not isinstance(value, Mapping):
      refuse(f'{name}: {key}={value!r} has to be values by name')
    return dict(value)
  if isinstance(kind, types.GenericAlias):
    (item, _) = typing.get_args(kind)
    if isinstance(value, str) or not isinstance(value, Sequence):
      refuse(f'{name}: {key}={value!r} has to be a row of values')
    return tuple(_value(name, key, x, item) for x in value)
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    refuse(f'{name}: {key}={value!r} has to be {kind.__name__}')
  return value


def _lesson(name, value):
  if isinstance(value, Lesson):
    return value
  if not isinstance(value, Mapping):
    refuse(f'{name}: lesson={value!r} has to be weights by name')
  hints = typing.get_type_hints(Lesson)
  for key in value:
    if key not in hints:
      refuse(f'{name}: a lesson has no {key!r}; it has {", ".join(hints)}')
  return Lesson(**{k: _value(name, k, x, hints[k]) for k, x in value.items()})
