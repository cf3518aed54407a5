"""Sparse Transformer: its limits and its two sets."""

import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import (
  PACKED,
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


def sparse(**settings):
  return Case('sparse').having(num_heads=H, **settings)


def seen_by(case, token, heads):
  """Tokens whose content changes the output of `token` in these heads."""
  params = dict(variables_of(case)['params'])
  out_HKD = np.zeros_like(params['out']['kernel'])
  out_HKD[heads] = params['out']['kernel'][heads]
  params['out'] = {'kernel': out_HKD}
  x_BTD = np.repeat(normal(1, T, D), T + 1, axis=0)
  for t in range(T):
    x_BTD[t, t] += 1.0
  tokens = Tokens.from_lengths(np.full(T + 1, T), T)
  y_BD = call_of(case)({'params': params}, x_BTD, tokens)[:, token]
  return [t for t in range(T) if np.abs(y_BD[t] - y_BD[T]).max() > 1e-6]


@pytest.mark.parametrize('is_causal', [False, True])
@pytest.mark.parametrize(
  'settings',
  [
    {'pattern': 'strided', 'stride': T},
    {'pattern': 'strided', 'stride': 1},
    {'pattern': 'fixed', 'stride': T},
    {'pattern': 'fixed', 'stride': 2, 'columns': 2},
  ],
  ids=str,
)
def test_sets_that_hold_all_tokens_are_full(settings, is_causal):
  full = Case('full').having(num_heads=H, form='dense', causal=is_causal)
  case = sparse(causal=is_causal, **{'columns': 1, **settings})
  x_BTD, tokens = normal(B, T, D), full.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = call_of(case)(variables_of(full), x_BTD, tokens)
  assert_close(y_BTD[keep_BT], run(full, x_BTD, tokens)[keep_BT])


STRIDED = {'pattern': 'strided', 'stride': 2}
FIXED = {'pattern': 'fixed', 'stride': 3, 'columns': 1}


@pytest.mark.parametrize(
  ('settings', 'token', 'first', 'second'),
  [
    (STRIDED, 4, [3, 4, 5], [0, 2, 4, 6]),
    (STRIDED | {'causal': True}, 4, [3, 4], [0, 2, 4]),
    (FIXED, 4, [3, 4, 5], [2, 4, 5]),
    (FIXED, 6, [6], [2, 5, 6]),
    (FIXED | {'causal': True}, 4, [3, 4], [2, 4]),
    # In the paper, this head of this token has nothing to see.
    (FIXED | {'causal': True}, 1, [0, 1], [1]),
  ],
  ids=str,
)
def test_heads_see_one_set_each_or_both(settings, token, first, second):
  alone = sparse(split_heads=True, **settings)
  assert seen_by(alone, token, slice(0, None, 2)) == first
  assert seen_by(alone, token, slice(1, None, 2)) == second
  both = sparse(**settings)
  assert seen_by(both, token, slice(None)) == sorted({*first, *second})


@pytest.mark.parametrize('settings', [STRIDED, FIXED], ids=str)
def test_tokens_beyond_the_room_of_a_state_are_not_lost_silently(settings):
  case = sparse(causal=True, **settings)
  tokens = Tokens.from_lengths(np.array([T, 4]), T)
  x_BTD = normal(B, T, D)
  y_BTD, _ = extend_of(case)(
    variables_of(case), x_BTD, start_of(case, max_length=5), tokens
  )
  assert np.isnan(y_BTD[0]).all()
  assert_close(y_BTD[1, :4], run(case, x_BTD, tokens)[1, :4])


def test_packed_segments_have_blocks_of_their_own():
  """Padding between the tokens of a segment takes up room, as in one row."""
  case = sparse(**FIXED)
  x_BTD, y_BTD = normal(1, T, D), normal(1, T, D, seed=1)
  y_BTD[:, 2:] = x_BTD[:, : T - 2]
  alone = Tokens.from_segments(np.array([[1, 1, 0, 1, 1, 0, 0]]))
  packed = Tokens.from_segments(np.array([[1, 1, 2, 2, 0, 2, 2]]))
  keep_T = np.asarray(alone.keep_BT[0])
  z_BTD = run(case, y_BTD, packed)[:, 2:][:, keep_T[: T - 2]]
  for is_packed in (False, True):
    tokens = alone.replace(is_packed=is_packed)
    assert_close(z_BTD, run(case, x_BTD, tokens)[:, keep_T])


@pytest.mark.parametrize('is_packed', [False, True])
@pytest.mark.parametrize('settings', [STRIDED, FIXED], ids=str)
def test_sets_begin_at_the_first_token(settings, is_packed):
  case, x_BTD = sparse(**settings), normal(1, T, D)
  right = Tokens.from_lengths(np.array([T - 2]), T)
  left = Tokens.from_segments(np.array([[0] * 2 + [1] * (T - 2)]))
  left = left.replace(is_packed=is_packed)
  y_BTD = run(case, np.roll(x_BTD, 2, axis=1), left)[:, 2:]
  assert_close(y_BTD, run(case, x_BTD, right)[:, : T - 2])


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'pattern': 'random'}, "pattern.*strided, fixed.*'random'"),
    ({'stride': 0}, 'stride.*0'),
    ({'columns': 0}, 'columns.*0'),
    ({'stride': 4, 'columns': 5}, 'columns.*stride 4, got 5'),
  ],
)
def test_wrong_value_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    attention.build('sparse', **settings)
