"""Lessons as data: which values they cannot have, and which nothing reads."""

import math

import pytest

from effformer.compress.distill.teaching import Lesson
from effformer.errors import ConfigError

WEIGHTS = (
  *('hard', 'soft', 'logits', 'vectors', 'states', 'mixers', 'attention'),
)
HARD = {'hard': 1.0, 'soft': 0.0}


@pytest.mark.parametrize(
  ('wrong', 'words'),
  [
    ({'soft': 0.0}, 'one of them above'),
    ({'soft': -1.0, 'hard': 1.0}, 'at least 0'),
    *(
      ({'logits': 1.0, name: value}, 'weights of at least 0')
      for name in WEIGHTS
      for value in (-1.0, math.nan, math.inf)
    ),
    ({'keep': 'some'}, "no filter 'some'"),
    ({'labels': 'mine'}, "'data' or 'teacher'"),
    *(
      ({'temperature': value}, f'temperature={value} of a lesson has to be')
      for value in (0.0, -2.0, math.nan, math.inf)
    ),
    *(
      ({**HARD, 'keep': 'top', 'top_k': value}, f'top_k={value} of a lesson')
      for value in (0, -1)
    ),
    *(
      ({**HARD, 'keep': 'range', 'low': low, 'high': high}, f'low={low} and')
      for low, high in (
        (0.5, 0.4), (-0.1, 0.4), (0.5, 1.1), (math.nan, 0.4), (0.1, math.nan),
      )
    ),
  ],
)  # fmt: skip
def test_values_that_cannot_be(wrong, words):
  with pytest.raises(ConfigError, match=words):
    Lesson(**wrong)


@pytest.mark.parametrize(
  ('settings', 'needed'),
  [
    ({'temperature': 2.0}, {'soft': 1.0}),
    ({'labels': 'teacher'}, {'hard': 1.0}),
    ({'keep': 'disagree'}, {'hard': 1.0}),
    ({'top_k': 3}, {'hard': 1.0, 'keep': 'top'}),
    ({'low': 0.2}, {'hard': 1.0, 'keep': 'range'}),
    ({'high': 0.7}, {'hard': 1.0, 'keep': 'range'}),
  ],
)
def test_a_setting_has_what_reads_it(settings, needed):
  other = {'soft': 0.0, 'logits': 1.0}
  made = Lesson(**{**other, **needed, **settings})
  for name, value in settings.items():
    assert getattr(made, name) == value
  for name in needed:
    rest = {key: value for key, value in needed.items() if key != name}
    with pytest.raises(ConfigError, match='of a lesson is read with') as found:
      Lesson(**{**other, **rest, **settings})
    # Without labels that of a filter is the filter.
    own = (
      'keep' if name == 'hard' and 'keep' in needed else next(iter(settings))
    )
    assert str(found.value).startswith(f'{own}=')
  # What is as it is by default is no wish.
  neutral = {name: getattr(Lesson, name) for name in settings}
  Lesson(**{**other, **neutral})
