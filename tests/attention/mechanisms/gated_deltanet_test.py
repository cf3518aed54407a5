"""Gated DeltaNet and DeltaNet: a dictionary, and its start."""

import math

import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import D, H, T, assert_close, normal
from tests.attention.mechanisms.recurrent_test import bare, params_of, read

KEYS = np.array([0, 1, 0, 2, 1])
VALUES = normal(len(KEYS), 3)


def dictionary(queries, is_gated=False, **settings):
  """o [T, 3] * sqrt(K) where token t writes VALUES[t] at KEYS[t] and reads.

  Channels of x: one-hot keys, one-hot queries, one, values.
  """
  delta = 'gated' if is_gated else 'plain'
  module = bare(
    'gated_deltanet', causal=True, head_width=4, value_width=3, delta=delta,
    **settings,
  )  # fmt: skip
  x_TD = np.zeros((len(KEYS), D), 'f4')
  x_TD[np.arange(len(KEYS)), KEYS] = 1.0
  x_TD[np.arange(len(KEYS)), 4 + np.array(queries)] = 1.0
  x_TD[:, 8], x_TD[:, 9:] = 1.0, VALUES

  def channels(first, size, scale):
    kernel_DHK = np.zeros((D, H, size), 'f4')
    kernel_DHK[first : first + size] = scale * np.eye(size)[:, None]
    return {'kernel': kernel_DHK}

  filter_WM = np.zeros((4, H * 11), 'f4')
  filter_WM[0] = 1.0
  rate_DH = np.zeros((D, H), 'f4')
  rate_DH[8] = 40.0
  params = {
    'key': channels(0, 4, 30.0),
    'query': channels(4, 4, 30.0),
    'value': channels(9, 3, 1.0),
    'rate': {'kernel': rate_DH},
    'conv': filter_WM,
  }
  if is_gated:
    params |= {
      'step': {'kernel': np.zeros((D, H), 'f4')},
      'log_rate': np.zeros(H, 'f4'),
      # Without decay, with strong decay.
      'step_bias': np.array([-100.0, 100.0, 100.0], 'f4'),
    }
  tokens = Tokens.from_lengths(np.array([len(KEYS)]), len(KEYS))
  o_BTM = read(module, params, x_TD[None], tokens)
  return math.sqrt(4) * o_BTM[0].reshape(len(KEYS), H, 3)


def silu(x):
  return x / (1 + np.exp(-x))


def test_a_key_holds_the_last_value_written_there():
  stored = silu(VALUES)
  o_THV = dictionary(queries=[0, 0, 0, 1, 0])
  expected_TV = stored[[0, 0, 2, 1, 2]]
  for h in range(H):
    assert_close(o_THV[:, h], expected_TV, 1e-5)


def test_a_key_never_written_is_empty():
  o_THV = dictionary(queries=[3, 2, 2, 3, 3])
  np.testing.assert_allclose(o_THV, 0.0, atol=1e-6)


def test_above_rate_one_the_old_value_changes_its_sign():
  stored = silu(VALUES)
  o_THV = dictionary(queries=[0, 1, 0, 2, 1], max_rate=2.0)
  assert_close(o_THV[0, 0], 2 * stored[0], 1e-5)
  assert_close(o_THV[2, 0], 2 * stored[2] - 2 * stored[0], 1e-5)


def test_decay_acts_before_the_state_is_read_at_the_key():
  stored = silu(VALUES)
  o_THV = dictionary(queries=[0, 0, 0, 1, 1], is_gated=True)
  assert_close(o_THV[:, 0], stored[[0, 0, 2, 1, 4]], 1e-5)
  # What is forgotten is not subtracted either.
  expected_TV = np.where(np.array([1, 0, 1, 0, 1])[:, None], stored, 0.0)
  assert_close(o_THV[:, 1], expected_TV, 1e-5)


def test_without_decay_it_is_deltanet():
  widths = {'causal': True, 'head_width': 4, 'value_width': 5}
  gated = bare('gated_deltanet', **widths)
  plain = bare('gated_deltanet', delta='plain', **widths)
  x_BTD, tokens = normal(1, T, D), Tokens.from_lengths(np.array([T]), T)
  params = params_of(gated, x_BTD, tokens)
  y_BTD = read(gated, params, x_BTD, tokens)
  params |= {'step_bias': np.full(H, -100.0, 'f4')}
  params |= {'step': {'kernel': np.zeros((D, H), 'f4')}}
  z_BTD = read(gated, params, x_BTD, tokens)
  assert_close(z_BTD, read(plain, params, x_BTD, tokens))
  assert np.abs(z_BTD - y_BTD).max() > 1e-3


def many(**settings):
  """Parameters of many heads, to see a distribution."""
  module = attention.build('gated_deltanet', num_heads=600, **settings)
  tokens = Tokens.from_lengths(np.array([1]), 1)
  return params_of(module, np.zeros((1, 1, D), 'f4'), tokens)


def test_start_of_decay_and_filters():
  params = many(head_width=4)
  rate_H = np.exp(params['log_rate'])
  assert 0 < rate_H.min() < 0.2
  assert 15.8 < rate_H.max() < 16
  step_H = np.log1p(np.exp(np.asarray(params['step_bias'], 'f8')))
  assert 1e-3 * (1 - 1e-5) < step_H.min() < 1.1e-3
  assert 0.09 < step_H.max() < 0.1 * (1 + 1e-5)
  # Log-uniform: half of them below the geometric mean.
  assert 0.44 < (step_H < 1e-2).mean() < 0.56
  assert 0.49 < np.abs(params['conv']).max() <= 0.5
  np.testing.assert_array_equal(params['norm'], 1.0)


def test_deltanet_has_neither_decay_nor_gate():
  params = many(head_width=4, delta='plain')
  names = {'query', 'key', 'value', 'rate', 'conv', 'norm', 'out'}
  assert set(params) == names
  assert params['value']['kernel'].shape[-1] == 4
  gated = many(head_width=4)
  assert set(gated) == names | {'step', 'step_bias', 'log_rate', 'gate'}
  assert gated['value']['kernel'].shape[-1] == 8


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'delta': 'other'}, 'delta.*gated, plain.*other'),
    ({'taps': 0}, 'taps.*0'),
    ({'max_rate': 0.0}, r'max_rate.*\(0, 2\].*0\.0'),
    ({'max_rate': 2.5}, r'max_rate.*\(0, 2\].*2\.5'),
  ],
)
def test_wrong_value_of_gated_deltanet_is_refused(settings, message):
  with pytest.raises(ValueError, match=f'gated_deltanet.*{message}'):
    attention.build('gated_deltanet', **settings)
