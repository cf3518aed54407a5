"""The steps that a recipe may have, with their settings; see `recipe`.

A setting that a step cannot have is a ConfigError.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from effformer.compress.distill.teaching import Lesson
from effformer.compress.grid import Grid
from effformer.errors import ConfigError

SCORES = ('magnitude', 'saliency', 'taylor', 'random')
METHODS = ('nearest', 'gptq', 'awq', 'smooth')
ACTIVATIONS = ('', 'dynamic')
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
class Bottleneck:
  """Narrower blocks, which begin anew; `bottleneck.narrow`.

  Attributes:
    width: of what is in a block.
    layers: which become narrower; () for all.
    mlp_width: columns of their feed-forward parts; 0 for the share of them that
      the width is of the width before.
  """

  rank: ClassVar[int] = 0
  width: int
  layers: tuple[int, ...] = ()
  mlp_width: int = 0

  def __post_init__(self):
    _at_least_one('bottleneck', 'width', self.width)
    if self.mlp_width < 0:
      refuse(f'bottleneck: mlp_width={self.mlp_width} has to be at least 0')


@dataclasses.dataclass(frozen=True)
class Share:
  """Layers that are alike become one; `share.groups_of`, `share.tie`.

  Attributes:
    number: of different layers that stay; 1 is ALBERT.
  """

  rank: ClassVar[int] = 0
  number: int

  def __post_init__(self):
    _at_least_one('share', 'number', self.number)


@dataclasses.dataclass(frozen=True)
class Simplify:
  """Another activation, other norms; `simplify`.

  Attributes:
    activation, norm: their names, '' for those that are there.
    batches: of the train split, that norms without statistics are fitted to;
      for norm='affine'.
  """

  rank: ClassVar[int] = 0
  activation: str = ''
  norm: str = ''
  batches: int = 8

  def __post_init__(self):
    if not self.activation and not self.norm:
      refuse('simplify needs an activation or a norm')
    _batches('simplify', self, self.norm == 'affine', "norm='affine'")


@dataclasses.dataclass(frozen=True)
class Factorise:
  """Matrices become products of two; `low_rank.factorise`.

  Attributes:
    share: of the numbers of each matrix that stays.
    parts: 'mlp', 'embedding'.
    batches: of the train split, whose inputs the error is of; for 'mlp'.
  """

  rank: ClassVar[int] = 1
  share: float
  parts: tuple[str, ...] = ('mlp',)
  batches: int = 8

  def __post_init__(self):
    known = {'mlp', 'embedding'}
    if not self.parts or not set(self.parts) <= known:
      refuse(f'factorise: parts={self.parts} have to be of {sorted(known)}')
    if not 0 < self.share < 1:
      refuse(f'factorise: share={self.share} has to be above 0 and below 1')
    _batches('factorise', self, 'mlp' in self.parts, "'mlp' among its parts")


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
      refuse(f'prune: units={self.units} have to be of {sorted(known)}')
    if not 0 < self.ratio < 1:
      refuse(f'prune: ratio={self.ratio} has to be above 0 and below 1')
    _one_of('prune', 'score', self.score, SCORES)
    _one_of('prune', 'within', self.within, ('place', 'model'))
    is_read = self.score in ('saliency', 'taylor')
    _batches('prune', self, is_read, "score='saliency' or 'taylor'")


@dataclasses.dataclass(frozen=True)
class Train:
  """Recovery by the one loop, with the parent as teacher or without one.

  Attributes:
    steps: of the optimiser; the rest is as in the parent's config.
    learning_rate: its peak, after a tenth of the steps; then a cosine to 0.
    lesson: see `teaching.Lesson`; by default labels alone.
    rounded: whether the loss is that of the parameters as the last step rounds
      them, with gradients straight through (`qat`); before a split, as ternary
      ones with the groups of the last step.
  """

  rank: ClassVar[None] = None
  steps: int
  learning_rate: float
  lesson: Lesson = LABELS
  rounded: bool = False

  def __post_init__(self):
    _at_least_one('train', 'steps', self.steps)
    if not self.learning_rate > 0:
      refuse(f'train: learning_rate={self.learning_rate} has to be above 0')


@dataclasses.dataclass(frozen=True)
class Split:
  """Ternary matrices become sums of two binary ones; `halves.of`.

  Those that the last step rounds by its rule 'sign', in its groups.
  """

  rank: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class Round:
  """All matrices become codes; `tensors.quantise`.

  Attributes:
    bits, group, tile, symmetric, rule: of kernels, see `grid.Grid`.
    tables: bits of tables of vectors, one scale a row; 0 as kernels.
    method: one of `METHODS`.
    batches: of the train split, that all but 'nearest' are calibrated on.
    activations: '' for inputs of dense layers as they are; 'dynamic' for 8 bits
      of them, too, and products of integers, which rule 'kmeans' has none of.
  """

  rank: ClassVar[int] = 3
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
    is_read = self.method != 'nearest'
    _batches('round', self, is_read, "another method than 'nearest'")
    if self.activations and self.rule == 'kmeans':
      refuse(
        f'round: activations={self.activations!r} needs integers times a '
        "scale, and rule='kmeans' has a codebook. Leave activations out, or "
        'take another rule'
      )
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
    tolerance: loss of the whole model that is enough: mean KL to the model
      before in nats, of vectors 1 - cosine. Until a plan has it further ones
      are measured; 0 = the best of the first few.
    batches: of the train split: so many calibrate, the next so many choose.
    max_trials: plans that are measured at most.
  """

  rank: ClassVar[int] = 3
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
      refuse(f'choose_bits: budget={self.budget} has to be above 0 and below 1')
    if not self.tolerance >= 0:
      refuse(f'choose_bits: tolerance={self.tolerance} has to be at least 0')
    if not self.choices or not {*self.choices} <= set(range(2, 9)):
      refuse(f'choose_bits: choices={self.choices} have to be of 2 to 8')

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
      batches=Round.batches if self.method == 'nearest' else self.batches,
    )


def _one_of(name, key, value, known):
  if value not in known:
    refuse(f'{name}: {key}={value!r} has to be one of {", ".join(known)}')


def _batches(name, step, is_read, reader):
  _at_least_one(name, 'batches', step.batches)
  if not is_read and step.batches != type(step).batches:
    refuse(
      f'{name}: batches={step.batches} is read with {reader} only. Leave it out'
    )


def _at_least_one(name, key, value):
  if value < 1:
    refuse(f'{name}: {key}={value} has to be at least 1')


def refuse(what: str) -> typing.NoReturn:
  """Raises the ConfigError of a recipe; `what` is without a full stop."""
  raise ConfigError(f'{what}.')
