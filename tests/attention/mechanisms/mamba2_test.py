"""Mamba-2: groups, its linear limit, its start."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import B, D, H, T, assert_close, normal
from tests.attention.mechanisms.recurrent_test import bare, params_of, read

TOKENS = Tokens.from_lengths(np.array([T, T]), T)


def test_heads_of_a_group_share_queries_and_keys():
  shared = bare('mamba2')
  apart = bare('mamba2', num_groups=H)
  x_BTD = normal(B, T, D)
  params = params_of(shared, x_BTD, TOKENS)
  assert params['query']['kernel'].shape == (D, 1, D // H)
  filter_WM, width = np.asarray(params['conv']), D // H
  repeated = dict(params)
  for name in ('query', 'key'):
    repeated[name] = {'kernel': np.repeat(params[name]['kernel'], H, axis=1)}
  repeated['conv'] = np.concatenate(
    [filter_WM[:, :width]] * H
    + [filter_WM[:, width : 2 * width]] * H
    + [filter_WM[:, 2 * width :]],
    axis=1,
  )
  repeated['conv_bias'] = np.zeros(repeated['conv'].shape[-1], 'f4')
  y_BTM = read(shared, params, x_BTD, TOKENS)
  z_BTM = read(apart, repeated, x_BTD, TOKENS)
  assert_close(z_BTM, y_BTM)
  # Heads differ all the same.
  y_BTHV = y_BTM.reshape(B, T, H, -1)
  assert np.abs(y_BTHV[:, :, 0] - y_BTHV[:, :, 1]).max() > 1e-2


def test_products_of_a_group_are_made_once():
  """Twice the heads of half the width: the same products of q and k."""

  def num_products(**settings):
    module = attention.build('mamba2', causal=True, head_width=16, **settings)
    x_BTD = jnp.zeros((1, 64, D))
    tokens = Tokens.from_lengths(np.array([64]), 64)
    jaxpr = jax.make_jaxpr(
      lambda x_BTD: module.init_with_output(
        jax.random.key(0), x_BTD, tokens=tokens
      )[0]
    )(x_BTD)
    sizes = []

    def visit(jaxpr):
      for equation in jaxpr.eqns:
        shape = equation.outvars[0].aval.shape
        if equation.primitive.name == 'dot_general' and shape[-2:] == (64, 64):
          _, width = equation.invars[0].aval.shape[-2:]
          sizes.append(np.prod(shape) * width)
        for value in equation.params.values():
          inner = getattr(value, 'jaxpr', value)
          if hasattr(inner, 'eqns'):
            visit(inner)

    visit(jaxpr.jaxpr)
    return [size for size in sizes if size == 64 * 64 * 16]

  assert len(num_products(num_heads=2, value_width=8)) == 1
  assert len(num_products(num_heads=4, value_width=4)) == 1


def test_without_decay_it_is_linear_attention():
  module = bare('mamba2', taps=1)
  x_BTD = normal(B, T, D)
  params = params_of(module, x_BTD, TOKENS)
  params['log_rate'] = np.full(H, -100.0, 'f4')
  params['skip'] = np.array([1.0, 0.5, 0.0], 'f4')

  def stream(name):
    size = params[name]['kernel'].shape[1:]
    first = {'query': 0, 'key': D // H, 'value': 2 * D // H}[name]
    flat = np.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
    factor = params['conv'][0, first : first + np.prod(size)].reshape(size)
    return jax.nn.silu(flat * factor[None, None])

  q_BTK, k_BTK = stream('query')[:, :, 0], stream('key')[:, :, 0]
  v_BTHV = stream('value')
  step_BTH = x_BTD @ params['step']['kernel'] + params['step_bias'][None, None]
  step_BTH = np.log1p(np.exp(step_BTH))
  expected_BTHV = jnp.einsum(
    'btk,bsk,bsh,bshv->bthv', q_BTK, k_BTK, step_BTH, v_BTHV
  )
  expected_BTHV += params['skip'][None, None, :, None] * v_BTHV
  o_BTM = read(module, params, x_BTD, TOKENS)
  assert_close(o_BTM, expected_BTHV.reshape(B, T, -1), 1e-5)


def test_norm_comes_after_the_gate_and_over_the_heads_of_a_group():
  class Probe(attention.TABLE['mamba2']):
    @nn.compact
    def refined(self, o_BTGM, x_BTD):
      return self.refine(o_BTGM, x_BTD)

  module, x_BTD = Probe(num_heads=4, num_groups=2), normal(B, T, D)
  params = params_of(module, x_BTD, TOKENS)
  o_BTGM = normal(B, T, 2, params['norm'].shape[0] // 2)

  def refine(params):
    variables = {'params': params}
    return module.apply(variables, o_BTGM, x_BTD, method='refined')

  refined_BTGM = refine(params)
  np.testing.assert_allclose((refined_BTGM**2).mean(-1), 1.0, atol=1e-2)
  # The scale comes last.
  scaled = refine(params | {'norm': 3.0 * params['norm']})
  assert_close(scaled, 3.0 * refined_BTGM, 1e-5)


def test_start():
  module = attention.build('mamba2', num_heads=600, head_width=4, value_width=1)
  tokens = Tokens.from_lengths(np.array([1]), 1)
  params = params_of(module, np.zeros((1, 1, D), 'f4'), tokens)
  rate_H = np.exp(params['log_rate'])
  assert 1 <= rate_H.min() < 1.1
  assert 15.8 < rate_H.max() < 16
  step_H = np.log1p(np.exp(np.asarray(params['step_bias'], 'f8')))
  assert 1e-3 * (1 - 1e-5) < step_H.min() < 1.1e-3
  assert 0.09 < step_H.max() < 0.1 * (1 + 1e-5)
  np.testing.assert_array_equal(params['skip'], 1.0)
  np.testing.assert_array_equal(params['conv_bias'], 0.0)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 4, 'num_groups': 3}, 'num_groups.*4.*3'),
    ({'num_groups': 0}, 'num_groups.*0'),
    ({'taps': 0}, 'taps.*0'),
  ],
)
def test_wrong_value_of_mamba2_is_refused(settings, message):
  with pytest.raises(ValueError, match=f'mamba2.*{message}'):
    attention.build('mamba2', **settings)


def test_width_of_values_that_is_not_known():
  module = attention.build('mamba2', causal=True, head_width=4)
  with pytest.raises(ValueError, match=r'mamba2.*width of values.*value_width'):
    module.init_state(B, T)
  module = attention.build('mamba2', num_heads=5, head_width=4)
  with pytest.raises(ValueError, match=r'mamba2.*width 12.*num_heads 5'):
    module.init(jax.random.key(0), normal(B, T, D), tokens=TOKENS)
