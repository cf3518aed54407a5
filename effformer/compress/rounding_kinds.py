"""The steps that make codes of a model, with their settings; see `recipe`.

A setting that a step cannot have is a ConfigError.
"""

import dataclasses
from typing import ClassVar

from effformer.compress import patterns
from effformer.compress import step_checks as checks
from effformer.compress.grid import RULES, Grid
from effformer.errors import ConfigError

METHODS = ('nearest', 'gptq', 'awq', 'smooth')
ACTIVATIONS = ('', 'dynamic')


@dataclasses.dataclass(frozen=True)
class Round:
  """All matrices become codes; `tensors.quantise`.

  Attributes:
    bits, group, tile, symmetric, rule: of kernels, see `grid.Grid`.
    tables: bits of tables of vectors, one scale a row; 0 as kernels.
    pattern: (n, m), for n of every m inputs of an output of a kernel to stay,
      the others being 0; () for all. Those that stay are of greatest size, with
      'gptq' chosen by SparseGPT (`prune.sparsegpt`). Tables have none.
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
  pattern: tuple[int, ...] = ()
  method: str = 'nearest'
  batches: int = 8
  activations: str = ''

  def __post_init__(self):
    checks.one_of('round', 'method', self.method, METHODS)
    checks.one_of('round', 'activations', self.activations, ACTIVATIONS)
    is_read = self.method != 'nearest'
    checks.batches('round', self, is_read, "another method than 'nearest'")
    if self.activations and self.rule == 'kmeans':
      checks.refuse(
        f'round: activations={self.activations!r} needs integers times a '
        "scale, and rule='kmeans' has a codebook. Leave activations out, or "
        'take another rule'
      )
    if len(self.pattern) not in (0, 2):
      checks.refuse(
        f'round: pattern={self.pattern} has to be two numbers, n of m'
      )
    try:
      if self.pattern:
        patterns.check(*self.pattern)
      _ = self.grid, self.table_grid
    except ValueError as error:
      raise ConfigError(f'round: {error}.') from None

  @property
  def grid(self) -> Grid:
    """Of kernels."""
    keep, of = self.pattern or (0, 0)
    return Grid(
      *(self.bits, self.group, self.tile, self.symmetric, self.rule), keep, of
    )

  @property
  def table_grid(self) -> Grid | None:
    """Of tables, None where it is that of kernels."""
    if self.tables:
      return Grid(self.tables)
    return self.grid.dense if self.pattern else None

  @property
  def dense(self) -> 'Round':
    """The control of a pattern: all weights stay, in as many bytes.

    Bits are rounded down, to the nearest that the rule has.
    """
    if not self.pattern:
      return self
    keep, of = self.pattern
    bits = keep * (self.bits + patterns.place_bits(of)) // of
    known = RULES[self.rule]
    bits = min(max(bits, min(known)), max(known))
    # Tables, which have no pattern, keep their bits.
    tables = self.tables or (0 if bits == self.bits else self.bits)
    return dataclasses.replace(self, bits=bits, tables=tables, pattern=())


@dataclasses.dataclass(frozen=True)
class ChooseBits:
  """All matrices become codes, of bits that `policy` chooses.

  Attributes:
    budget: of bytes of codes and scales, as a share of those of float32; at
      least (b + 32 / tile) / 32 with the fewest bits b of `choices`.
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
  COST: ClassVar[str] = 'bytes'
  budget: float
  choices: tuple[int, ...] = (8, 6, 5, 4, 3, 2)
  tile: int = 32
  method: str = 'gptq'
  tolerance: float = 0.0
  batches: int = 8
  max_trials: int = 10

  def __post_init__(self):
    checks.one_of('choose_bits', 'method', self.method, METHODS[:2])
    checks.searched('choose_bits', self, ('tile', 'batches', 'max_trials'))
    if not self.choices or not {*self.choices} <= set(range(2, 9)):
      checks.refuse(f'choose_bits: choices={self.choices} have to be of 2 to 8')
    # No matrix has fewer scales. 1e-9: a share may be given as a rounded one.
    least = self._share(min(self.choices))
    if self.budget < least * (1 - 1e-9):
      checks.refuse(
        f'choose_bits: budget={self.budget:g} is less than {least:.6g}, which '
        f'{min(self.choices)} bits with a scale for each {self.tile} inputs '
        'take everywhere. Allow more, fewer bits, or a larger tile'
      )

  @property
  def grids(self) -> dict[str, Grid]:
    """What a group may be rounded to, by name."""
    return {
      str(bits): Grid(bits, 'tile', self.tile, rule='clip')
      for bits in self.choices
    }

  @property
  def uniform(self) -> Round:
    """The control: the same bits for all, as many as the budget allows."""
    fitting = [b for b in self.choices if self._share(b) <= self.budget]
    return Round(
      max(fitting, default=min(self.choices)),
      *('tile', self.tile),
      rule='clip',
      tables=0,
      method=self.method,
      batches=Round.batches if self.method == 'nearest' else self.batches,
    )

  def _share(self, bits: int) -> float:
    """Of the bytes of float32, with a scale of 32 bits for each whole tile."""
    return (bits + 32 / self.tile) / 32
