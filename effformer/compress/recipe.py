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
ACTIVATIONS = ('', 'dynamic')
_MISSING = {dataclasses.MISSING}
# Without a teacher.
LABELS = Lesson(hard=1.0, soft=0.0)


@dataclasses.dataclass(frozen=True)
class DropLayers:
  """Some layers stay; `depth.drop_layers`."""

  rank: ClassVar[int] = 0
  keep: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Swap:
  """Another attention in some layers; `pretrained.swap_mixers`.

  Attributes:
    mechanism: row of the table of mechanisms.
    layers: in which; () for all.
    settings: of the mechanism, beside its defaults.
  """

  rank: ClassVar[int] = 0
  mechanism: str
  layers: tuple[int, ...] = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
    rounded: whether the loss is that of the parameters as the last step rounds
      them, with gradients straight through (`qat`).
  """

  rank: ClassVar[None] = None
  steps: int
  learning_rate: float
  lesson: Lesson = LABELS
  rounded: bool = False

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
    activations: '' for inputs of dense layers as they are; 'dynamic' for 8 bits
      of them, too, and products of integers.
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
  activations: str = ''

  def __post_init__(self):
    _one_of('round', 'method', self.method, METHODS)
    _one_of('round', 'activations', self.activations, ACTIVATIONS)
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


@dataclasses.dataclass(frozen=True)
class ChooseBits:
  """All matrices become codes, of bits that `policy` chooses.

  Attributes:
    budget: of bytes of codes, as a share of those of float32.
    choices: bits that a group of matrices may get.
    tile: inputs that share a scale.
    method: 'nearest' or 'gptq'.
    tolerance: loss of the whole model that is enough: mean KL to the parent in
      nats, of vectors 1 - cosine.
    batches: of the train split: so many calibrate, the next so many choose.
    max_trials: plans that are measured at most.
  """

  rank: ClassVar[int] = 2
  budget: float
  choices: tuple[int, ...] = (8, 6, 5, 4, 3, 2)
  tile: int = 32
  method: str = 'gptq'
  tolerance: float = 0.0
  batches: int = 8
  max_trials: int = 10

  def __post_init__(self):
    _one_of('choose_bits', 'method', self.method, METHODS[:2])
    for name in ('tile', 'batches', 'max_trials'):
      _at_least_one('choose_bits', name, getattr(self, name))
    if not 0 < self.budget < 1:
      _refuse(
        f'choose_bits: budget={self.budget} has to be above 0 and below 1'
      )
    if not self.tolerance >= 0:
      _refuse(f'choose_bits: tolerance={self.tolerance} has to be at least 0')
    if not self.choices or not {*self.choices} <= set(range(2, 9)):
      _refuse(f'choose_bits: choices={self.choices} have to be of 2 to 8')

  @property
  def grids(self) -> dict[str, Grid]:
    """What a group may be rounded to, by name."""
    return {
      str(bits): Grid(bits, 'tile', self.tile, rule='clip')
      for bits in self.choices
    }

  @property
  def uniform(self) -> Round:
    """The control: the same bits for all, as many as the budget allows.

    Scales of float32 are 32 / tile bits of each number.
    """
    room = 32 * self.budget - 32 / self.tile
    fitting = [bits for bits in self.choices if bits <= room]
    return Round(
      max(fitting, default=min(self.choices)),
      *('tile', self.tile),
      rule='clip',
      tables=0,
      method=self.method,
      batches=self.batches,
    )


Step = DropLayers | Swap | Prune | Train | Round | ChooseBits
# Steps with a rank come in its order; the others anywhere before the last.
STEPS: dict[str, type] = {
  'drop_layers': DropLayers,
  'swap': Swap,
  'prune': Prune,
  'train': Train,
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
        f'{name} comes after {before}: codes cannot be changed any more, so '
        f'{before} has to be the last step'
      )
    if step.rank is not None and step.rank < latest:
      _refuse(
        f'{name} comes after {before}, which chose by a model with more '
        f'layers: move {name} before it'
      )
    if step.rank is not None:
      latest, before = step.rank, name
    if isinstance(step, Train) and step.rounded:
      _check_rounded(steps[-1])


def _check_rounded(last: Step) -> None:
  if not (isinstance(last, Round) and last.method == 'nearest'):
    _refuse(
      'train with rounded=True trains for the last step, which then has to be '
      f"round with method='nearest', not {name_of(last)}"
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
    _refuse(f'no step {name!r}; there are {", ".join(STEPS)}')
  cls = STEPS[name]
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for key in settings:
    if key not in fields:
      _refuse(f'{name} has no setting {key!r}; it has {", ".join(fields)}')
  for key, field in fields.items():
    has_default = {field.default, field.default_factory} != _MISSING
    if key not in settings and not has_default:
      _refuse(f'{name} needs {key}')
  return cls(
    **{key: _value(name, key, x, hints[key]) for key, x in settings.items()}
  )


def _value(name, key, value, kind):
  if kind is Lesson:
    return _lesson(name, value)
  if typing.get_origin(kind) is Mapping:
    if not isinstance(value, Mapping):
      _refuse(f'{name}: {key}={value!r} has to be values by name')
    return dict(value)
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
