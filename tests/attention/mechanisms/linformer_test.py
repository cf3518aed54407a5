"""Linformer: limits of its further mixtures, and lengths."""

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
  K,
  T,
  assert_close,
  call_of,
  normal,
  run,
  variables_of,
)

FULL = Case('full').having(num_heads=H, form='dense')
PLAIN = Case('linformer').having(num_heads=H)

# L6: as many mixtures as tokens.


@pytest.mark.parametrize('rank', [T, T + 2])
def test_a_group_for_each_token_is_full(rank):
  case = PLAIN.having(mixing='pool', rank=rank)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = call_of(case)(variables_of(FULL), x_BTD, tokens)
  assert_close(y_BTD[keep_BT], run(FULL, x_BTD, tokens)[keep_BT])


def test_filters_of_one_tap_are_full():
  case = PLAIN.having(mixing='conv', rank=T)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  keep_BT = np.asarray(tokens.keep_BT)
  params = variables_of(FULL)['params'] | {'mix_keys': np.ones((1, K), 'f4')}
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  assert_close(y_BTD[keep_BT], run(FULL, x_BTD, tokens)[keep_BT])


def test_shares_of_one_token_each_are_full():
  case = PLAIN.having(mixing='dynamic', rank=T)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.full(B, T), T)
  x_BTD[1] = x_BTD[0, ::-1]
  choose_DM = 100.0 * np.linalg.pinv(x_BTD[0])
  params = variables_of(FULL)['params'] | {
    'shares': {'kernel': np.repeat(choose_DM[:, None], H, axis=1)}
  }
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  assert_close(y_BTD, run(FULL, x_BTD, tokens), 1e-5)


def test_filters_are_of_each_channel():
  """Two taps of channel c: c and 10 + c; the values of one mixture."""
  case = PLAIN.having(mixing='conv', rank=1, max_length=2)
  params = dict(variables_of(FULL)['params'])
  taps_WK = np.stack([np.arange(K), 10 + np.arange(K)]).astype('f4')
  params['mix_keys'] = taps_WK
  x_BTD, tokens = normal(1, 2, D), Tokens.from_lengths(np.array([2]), 2)
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  v_THV = np.einsum('td,dhv->thv', x_BTD[0], params['value']['kernel'])
  o_HV = (v_THV * taps_WK[:, None]).sum(0)
  expected_D = np.einsum('hv,hvd->d', o_HV, params['out']['kernel'])
  assert_close(y_BTD[0], np.stack([expected_D] * 2), 2e-5)


# E (X W + b) is made as (E X) W + E b where all heads share E.


@pytest.mark.parametrize('mixing', ['learned', 'pool'])
def test_mixtures_of_tokens_are_those_of_their_heads(mixing):
  lengths = np.array([5, 2])
  per_head = PLAIN.having(rank=3, sharing='none', use_bias=True)
  params = jax.tree.map(
    lambda x: x + normal(*x.shape, seed=3), variables_of(per_head)['params']
  )
  shared = per_head.having(sharing='headwise')
  mixes = {name: params.pop(name)[:1] for name in ('mix_keys', 'mix_values')}
  rows, own = B, {name: mix_MT[0] for name, mix_MT in mixes.items()}
  if mixing == 'pool':
    shared = PLAIN.having(rank=3, mixing='pool', use_bias=True)
    # Of the first row's five tokens groups of 2, 2 and 1.
    mean_1MT = np.zeros((1, 3, T), 'f4')
    mean_1MT[0, 0, :2] = mean_1MT[0, 1, 2:4] = 0.5
    mean_1MT[0, 2, 4] = 1
    rows, own, mixes = 1, {}, dict.fromkeys(mixes, mean_1MT)
  x_BTD, tokens = normal(B, T, D)[:rows], Tokens.from_lengths(lengths[:rows], T)
  repeated = {name: np.repeat(x, H, axis=0) for name, x in mixes.items()}
  expected_BTD = call_of(per_head)({'params': params | repeated}, x_BTD, tokens)
  y_BTD = call_of(shared)({'params': params | own}, x_BTD, tokens)
  keep_BT = np.asarray(tokens.keep_BT)
  assert_close(y_BTD[keep_BT], expected_BTD[keep_BT], 1e-5)


# Lengths.


@pytest.mark.parametrize('mixing', ['pool', 'dynamic'])
def test_any_length_will_do(mixing):
  case = PLAIN.having(mixing=mixing, rank=3)
  tokens = Tokens.from_lengths(np.full(B, 20), 20)
  y_BTD = call_of(case)(variables_of(case), normal(B, 20, D), tokens)
  assert np.isfinite(y_BTD).all()
  names = {'query', 'key', 'value', 'out'}
  names |= {'shares'} if mixing == 'dynamic' else set()
  assert set(variables_of(case)['params']) == names


def test_longer_than_the_filters_is_refused():
  case = PLAIN.having(mixing='conv', rank=3)
  tokens = Tokens.from_lengths(np.full(B, 9), 9)
  # 7 tokens in 3 mixtures are 3 taps, which are enough for 9.
  call_of(case)(variables_of(case), normal(B, 9, D), tokens)
  tokens = Tokens.from_lengths(np.full(B, 10), 10)
  with pytest.raises(ValueError, match=r'10 source tokens.*at most 9'):
    call_of(case)(variables_of(case), normal(B, 10, D), tokens)


def test_wrong_mixing_is_refused():
  with pytest.raises(ValueError, match=r'linformer: mixing.*dynamic.*mean'):
    attention.build('linformer', mixing='mean')
