"""Native sparse attention: its branches alone, and how it selects."""

import jax
import numpy as np
import pytest

from effformer import attention
from effformer.attention import nsa
from effformer.attention.primitives import blocks
from effformer.shapes import Tokens
from tests.attention.cases import (
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

COMPRESS, SELECT, WINDOW = range(3)
SMALL = Case('nsa').having(
  num_heads=H, compress_block=3, compress_stride=2, block=2, num_selected=4,
  window=2, use_bias=True,
)  # fmt: skip


def alone(case, branch, params=None):
  """Parameters with the gates of the other branches closed."""
  params = dict(params or variables_of(case)['params'])
  bias_HN = np.full((H, 3), -200.0, 'f4')
  bias_HN[:, branch] = 200.0
  gate = {'kernel': np.zeros((D, H, 3), 'f4'), 'bias': bias_HN}
  return {'params': params | {'gate': gate}}


@pytest.mark.parametrize('is_causal', [False, True])
@pytest.mark.parametrize('branch', [SELECT, WINDOW])
def test_everything_selected_or_in_the_window_is_full(branch, is_causal):
  wide = {'num_selected': 4} if branch == SELECT else {'window': T}
  case = SMALL.having(rotary=True, causal=is_causal, **wide)
  full = Case('full').having(
    num_heads=H, use_bias=True, rotary=True, causal=is_causal
  )
  x_BTD, tokens = normal(2, T, D), Tokens.from_lengths(np.array([T, 5]), T)
  params = variables_of(case)['params']
  y_BTD = call_of(case)(alone(case, branch), x_BTD, tokens)
  prefix = '' if branch == SELECT else 'window_'
  names = {name: f'{prefix}{name}' for name in ('key', 'value')}
  params = {
    name: params[names.get(name, name)]
    for name in ('query', 'key', 'value', 'out')
  }
  z_BTD = call_of(full)({'params': params}, x_BTD, tokens)
  keep_BT = np.asarray(tokens.keep_BT)
  assert_close(y_BTD[keep_BT], z_BTD[keep_BT])


def test_before_the_first_whole_block_nothing_is_compressed():
  case = SMALL.having(causal=True, use_bias=True)
  x_BTD, tokens = normal(2, T, D), Tokens.from_lengths(np.array([T, 2]), T)
  y_BTD = np.asarray(call_of(case)(alone(case, COMPRESS), x_BTD, tokens))
  bias_D = np.asarray(variables_of(case)['params']['out']['bias'])
  y_BTD = y_BTD - bias_D
  np.testing.assert_array_equal(y_BTD[0, :2], 0.0)
  np.testing.assert_array_equal(y_BTD[1], 0.0)
  assert np.abs(y_BTD[0, 2:]).min() > 0


def test_first_own_and_neighbouring_blocks_are_always_selected():
  num_blocks, number = 9, 5
  score_CN = np.tile(np.arange(num_blocks, dtype='f4'), (num_blocks, 1))
  score_CN[:, 6] = 1e3
  own_C, keep_N = np.arange(num_blocks), np.arange(num_blocks) < 8
  for is_causal in (False, True):
    table_CJ = np.asarray(
      nsa.selection(score_CN, own_C, keep_N, is_causal, number)
    )
    for own, row_J in zip(own_C[:8], table_CJ, strict=False):
      chosen = row_J[row_J != blocks.NOTHING]
      last = own if is_causal else 7
      forced = {0, own - 1, own, own + 1} & set(range(last + 1))
      best = [6, 7, 5, 4, 3, 2, 1]
      free = [n for n in best if n not in forced and n <= last]
      assert set(chosen) == forced | set(free[: number - len(forced)])
      assert len(set(chosen)) == len(chosen)


def test_heads_that_share_keys_select_together():
  # Head 1 sees the blocks that head 0, with a hundred times its weight in
  # the logits, makes important.
  settings = {'num_heads': 2, 'num_kv_heads': 1, 'num_selected': 3, 'block': 1}
  case = SMALL.having(
    causal=True, compress_block=1, compress_stride=1, use_bias=False, **settings
  )
  x_BTD, tokens = normal(1, T, D), Tokens.from_lengths(np.array([T]), T)
  case = case.having(num_selected=4)
  params = dict(variables_of(case)['params'])
  # Only the second head is heard.
  params['out'] = {'kernel': params['out']['kernel'].at[0].set(0.0)}
  outputs = []
  for scale in (-30.0, 30.0):
    kernel_DHK = params['query']['kernel']
    query = {'kernel': kernel_DHK.at[:, 0].multiply(scale)}
    both = {'params': params | {'query': query}}
    outputs.append(np.asarray(call_of(case)(both, x_BTD, tokens))[0])
  np.testing.assert_array_equal(outputs[0][:4], outputs[1][:4])
  assert np.abs(outputs[0][4:] - outputs[1][4:]).max() > 1e-2


def test_choices_carry_no_gradient_and_phi_learns_from_its_branch():
  case = SMALL.having(causal=True, block=1)
  x_BTD, tokens = normal(1, T, D), Tokens.from_lengths(np.array([T]), T)

  def gradients(branch):
    def loss(variables):
      return (call_of(case)(variables, x_BTD, tokens) ** 2).sum()

    gradient = jax.grad(loss)(alone(case, branch))['params']
    names = [name for name in gradient if name.startswith('phi_key')]
    return np.array([np.abs(gradient[name]).max() for name in names])

  assert (gradients(SELECT) == 0).all()
  assert (gradients(COMPRESS)[1:] > 0).all()


@pytest.mark.parametrize('is_causal', [False, True])
def test_padding_to_whole_blocks_changes_nothing(is_causal):
  case = SMALL.having(causal=is_causal, block=4, num_kv_heads=1)
  x_BTD = normal(1, 70, D)
  short = run(case, x_BTD, Tokens.from_lengths(np.array([70]), 70))
  wide_BTD = np.pad(x_BTD, ((0, 0), (0, 58), (0, 0)))
  wide_BTD = run(case, wide_BTD, Tokens.from_lengths(np.array([70]), 128))
  assert_close(short, wide_BTD[:, :70], 1e-5)
  # One by one, from the state.
  if is_causal:
    state = start_of(case, max_length=70)
    outputs, state = extend_of(case)(
      variables_of(case), x_BTD.repeat(2, axis=0), state,
      Tokens.from_lengths(np.array([70, 70]), 70),
    )  # fmt: skip
    assert_close(outputs[:1], short, 1e-5)


def test_a_full_stream_says_so():
  case = SMALL.having(causal=True)
  tokens = Tokens.from_lengths(np.array([5, 4]), T)
  y_BTD, _ = extend_of(case)(
    variables_of(case), normal(2, T, D), start_of(case, max_length=4), tokens
  )
  assert np.isnan(y_BTD[0]).all()
  expected_BTD = run(case, normal(2, T, D), tokens)
  assert_close(y_BTD[1, :4], expected_BTD[1, :4])


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_selected': 3}, 'num_selected.*4.*3'),
    ({'num_selected': 2, 'causal': True}, 'num_selected.*3.*2'),
    ({'compress_stride': 40}, 'compress_stride 40.*compress_block, 32'),
    ({'compress_block': 0}, 'compress_block.*0'),
    ({'block': -1}, 'block.*-1'),
    ({'window': 0}, 'window.*0'),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=f'nsa: {message}'):
    attention.build('nsa', **settings)
