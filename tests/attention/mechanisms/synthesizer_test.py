"""Synthesizer: its limits, its parameters, and lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention import synthesizer
from effformer.shapes import Tokens
from tests.attention.cases import (
  LONGER,
  PACKED,
  B,
  Case,
  D,
  H,
  K,
  T,
  assert_close,
  call_of,
  cross_of,
  extend_of,
  normal,
  run,
  variables_of,
)

PLAIN = Case('synthesizer').having(num_heads=H, max_length=LONGER, block=3)
FULL = Case('full').having(num_heads=H, form='dense')


def params_of(case):
  return dict(variables_of(case)['params'])


# L6: limits.


@pytest.mark.parametrize('is_causal', [False, True])
def test_random_logits_that_are_those_of_an_example_are_full(is_causal):
  full = FULL.having(causal=is_causal)
  case = Case('synthesizer').having(
    num_heads=H, variant='random', causal=is_causal
  )
  x_BTD, tokens = normal(1, T, D), Tokens.from_lengths(np.array([T]), T)
  params = dict(variables_of(full)['params'])
  q_THK, k_SHK = (
    np.einsum('td,dhk->thk', x_BTD[0], params[name]['kernel'])
    for name in ('query', 'key')
  )
  logits_HTS = np.einsum('thk,shk->hts', q_THK, k_SHK) / K**0.5
  params = {
    'value': params['value'], 'out': params['out'], 'logits_rows': logits_HTS,
  }  # fmt: skip
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  x_BTD = np.repeat(x_BTD, B, axis=0)
  tokens = Tokens.from_lengths(np.array([T, T]), T)
  assert_close(y_BTD[0], run(full, x_BTD, tokens)[0])


@pytest.mark.parametrize('variant', synthesizer.VARIANTS)
def test_whole_share_of_the_products_is_full(variant):
  case = PLAIN.having(variant=variant, mix_dot_product=True)
  params = params_of(case)
  assert_close(jax.nn.softmax(params['logits_share']), np.full((H, 2), 0.5))
  params['logits_share'] = np.tile([[-30.0, 30.0]], (H, 1)).astype('f4')
  x_BTD, tokens = normal(B, T, D), case.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  plain = {name: params[name] for name in ('query', 'key', 'value', 'out')}
  expected_BTD = call_of(FULL)({'params': plain}, x_BTD, tokens)
  assert_close(y_BTD[keep_BT], expected_BTD[keep_BT])


def test_shares_are_convex_and_of_each_head():
  """Both terms of one head are as large as softmax says."""
  case = PLAIN.having(variant='random', mix_dot_product=True)
  bare = {**params_of(case), 'logits_rows': np.zeros((H, LONGER, LONGER), 'f4')}
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.full(B, T), T)
  bare['logits_share'] = np.log(
    [[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]], dtype='f4'
  )
  y_BTD = call_of(case)({'params': bare}, x_BTD, tokens)
  scale_H = np.array([0.25, 0.5, 0.75], 'f4')
  plain = {name: bare[name] for name in ('query', 'key', 'value', 'out')}
  plain['query'] = {'kernel': plain['query']['kernel'] * scale_H[None, :, None]}
  assert_close(y_BTD, call_of(FULL)({'params': plain}, x_BTD, tokens))


def test_wide_factors_reach_every_table():
  """Factors of full width, one of them the identity, are any R."""
  table_HTS = normal(H, LONGER, LONGER)
  factors = PLAIN.having(factor_width=LONGER)
  params = params_of(factors)
  x_BTD, tokens = normal(B, T, D), factors.tokens(PACKED)
  params['logits_rows'] = table_HTS
  params['logits_columns'] = np.tile(np.eye(LONGER, dtype='f4'), (H, 1, 1))
  y_BTD = call_of(factors)({'params': params}, x_BTD, tokens)
  del params['logits_columns']
  whole = PLAIN.having(variant='random')
  assert_close(call_of(whole)({'params': params}, x_BTD, tokens), y_BTD)


# Parameters.


@pytest.mark.parametrize(
  ('variant', 'shapes'),
  [
    ('dense', {'columns': (H, K, 10), 'columns_bias': (H, 10)}),
    ('random', {'rows': (H, 10, 10)}),
    ('random_fixed', {}),
    (
      'factorized_dense',
      {
        'columns': (H, K, 4), 'columns_bias': (H, 4),
        'rows': (H, K, 3), 'rows_bias': (H, 3),
      },
    ),
    ('factorized_random', {'rows': (H, 10, 5), 'columns': (H, 5, 10)}),
  ],
)  # fmt: skip
def test_parameters_are_those_of_the_variant(variant, shapes):
  case = PLAIN.having(
    variant=variant, use_bias=True, max_length=10, factor_width=5
  )
  params = params_of(case)
  names = {'value', 'out'} | ({'hidden'} if 'dense' in variant else set())
  own = {name: x for name, x in params.items() if name.startswith('logits_')}
  assert {n.removeprefix('logits_'): x.shape for n, x in own.items()} == shapes
  assert set(params) - set(own) == names


def test_biases_of_the_second_layer_are_added():
  """A large bias on one position sends all heads there."""
  case = PLAIN.having(variant='dense', use_bias=True)
  params = params_of(case)
  params['logits_columns_bias'] = 1e3 * np.eye(LONGER, dtype='f4')[[2, 3, 5]]
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.full(B, T), T)
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  v_BTHV = np.einsum('btd,dhv->bthv', x_BTD, params['value']['kernel'])
  o_BHV = np.stack([v_BTHV[:, t, h] for h, t in enumerate((2, 3, 5))], axis=1)
  expected_BD = np.einsum('bhv,hvd->bd', o_BHV, params['out']['kernel'])
  assert_close(y_BTD, np.repeat(expected_BD[:, None], T, axis=1), 1e-5)


def test_fixed_table_is_drawn_by_seed_head_and_row():
  def rows(seed, head, size=5):
    rng = jax.random.fold_in(jax.random.key(seed), head)
    return np.asarray(synthesizer.fixed(rng, jnp.arange(200), size))

  table = rows(0, 0)
  np.testing.assert_array_equal(rows(0, 0, 9)[:, :5], table)
  assert abs(table.mean()) < 0.15
  assert table.std() == pytest.approx(1.0, abs=0.1)
  for other in (rows(1, 0), rows(0, 1), np.roll(table, 1, axis=0)):
    assert abs(np.corrcoef(other.ravel(), table.ravel())[0, 1]) < 0.15


# Lengths.


@pytest.mark.parametrize('variant', ['random', 'factorized_random'])
def test_more_queries_than_rows_are_refused(variant):
  case = PLAIN.having(variant=variant)
  own = Tokens.from_lengths(np.full(B, 10), 10)
  sources = Tokens.from_lengths(np.full(B, T), T)
  with pytest.raises(ValueError, match=r'10 queries.*at most 9'):
    cross_of(case)(
      variables_of(case), normal(B, 10, D), normal(B, T, D), own, sources
    )
  free = PLAIN.having(variant='dense')
  y_BTD = cross_of(free)(
    variables_of(free), normal(B, 10, D), normal(B, T, D), own, sources
  )
  assert np.isfinite(y_BTD).all()


@pytest.mark.parametrize('variant', synthesizer.VARIANTS)
def test_length_at_initialisation_is_kept(variant):
  case = Case('synthesizer').having(num_heads=H, variant=variant, causal=True)
  module = attention.build(case.name, **case.settings)
  shorter = Tokens.from_lengths(np.full(B, 4), 4)
  y_BTD = call_of(case)(variables_of(case), normal(B, T, D)[:, :4], shorter)
  assert np.isfinite(y_BTD).all()
  if variant == 'random_fixed':
    return
  # Factors of 7 are 3 times 3.
  most = 9 if variant == 'factorized_dense' else T
  with pytest.raises(ValueError, match=rf'10 tokens.*at most {most}'):
    module.apply(variables_of(case), B, 10, method='init_state')


def test_tokens_beyond_the_room_of_a_state_are_not_lost_silently():
  case = PLAIN.having(causal=True)
  state = attention.build(case.name, **case.settings).apply(
    variables_of(case), B, 5, method='init_state'
  )
  y_BTD, _ = extend_of(case)(
    variables_of(case), normal(B, T, D), state,
    Tokens.from_lengths(np.array([T, 4]), T),
  )  # fmt: skip
  assert np.isnan(y_BTD[0]).all()
  assert np.isfinite(y_BTD[1]).all()


# Wrong values.


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'variant': 'vanilla'}, 'variant.*random_fixed.*vanilla'),
    ({'factor_width': 0}, 'factor_width.*0'),
    ({'seed': -1}, 'seed.*-1'),
    ({'block': -1}, 'block.*-1'),
    ({'max_length': 0}, 'max_length.*0'),
  ],
)
def test_wrong_value_is_refused(settings, message):
  with pytest.raises(ValueError, match=f'synthesizer.*{message}'):
    attention.build('synthesizer', **settings)
