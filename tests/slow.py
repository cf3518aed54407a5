"""Cases of which only the first run in the quick tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def after(number: int, cases: Iterable[Any]) -> list[Any]:
  """The cases for `parametrize`, those after so many marked slow.

  Cases that are tuples are the values of several arguments.
  """
  return [
    case
    if place < number
    else pytest.param(
      *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
    )
    for place, case in enumerate(cases)
  ]
