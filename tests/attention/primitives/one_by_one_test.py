"""Rows one by one: where, and that they draw what rows together draw."""

import jax
import numpy as np
import pytest

from effformer.attention.primitives import one_by_one
from tests import slow
from tests.attention.cases import (
  PACKED,
  PLAIN,
  B,
  D,
  T,
  assert_close,
  module_of,
  normal,
  variables_of,
)


def test_only_one_cpu_and_only_long_rows(monkeypatch):
  assert not one_by_one.is_faster(4096, 64), 'these tests have eight devices'
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  assert one_by_one.is_faster(4096, 64)
  assert not one_by_one.is_faster(128, 64)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not one_by_one.is_faster(4096, 64)


def test_numbers_in_work_fit_the_device(monkeypatch):
  assert one_by_one.numbers(8, True) == one_by_one.ALONE
  assert one_by_one.numbers(8) == one_by_one.TOGETHER // 8
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert one_by_one.numbers(8) == one_by_one.ACCELERATOR // 8


DROPPING = [
  case.having(dropout=0.5)
  for case in PLAIN
  if getattr(module_of(case), 'drops_itself', False)
]


@pytest.mark.parametrize('case', slow.after(1, DROPPING), ids=str)
def test_drops_what_rows_together_drop(monkeypatch, case):
  tokens = case.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)

  def outputs(is_one_by_one):
    monkeypatch.setattr(one_by_one, 'is_faster', lambda *_: is_one_by_one)

    def apply(variables, x_BTD):
      return module_of(case).apply(
        variables, x_BTD, tokens=tokens, deterministic=False,
        rngs={'dropout': jax.random.key(1)},
      )  # fmt: skip

    y_BTD = jax.jit(apply)(variables_of(case), normal(B, T, D))
    return np.asarray(y_BTD)[keep_BT]

  assert_close(outputs(True), outputs(False))
