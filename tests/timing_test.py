"""Whose turn it is; times themselves are no matter of a test."""

import pytest

from effformer import timing
from effformer.compress import latency


def test_every_round_has_every_program_and_another_first():
  calls = []
  programs = [lambda name=name: calls.append(name) for name in 'abc']
  times = timing.rounds(programs, 4)
  assert ''.join(calls) == 'abcbcacababcbca'
  assert [len(own) for own in times] == [4, 4, 4]
  assert all(seconds >= 0 for own in times for seconds in own)


def test_ratios_are_of_the_same_round(monkeypatch):
  def rounds(programs, number):
    assert number == 3
    return [[program() * slow for slow in (1, 5, 2)] for program in programs]

  monkeypatch.setattr(timing, 'rounds', rounds)
  found = latency.compare({'parent': lambda: 0.004, 'small': lambda: 0.001},
                          'parent', 3)  # fmt: skip
  assert list(found) == ['parent', 'small', 'control']
  assert found['control'] == found['parent']
  assert found['small'] == pytest.approx(
    {'p50_ms': 2, 'p90_ms': 4.4, 'ratio': 4, 'ratio_p25': 4, 'ratio_p75': 4}
  )
  assert found['control']['ratio'] == 1


def test_a_parent_is_needed_and_no_other_control():
  with pytest.raises(ValueError, match='need a'):
    latency.compare({'small': int}, 'parent')
  with pytest.raises(ValueError, match='need a'):
    latency.compare({'parent': int, 'control': int}, 'parent')
