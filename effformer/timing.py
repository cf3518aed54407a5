"""Times of programs beside each other, on machines that are not quiet."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def rounds(
  programs: Sequence[Callable[[], Any]], number: int
) -> list[list[float]]:
  """Seconds of each program in each of so many rounds.

  A round runs every program once, so that what slows the machine slows all
  alike; each round starts with the next program, so that none is always behind
  the same one. One round more comes first and is not counted, in which memory
  is touched for the first time.
  """
  times: list[list[float]] = [[] for _ in programs]
  for turn in range(number + 1):
    for place in range(len(programs)):
      index = (turn + place) % len(programs)
      start = time.perf_counter()
      jax.block_until_ready(programs[index]())
      if turn:
        times[index].append(time.perf_counter() - start)
  return times
