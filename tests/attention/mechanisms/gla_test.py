"""Gated linear attention: its gate, its widths, and RetNet as a limit."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention import recurrent
from effformer.shapes import Tokens
from tests.attention.cases import (
  PACKED,
  B,
  Case,
  D,
  H,
  T,
  assert_close,
  normal,
  run,
  variables_of,
)
from tests.attention.mechanisms.recurrent_test import params_of, read


@pytest.mark.parametrize('is_causal', [True, False])
def test_constant_gates_are_retnet(is_causal, monkeypatch):
  widths = {'num_heads': H, 'head_width': 4, 'value_width': 6}
  gla = attention.build('gla', chunk=3, causal=is_causal, **widths)
  retnet = attention.build('retnet', chunk=3, causal=is_causal, **widths)
  x_BTD = normal(B, T, D)
  tokens = Tokens.from_segments(np.array(PACKED))
  params = params_of(retnet, x_BTD, tokens)
  # sigmoid(b)^(1/16) = gamma.
  gamma_H = 1 - 2.0 ** -np.arange(5, 5 + H)
  bias_H = -np.log(gamma_H**-16.0 - 1)
  gates = {
    'decay_low': {'kernel': normal(D, 16)},
    'decay': {
      'kernel': np.zeros((16, H, 4), 'f4'),
      'bias': np.repeat(bias_H.astype('f4')[:, None], 4, axis=-1),
    },
    'norm': np.ones(6, 'f4'),
  }
  # They differ in the norm.
  monkeypatch.setattr(
    type(retnet),
    'norm',
    lambda self, o: recurrent.rms_norm(o, jnp.ones(6)),
  )
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = read(retnet, params, x_BTD, tokens)
  z_BTD = read(gla, params | gates, x_BTD, tokens)
  assert_close(z_BTD[keep_BT], y_BTD[keep_BT], 1e-5)


def test_memory_is_long_at_the_start():
  case = Case('gla').having(num_heads=H, gate_rank=5)
  params = variables_of(case)['params']
  assert params['decay_low']['kernel'].shape == (D, 5)
  np.testing.assert_array_equal(params['decay']['bias'], 0.0)
  # Without an input alpha is 2^(-1/16).
  tokens = Tokens.from_lengths(np.array([T]), T)

  class Probe(attention.TABLE['gla']):
    @nn.compact
    def decay(self, x_BTD):
      return self.project(x_BTD, x_BTD, tokens, None)[0][3]['decay']

  decay_BTHK = Probe(num_heads=H, gate_rank=5).apply(
    {'params': params}, jnp.zeros((1, T, D)), method='decay'
  )
  np.testing.assert_allclose(decay_BTHK, -math.log(2) / 16, rtol=1e-6)


def test_widths_of_the_paper():
  params = variables_of(Case('gla').having(num_heads=H))['params']
  shapes = jax.tree.map(np.shape, params)
  assert shapes['query']['kernel'] == (D, H, D // (2 * H))
  assert shapes['key']['kernel'] == (D, H, D // (2 * H))
  assert shapes['value']['kernel'] == (D, H, D // H)
  assert shapes['norm'] == (D // H,)
  with pytest.raises(ValueError, match=r'gla.*width 12.*2 num_heads = 8'):
    variables_of(Case('gla').having(num_heads=4))


def test_gate_of_a_token_fades_what_came_before():
  """Token t forgets at t: the gate of the first token acts on nothing."""
  case = Case('gla').having(num_heads=H, causal=True)
  tokens = Tokens.from_lengths(np.array([T]), T)
  x_BTD = normal(1, T, D)
  params = variables_of(case)['params']

  class Forgets(attention.TABLE['gla']):
    at: int = 0

    def project(self, *args):
      (q, k, v, more), carry = super().project(*args)
      decay = more['decay'].at[:, self.at].add(-30.0)
      return (q, k, v, {'decay': decay}), carry

  def changed(at):
    forgetful = Forgets(num_heads=H, causal=True, at=at)
    y_BTD = read(forgetful, params, x_BTD, tokens)
    return np.abs(y_BTD - run(case, x_BTD, tokens)).max((0, 2)) > 1e-4

  assert not changed(0).any()
  np.testing.assert_array_equal(changed(3), np.arange(T) >= 3)


def test_gate_rank_must_be_positive():
  with pytest.raises(ValueError, match=r'gla: gate_rank.*0'):
    attention.build('gla', gate_rank=0)
