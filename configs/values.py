"""Allowed values of number keys."""

import math
import typing


class Range(typing.NamedTuple):
  """Allowed values of number keys: `low <= value <= high`, ends by choice.

  `also` is allowed beside them; `step` 2 leaves only low, low + 2, ...
  """

  low: float
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False
  also: int | None = None
  step: int = 1

  def __contains__(self, value: float) -> bool:
    if self.also is not None and value == self.also:
      return True
    above = self.low < value if self.open_low else self.low <= value
    below = value < self.high if self.open_high else value <= self.high
    on_step = self.step == 1 or (value - self.low) % self.step == 0
    return above and below and on_step and math.isfinite(value)

  def __str__(self) -> str:
    text = f'{"above" if self.open_low else "at least"} {self.low}'
    if self.high < math.inf:
      text += f' and {"below" if self.open_high else "at most"} {self.high}'
    if self.step == 2:
      text += f' and {"odd" if self.low % 2 else "even"}'
    return text if self.also is None else f'{self.also}, or {text}'


COUNT = Range(1)
COUNT_OR_NONE = Range(0)
POSITIVE = Range(0, open_low=True)
RATE = Range(0, 1, open_high=True)
# numpy and jax take seeds of 32 bits.
SEED = Range(0, 2**32 - 1)
