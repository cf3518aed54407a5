"""Nystromformer: its limit, the iterated inverse, and the convolution."""

import jax
import numpy as np
import pytest

from effformer import attention
from effformer.attention import nystromformer
from effformer.shapes import Tokens
from tests.attention.cases import (
  B,
  Case,
  D,
  H,
  T,
  assert_close,
  call_of,
  cross_of,
  normal,
  run,
  variables_of,
)

FULL = Case('full').having(num_heads=H, form='dense')
PLAIN = Case('nystromformer').having(num_heads=H, rank=3, conv_width=3)


def softmax_of(logits):
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


# L6: as many landmarks as tokens.


@pytest.mark.parametrize('rank', [T, T + 4])
def test_a_landmark_for_each_token_is_full(rank):
  case = Case('nystromformer').having(
    num_heads=H, rank=rank, iterations=30, conv_width=0
  )
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = np.asarray(call_of(case)(variables_of(FULL), x_BTD, tokens))
  assert_close(y_BTD[keep_BT], run(FULL, x_BTD, tokens)[keep_BT], 1e-4)
  few = call_of(case.having(rank=3))(variables_of(FULL), x_BTD, tokens)
  assert np.abs(np.asarray(few) - y_BTD)[keep_BT].max() > 1e-2


# The inverse.


def test_inverse_is_that_of_moore_and_penrose():
  a_MM = softmax_of(normal(6, 6)).astype('f4')
  expected_MM = np.linalg.pinv(a_MM.astype('f8'))
  error = [
    np.abs(nystromformer.inverse(a_MM, n) - expected_MM).max()
    / np.abs(expected_MM).max()
    for n in (6, 7, 8, 20)
  ]
  assert error[0] > error[1] > 0.1
  # Of third order, once it is near.
  assert error[2] < error[1] ** 3
  assert error[3] < 1e-5


def test_landmarks_that_are_not_there_take_no_part_in_the_inverse():
  a_MM = softmax_of(normal(4, 5)).astype('f4')
  whole_MM = np.zeros((7, 7), 'f4')
  rows, columns = [0, 2, 3, 6], [0, 1, 2, 4, 5]
  whole_MM[np.ix_(rows, columns)] = a_MM
  z_MM = np.array(nystromformer.inverse(whole_MM, 30))
  part_MM = z_MM[np.ix_(columns, rows)]
  assert_close(part_MM, np.linalg.pinv(a_MM), 1e-3)
  z_MM[np.ix_(columns, rows)] = 0.0
  assert not z_MM.any()


def test_rows_of_a_batch_have_their_own_norms():
  """P8: a batch mate with another norm changed the result of others."""
  case = PLAIN.having(iterations=2)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  alone = Tokens.from_lengths(np.array([T]), T)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = run(case, x_BTD, tokens)
  assert_close(run(case, x_BTD[:1], alone)[0], y_BTD[0])
  x_BTD[0] *= 30.0
  assert_close(run(case, x_BTD, tokens)[1][keep_BT[1]], y_BTD[1][keep_BT[1]])


# The convolution.


@pytest.mark.parametrize('taps', [1, 3, 9])
@pytest.mark.parametrize('length', [1, 4, 9, 17])
def test_convolution_is_centred(monkeypatch, taps, length):
  monkeypatch.setattr(nystromformer, 'BLOCK', 4)
  v_TV, filter_W = normal(length, 3), normal(taps)
  wide = np.pad(v_TV, ((taps // 2, taps // 2), (0, 0)))
  # numpy's turns the filter round.
  expected_TV = np.stack(
    [np.convolve(column, filter_W[::-1], mode='valid') for column in wide.T],
    axis=1,
  )
  y_TV = jax.jit(nystromformer.convolve)(v_TV, filter_W)
  assert_close(y_TV, expected_TV)


def test_each_head_has_one_filter_for_its_own_values():
  case = PLAIN.having(conv_width=5)
  variables = variables_of(case)
  assert variables['params']['conv'].shape == (H, 5)
  params = dict(variables['params'])
  without = dict(params)
  del without['conv']
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, T]), T)
  y_BTD = call_of(case)(variables, x_BTD, tokens)
  bare_BTD = call_of(case.having(conv_width=0))(
    {'params': without}, x_BTD, tokens
  )
  v_BTHV = np.einsum('btd,dhv->bthv', x_BTD, params['value']['kernel'])
  wide = np.pad(v_BTHV, ((0, 0), (2, 2), (0, 0), (0, 0)))
  moved = np.stack([wide[:, w : w + T] for w in range(5)])
  mixed_BTHV = np.einsum('hw,wbthv->bthv', params['conv'], moved)
  part_BTD = np.einsum('bthv,hvd->btd', mixed_BTHV, params['out']['kernel'])
  assert_close(y_BTD, bare_BTD + part_BTD, 1e-5)


def test_there_is_no_convolution_with_a_context():
  sources = Tokens.from_lengths(np.full(B, T), T)
  context_BSD, x_BTD = normal(B, T, D), normal(B, 5, D)
  own = Tokens.from_lengths(np.array([5, 3]), 5)
  results = []
  for scale in (1.0, 3.0):
    params = dict(variables_of(PLAIN)['params'])
    params['conv'] = scale * params['conv']
    results.append(
      cross_of(PLAIN)({'params': params}, x_BTD, context_BSD, own, sources)
    )
  np.testing.assert_array_equal(*results)


# Wrong values.


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rank': 0}, 'rank.*0'),
    ({'iterations': 0}, 'iterations.*0'),
    ({'conv_width': -1}, 'conv_width.*-1'),
    ({'conv_width': 4}, 'conv_width must be odd.*4'),
  ],
)
def test_wrong_value_is_refused(settings, message):
  with pytest.raises(ValueError, match=f'nystromformer.*{message}'):
    attention.build('nystromformer', **settings)
