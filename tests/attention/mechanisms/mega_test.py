"""Mega: its attention within blocks, its gates, and its start."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention.primitives import own_block, softmax
from effformer.shapes import Tokens
from tests.attention.cases import (
  B,
  Case,
  D,
  T,
  assert_close,
  call_of,
  normal,
  variables_of,
)

K, V = 4, 5
SMALL = Case('mega').having(block=3, num_averages=2, key_width=K, chunk=2)


def keys_of(segment_T=None):
  segment_T = np.ones(T, 'i4') if segment_T is None else np.array(segment_T)
  position_T = Tokens.from_segments(segment_T[None]).position_BT[0]
  arrays = normal(T, K, seed=1), normal(T, V, seed=2), segment_T, position_T
  return own_block.Keys(*map(jnp.asarray, arrays))


def attend(keys, function='softmax', block=T, causal=False, **settings):
  settings = {'bias_W': jnp.zeros(2 * block - 1), 'is_aligned': True} | settings
  q_TK = settings.pop('q_TK', normal(T, K))
  bias_W, rule = (
    settings.pop('bias_W'),
    own_block.Rule(block, function, causal, 0.0),
  )
  run = functools.partial(own_block.attend, rule=rule, rows=1, **settings)
  return np.asarray(jax.jit(run)(q_TK, keys, None, bias_W, None)[0])


@pytest.mark.parametrize('is_aligned', [False, True])
@pytest.mark.parametrize('is_causal', [False, True])
def test_softmax_in_one_block_is_full_attention(is_causal, is_aligned):
  keys = keys_of([1] * 5 + [0] * 2)
  o_TV = attend(keys, causal=is_causal, is_aligned=is_aligned)
  where = softmax.sites(keys.segment_S, keys.segment_S)
  pattern = softmax.Pattern(causal=is_causal)
  expected_TV, _ = softmax.tile(
    normal(T, K), keys.k_SK, keys.v_SV, where, pattern=pattern
  )
  assert_close(o_TV, expected_TV)


@pytest.mark.parametrize('is_causal', [False, True])
@pytest.mark.parametrize('function', own_block.FUNCTIONS)
def test_blocks_do_not_see_each_other(function, is_causal):
  # Segments of 4 and 3 tokens, blocks of 3: tokens 0-2, 3, 4-6.
  keys = keys_of([1] * 4 + [2] * 3)
  run = functools.partial(
    attend, function=function, block=3, causal=is_causal, is_aligned=False
  )
  for block in ([0, 1, 2], [3], [4, 5, 6]):
    others_T1 = ~np.isin(np.arange(T), block)[:, None]
    soiled = keys._replace(
      k_SK=jnp.where(others_T1, 1e3, keys.k_SK),
      v_SV=jnp.where(others_T1, 1e3, keys.v_SV),
    )
    np.testing.assert_array_equal(run(soiled)[block], run(keys)[block])
    # The same block by itself.
    alone = jax.tree.map(lambda x, b=tuple(block): x[np.array(b)], keys)
    rule = own_block.Rule(3, function, is_causal, 0.0)
    alone_TV, _ = own_block.attend(
      normal(T, K)[block], alone, None, jnp.zeros(5), None,
      rule=rule, rows=1, is_aligned=True,
    )  # fmt: skip
    if len(block) == 3:
      assert_close(run(keys)[block], alone_TV)


@pytest.mark.parametrize('is_causal', [False, True])
def test_laplace_divides_by_the_number_of_visible_keys(is_causal):
  keys = keys_of([1] * 6 + [0])._replace(k_SK=jnp.ones((T, K)))
  q_TK = np.full((T, K), 2.0, 'f4')
  o_TV = attend(keys, 'laplace', block=4, causal=is_causal, q_TK=q_TK)
  for token in range(6):
    first = token // 4 * 4
    last = token + 1 if is_causal else min(first + 4, 6)
    mean, deviation = math.sqrt(0.5), math.sqrt(1 / (4 * math.pi))
    x = (2.0 * K / (last - first) - mean) / (deviation * math.sqrt(2))
    weight = 0.5 * (1 + math.erf(x))
    expected_V = weight * np.asarray(keys.v_SV)[first:last].sum(0)
    assert_close(o_TV[token], expected_V, 1e-5)
  np.testing.assert_array_equal(o_TV[6], 0.0)


@pytest.mark.parametrize('is_aligned', [False, True])
def test_bias_is_that_of_the_distance(is_aligned):
  # Distance 1 is the only one that counts: each token gets the next value.
  keys, block = keys_of(), 4
  bias_W = jnp.where(jnp.arange(2 * block - 1) == block, 200.0, 0.0)
  o_TV = attend(keys, block=block, bias_W=bias_W, is_aligned=is_aligned)
  for token in (0, 1, 2, 4, 5):
    assert_close(o_TV[token], keys.v_SV[token + 1])


def test_closed_update_gate_changes_nothing():
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  params = dict(variables_of(SMALL)['params'])
  gates = params['gates']
  for bias, is_open in ((-200.0, False), (200.0, True)):
    closed = gates | {'bias': gates['bias'].at[:D].set(bias)}
    y_BTD = call_of(SMALL)(
      {'params': params | {'gates': closed}}, x_BTD, tokens
    )
    if not is_open:
      np.testing.assert_array_equal(y_BTD, 0.0)
    else:
      # x + y is silu(...), which is never below -0.3.
      total_BTD = (x_BTD + y_BTD)[np.asarray(tokens.keep_BT)]
      assert total_BTD.min() > -0.3
      assert x_BTD.min() < -1.0


def test_start_is_that_of_the_paper():
  case = Case('mega').having(block=9)
  params = variables_of(case)['params']
  assert params['past_drive'].shape == (D, 16)
  sign_M = np.where(np.arange(16) % 2, -1.0, 1.0)
  assert np.abs(params['past_drive'] - sign_M[None]).max() < 0.1
  for name, deviation in (('share', 0.2), ('damping', 0.2), ('read', 1.0)):
    for direction in ('past', 'future'):
      values = np.asarray(params[f'{direction}_{name}'])
      assert 0.85 < values.std() / deviation < 1.15
  assert params['content']['kernel'].shape == (D, 2 * D)
  # Whatever the number of tokens.
  assert params['relative_bias'].shape == (17,)


def test_state_needs_the_width():
  with pytest.raises(ValueError, match=r'mega.*width.*init_state'):
    attention.build('mega', causal=True).init_state(B, T)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'function': 'relu'}, "function.*softmax, laplace.*'relu'"),
    ({'block': -1}, 'block.*-1'),
    ({'num_averages': 0}, 'num_averages.*0'),
    ({'key_width': 0}, 'key_width.*0'),
    ({'value_width': -1}, 'value_width.*-1'),
    ({'chunk': 0}, 'chunk.*0'),
    ({'dropout': 1.0}, 'dropout.*1.0'),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=f'mega: {message}'):
    attention.build('mega', **settings)
