"""Steps of a compression, as data, and the orders in which they can work.

    recipe.read([
      {'do': 'drop_layers', 'keep': (0, 2, 5)},
      {'do': 'train', 'steps': 500, 'learning_rate': 1e-4,
       'lesson': {'hard': 0.5, 'soft': 1, 'states': 1}},
      {'do': 'prune', 'units': ('mlp',), 'ratio': 0.25},
      {'do': 'train', 'steps': 500, 'learning_rate': 1e-4},
      {'do': 'round', 'bits': 8},
    ])

Layers leave and attention is swapped before units are pruned, since what is
pruned is chosen by the model that will be; rounding comes last, since codes
cannot be trained and scales go stale when weights move.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from effformer.compress.distill.teaching import Lesson
from effformer.compress.grid import Grid
from effformer.errors import ConfigError

SCORES = ('magnitude', 'saliency', 'taylor', 'random')
METHODS = ('nearest', 'gptq', 'awq', 'smooth')
# Without a teacher.
LABELS = Lesson(hard=1.0, soft=0.0)


@dataclasses.dataclass(frozen=True)
class DropLayers:
  """Some layers stay; `depth.drop_layers`."""

  rank: ClassVar[int] = 0
  keep: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Prune:
  """Units leave, and arrays become smaller; `prune`, `shrink.shrink`.

  Attributes:
    units: 'head', 'kv_group', 'mlp'.
    ratio: share of the units that leaves.
    score: one of `SCORES`.
    within: 'place', or 'model' with scores of each place normalised.
    batches: of the train split, that saliency and taylor are of.
  """

  rank: ClassVar[int] = 1
  units: tuple[str, ...]
  ratio: float
  score: str = 'taylor'
  within: str = 'place'
  batches: int = 8

  def __post_init__(self):
    known = {'head', 'kv_group', 'mlp'}
    if not self.units or not set(self.units) <= known:
      _refuse(f'prune: units={self.units} have to be of {sorted(known)}')
    if not 0 < self.ratio < 1:
      _refuse(f'prune: ratio={self.ratio} has to be above 0 and below 1')
    _one_of('prune', 'score', self.score, SCORES)
    _one_of('prune', 'within', self.within, ('place', 'model'))
    _at_least_one('prune', 'batches', self.batches)


@dataclasses.dataclass(frozen=True)
class Train:
  """Recovery by the one loop, with the parent as teacher or without one.

  Attributes:
    steps: of the optimiser; the rest is as in the parent's config.
    learning_rate: its peak.
    lesson: see `teaching.Lesson`; by default labels alone.
  """

  rank: ClassVar[None] = None
  steps: int
  learning_rate: float
  lesson: Lesson = LABELS

  def __post_init__(self):
    _at_least_one('train', 'steps', self.steps)
    if not self.learning_rate > 0:
      _refuse(f'train: learning_rate={self.learning_rate} has to be above 0')


@dataclasses.dataclass(frozen=True)
class Round:
  """All matrices become codes; `tensors.quantise`.

  Attributes:
    bits, group, tile, symmetric, rule: of kernels, see `grid.Grid`.
    tables: bits of tables of vectors, one scale a row; 0 as kernels.
    method: one of `METHODS`.
    batches: of the train split, that all but 'nearest' are calibrated on.
  """

  rank: ClassVar[int] = 2
  bits: int = 8
  group: str = 'channel'
  tile: int = 0
  symmetric: bool = True
  rule: str = 'extremes'
  tables: int = 8
  method: str = 'nearest'
  batches: int = 8

  def __post_init__(self):
    _one_of('round', 'method', self.method, METHODS)
    _at_least_one('round', 'batches', self.batches)
    try:
      _ = self.grid, self.table_grid
    except ValueError as error:
      raise ConfigError(f'round: {error}.') from None

  @property
  def grid(self) -> Grid:
    """Of kernels."""
    return Grid(self.bits, self.group, self.tile, self.symmetric, self.rule)

  @property
  def table_grid(self) -> Grid | None:
    """Of tables, None where it is that of kernels."""
    return Grid(self.tables) if self.tables else None


Step = DropLayers | Prune | Train | Round
# Steps with a rank come in its order; the others anywhere before the last.
STEPS: dict[str, type] = {
  'drop_layers': DropLayers,
  'prune': Prune,
  'train': Train,
  'round': Round,
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
    _refuse('a recipe needs at least one step')
  check_order(steps)
  return steps


def check_order(steps: Sequence[Step]) -> None:
  """Raises ConfigError where a step comes too late to be of use."""
  latest, before = 0, ''
  for step in steps:
    name = name_of(step)
    if latest == Round.rank:
      _refuse(
        f'{name} comes after round: codes cannot be changed any more, so round '
        'has to be the last step'
      )
    if step.rank is not None and step.rank < latest:
      _refuse(
        f'{name} comes after {before}, which chose by a model with more '
        f'layers: move {name} before it'
      )
    if step.rank is not None:
      latest, before = step.rank, name


def row_of(step: Step) -> dict[str, Any]:
  """The row that `read` makes the step of, for JSON."""
  return {'do': name_of(step), **dataclasses.asdict(step)}


def name_of(step: Step) -> str:
  """Key of `STEPS`."""
  return next(name for name, cls in STEPS.items() if type(step) is cls)


def _step(row) -> Step:
  settings = dict(row)
  name = settings.pop('do', None)
  if name not in STEPS:
    _refuse(f'no step {name!r}; there are {", ".join(STEPS)}')
  cls = STEPS[name]
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for key in settings:
    if key not in fields:
      _refuse(f'{name} has no setting {key!r}; it has {", ".join(fields)}')
  for key, field in fields.items():
    if key not in settings and field.default is dataclasses.MISSING:
      _refuse(f'{name} needs {key}')
  return cls(
    **{key: _value(name, key, x, hints[key]) for key, x in settings.items()}
  )


def _value(name, key, value, kind):
  if kind is Lesson:
    return _lesson(name, value)
  if isinstance(kind, types.GenericAlias):
    (item, _) = typing.get_args(kind)
    if isinstance(value, str) or not isinstance(value, Sequence):
      _refuse(f'{name}: {key}={value!r} has to be a row of values')
    return tuple(_value(name, key, x, item) for x in value)
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    _refuse(f'{name}: {key}={value!r} has to be {kind.__name__}')
  return value


def _lesson(name, value):
  if isinstance(value, Lesson):
    return value
  if not isinstance(value, Mapping):
    _refuse(f'{name}: lesson={value!r} has to be weights by name')
  hints = typing.get_type_hints(Lesson)
  for key in value:
    if key not in hints:
      _refuse(f'{name}: a lesson has no {key!r}; it has {", ".join(hints)}')
  return Lesson(**{k: _value(name, k, x, hints[k]) for k, x in value.items()})


def _one_of(name, key, value, known):
  if value not in known:
    _refuse(f'{name}: {key}={value!r} has to be one of {", ".join(known)}')


def _at_least_one(name, key, value):
  if value < 1:
    _refuse(f'{name}: {key}={value} has to be at least 1')


def _refuse(what) -> typing.NoReturn:
  raise ConfigError(f'{what}.')
