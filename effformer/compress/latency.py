"""How much faster a model is than its parent, with the noise beside it.

All programs and the parent once more, as a control, take turns. The ratio of a
round is the parent's time over the program's own in that round; what is given
is the median of these and their quartiles. A speed-up within the quartiles of
the control is none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effformer import timing

CONTROL = 'control'
ROUNDS = 31


def compare(
  programs: Mapping[str, Callable[[], Any]],
  parent: str,
  number: int = ROUNDS,
) -> dict[str, dict[str, float]]:
  """Milliseconds and ratios to the parent, by name, the control among them.

  Args:
    programs: name -> () -> what a compiled program gives.
    parent: name of that which all are compared with.
    number: of rounds.
  """
  if parent not in programs or CONTROL in programs:
    raise ValueError(
      f'programs need a {parent!r} and no {CONTROL!r}, got {[*programs]}'
    )
  every = {**programs, CONTROL: programs[parent]}
  found = timing.rounds([*every.values()], number)
  times = {
    name: 1000 * np.array(own) for name, own in zip(every, found, strict=True)
  }
  return {name: _row(own, times[parent]) for name, own in times.items()}


def _row(own_R, parent_R):
  low, middle, high = np.percentile(parent_R / own_R, [25, 50, 75])
  return {
    'p50_ms': float(np.percentile(own_R, 50)),
    'p90_ms': float(np.percentile(own_R, 90)),
    'ratio': float(middle),
    'ratio_p25': float(low),
    'ratio_p75': float(high),
  }
