"""Longformer: its limits, its window, its global tokens."""

import jax
import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import (
  B,
  Case,
  D,
  H,
  T,
  assert_close,
  call_of,
  extend_of,
  normal,
  run,
  start_of,
  variables_of,
)

ROWS = Tokens.from_lengths(np.array([T, 4]), T)
KEEP_BT = np.asarray(ROWS.keep_BT)
GLOBAL = ('query', 'key', 'value')


def longformer(**settings):
  return Case('longformer').having(num_heads=H, block=2, **settings)


def full(**settings):
  return Case('full').having(num_heads=H, form='dense', **settings)


def tied():
  """Parameters with which local and global queries see the same."""
  params = dict(variables_of(full())['params'])
  return params | {f'{name}_global': params[name] for name in GLOBAL}


def seen_by(case, token):
  """Tokens whose content changes the output of `token`."""
  x_TD, tokens = normal(T, D), Tokens.from_lengths(np.full(T + 1, T), T)
  x_BTD = np.repeat(x_TD[None], T + 1, axis=0)
  for t in range(T):
    x_BTD[t, t] += 1.0
  y_BD = run(case, x_BTD, tokens)[:, token]
  return [t for t in range(T) if np.abs(y_BD[t] - y_BD[T]).max() > 1e-6]


@pytest.mark.parametrize('is_causal', [False, True])
def test_wide_window_is_full(is_causal):
  case = longformer(attention_window=2 * T, global_tokens=0, causal=is_causal)
  x_BTD, variables = normal(B, T, D), variables_of(full())
  y_BTD = call_of(case)(variables, x_BTD, ROWS)
  expected_BTD = call_of(full(causal=is_causal))(variables, x_BTD, ROWS)
  assert_close(y_BTD[KEEP_BT], expected_BTD[KEEP_BT])


@pytest.mark.parametrize('number', [T, T + 2])
def test_all_tokens_global_is_full_with_the_global_projections(number):
  case = longformer(attention_window=2, global_tokens=number)
  x_BTD, params = normal(B, T, D), dict(variables_of(case)['params'])
  y_BTD = run(case, x_BTD, ROWS)
  params |= {name: params[f'{name}_global'] for name in GLOBAL}
  expected_BTD = call_of(full())({'params': params}, x_BTD, ROWS)
  assert_close(y_BTD[KEEP_BT], expected_BTD[KEEP_BT])


def test_window_and_globals_that_hold_all_tokens_are_full():
  # Tokens 3 to 6 are within 3 of each other, and see tokens 0 to 2 once.
  case = longformer(attention_window=6, global_tokens=3)
  x_BTD, variables = normal(B, T, D), {'params': tied()}
  y_BTD = call_of(case)(variables, x_BTD, ROWS)
  expected_BTD = call_of(full())(variables, x_BTD, ROWS)
  assert_close(y_BTD[KEEP_BT], expected_BTD[KEEP_BT])


@pytest.mark.parametrize(
  ('settings', 'token', 'expected'),
  [
    ({'attention_window': 2, 'global_tokens': 0}, 4, [3, 4, 5]),
    ({'attention_window': 4, 'global_tokens': 0}, 4, [2, 3, 4, 5, 6]),
    ({'attention_window': 4, 'global_tokens': 0, 'causal': True}, 4, [2, 3, 4]),
    ({'attention_window': 2, 'global_tokens': 1}, 4, [0, 3, 4, 5]),
    ({'attention_window': 2, 'global_tokens': 1}, 0, [0, 1, 2, 3, 4, 5, 6]),
    (
      {'attention_window': 2, 'global_tokens': 0, 'dilation': 2},
      4,
      [2, 4, 6],
    ),
  ],
  ids=str,
)
def test_token_sees_half_the_window_on_each_side(settings, token, expected):
  assert seen_by(longformer(**settings), token) == expected


def test_first_real_tokens_are_global_wherever_they_stand():
  case = longformer(attention_window=2, global_tokens=2)
  x_BTD, y_BTD = normal(1, T, D), np.zeros((1, T, D), 'f4')
  y_BTD[:, 2:] = x_BTD[:, : T - 2]
  right = Tokens.from_lengths(np.array([T - 2]), T)
  left = Tokens.from_segments(np.array([[0] * 2 + [1] * (T - 2)]))
  left = left.replace(is_packed=False)
  assert_close(
    run(case, y_BTD, left)[:, 2:], run(case, x_BTD, right)[:, : T - 2]
  )


def test_projections_of_global_queries_are_there_where_they_are_used():
  def names(**settings):
    params = variables_of(longformer(attention_window=2, **settings))['params']
    return {name for name in params if name.endswith('_global')}

  assert names(global_tokens=1) == {f'{name}_global' for name in GLOBAL}
  assert not names(global_tokens=0)
  assert not names(global_tokens=1, causal=True)


def test_state_is_that_of_window_and_globals():
  case = longformer(attention_window=4, dilation=3, global_tokens=2)
  case = case.having(causal=True)
  sizes = {leaf.shape[2] for leaf in jax.tree.leaves(start_of(case, 10**6))}
  assert sizes == {9, 2}


def test_stream_without_globals_is_that_of_the_window():
  case = longformer(attention_window=2, dilation=2, global_tokens=0)
  case = case.having(causal=True)
  x_BTD, state = normal(B, T, D), start_of(case)
  y_BTD, _ = extend_of(case)(variables_of(case), x_BTD, state, ROWS)
  assert_close(y_BTD[KEEP_BT], run(case, x_BTD, ROWS)[KEEP_BT])


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'attention_window': 5}, 'attention_window.*even.*5; use 6'),
    ({'attention_window': 0}, 'attention_window.*0'),
    ({'dilation': 0}, 'dilation.*0'),
    ({'global_tokens': -1}, 'global_tokens.*-1'),
    ({'block': -1}, 'block.*-1'),
  ],
)
def test_wrong_value_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    attention.build('longformer', **settings)
