"""The steps that change or train a model, with their settings; see `recipe`.

Those that round it are in `rounding_kinds`. A setting that a step cannot
have is a ConfigError.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from effformer.compress import step_checks as checks
from effformer.compress.distill.teaching import Lesson

SCORES = ('magnitude', 'saliency', 'taylor', 'random')
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
    checks.at_least_one('bottleneck', 'width', self.width)
    if self.mlp_width < 0:
      checks.refuse(
        f'bottleneck: mlp_width={self.mlp_width} has to be at least 0'
      )


@dataclasses.dataclass(frozen=True)
class Share:
  """Layers that are alike become one; `share.groups_of`, `share.tie`.

  Attributes:
    number: of different layers that stay; 1 is ALBERT.
  """

  rank: ClassVar[int] = 0
  number: int

  def __post_init__(self):
    checks.at_least_one('share', 'number', self.number)


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
      checks.refuse('simplify needs an activation or a norm')
    checks.batches('simplify', self, self.norm == 'affine', "norm='affine'")


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
      checks.refuse(
        f'factorise: parts={self.parts} have to be of {sorted(known)}'
      )
    if not 0 < self.share < 1:
      checks.refuse(
        f'factorise: share={self.share} has to be above 0 and below 1'
      )
    checks.batches(
      'factorise', self, 'mlp' in self.parts, "'mlp' among its parts"
    )


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
    checks.units('prune', self.units)
    if not 0 < self.ratio < 1:
      checks.refuse(f'prune: ratio={self.ratio} has to be above 0 and below 1')
    checks.one_of('prune', 'score', self.score, SCORES)
    checks.one_of('prune', 'within', self.within, ('place', 'model'))
    is_read = self.score in ('saliency', 'taylor')
    checks.batches('prune', self, is_read, "score='saliency' or 'taylor'")


@dataclasses.dataclass(frozen=True)
class ChooseUnits:
  """Heads, columns and layers leave, so many of each layer as `policy` chooses.

  Attributes:
    budget: of the milliseconds of all blocks on this device, as a share of
      those of the model before.
    units: as of `Prune`.
    shares: of the units of a layer that may stay, beside all.
    drops_layers: whether whole layers may leave.
    score: one of `SCORES`; the units of the highest stay.
    batch, length: rows that are timed, and ids of each; length 0 for
      data.max_length.
    tolerance, max_trials: as of `ChooseBits`.
    batches: of the train split: so many score units, the next so many choose.
  """

  rank: ClassVar[int] = 1
  COST: ClassVar[str] = 'milliseconds'
  budget: float
  units: tuple[str, ...] = ('head', 'mlp')
  shares: tuple[float, ...] = (0.75, 0.5, 0.25)
  drops_layers: bool = True
  score: str = 'taylor'
  batch: int = 1
  length: int = 0
  tolerance: float = 0.0
  batches: int = 8
  max_trials: int = 10

  def __post_init__(self):
    checks.units('choose_units', self.units)
    checks.one_of('choose_units', 'score', self.score, SCORES)
    checks.searched('choose_units', self, ('batch', 'batches', 'max_trials'))
    if self.length < 0:
      checks.refuse(f'choose_units: length={self.length} has to be at least 0')
    if not self.shares or not all(0 < share < 1 for share in self.shares):
      checks.refuse(
        f'choose_units: shares={self.shares} have to be above 0 and below 1'
      )

  @property
  def uniform(self) -> Prune:
    """The control: the same share of units leaves everywhere."""
    is_read = self.score in ('saliency', 'taylor')
    return Prune(
      self.units,
      1 - self.budget,
      score=self.score,
      batches=self.batches if is_read else Prune.batches,
    )


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
    checks.at_least_one('train', 'steps', self.steps)
    if not self.learning_rate > 0:
      checks.refuse(
        f'train: learning_rate={self.learning_rate} has to be above 0'
      )


@dataclasses.dataclass(frozen=True)
class Split:
  """Ternary matrices become sums of two binary ones; `halves.of`.

  Those that the last step rounds by its rule 'sign', in its groups.
  """

  rank: ClassVar[int] = 2
