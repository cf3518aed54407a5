"""Sinkhorn where it is softmax attention, its matrix, and its other forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention import sinkhorn
from effformer.attention.primitives import softmax
from effformer.shapes import Tokens
from tests.attention.cases import (
  DEFINITIONS,
  GRADIENT_TOLERANCE,
  LONGER,
  Case,
  D,
  H,
  K,
  T,
  assert_close,
  call_of,
  module_of,
  normal,
  run,
  variables_of,
)

TOKENS = Tokens.from_lengths(np.array([T, 4]), T)
KEEP_BT = np.asarray(TOKENS.keep_BT)


def make(**settings):
  return Case('sinkhorn').having(num_heads=H, gumbel=False, **settings)


def dense(variables, x_BTD, tokens):
  full = Case('full').having(num_heads=H, form='dense')
  params = {k: v for k, v in variables['params'].items() if k != 'sort'}
  return call_of(full)({'params': params}, x_BTD, tokens)


@pytest.mark.parametrize('block', [T, 0])
def test_one_block_is_softmax_attention(block):
  case, x_BTD = make(block=block), normal(2, T, D)
  y_BTD = run(case, x_BTD, TOKENS)
  z_BTD = dense(variables_of(case), x_BTD, TOKENS)
  assert_close(y_BTD[KEEP_BT], np.asarray(z_BTD)[KEEP_BT])


def test_two_blocks_that_change_places_are_softmax_attention():
  case, x_BTD = make(block=4, temperature=1e-3), normal(2, 8, D)
  # The sign of the first key tells the blocks apart, and each asks for the
  # other one.
  x_BTD[:, :4, 0], x_BTD[:, 4:, 0] = 3.0, -3.0
  params = dict(variables_of(case)['params'])
  params['key'] = {'kernel': np.array(params['key']['kernel'])}
  params['key']['kernel'][..., 0] = np.eye(D)[0][:, None]
  params['sort'] = np.zeros((H, K, 2), 'f4')
  params['sort'][:, 0] = [-1.0, 1.0]
  tokens = Tokens.from_lengths(np.array([8, 8]), 8)
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  assert_close(y_BTD, dense({'params': params}, x_BTD, tokens))


@pytest.mark.parametrize(
  'settings',
  [
    {'combine': 'sum'},
    {'combine': 'sum', 'causal': True, 'relative_bias': 't5'},
    {'sortcut': 1},
    {'sortcut': 2},
    {'sortcut': 9, 'combine': 'sum'},
  ],
  ids=str,
)
@pytest.mark.slow
def test_other_forms_equal_their_definition(settings):
  case = make(block=2, max_length=LONGER, **settings)
  sample_BTD = normal(2, T, D, seed=2) * KEEP_BT[..., None]

  def with_gradients(apply):
    def loss(variables, x_BTD):
      y_BTD = apply(variables, x_BTD)
      return (y_BTD * sample_BTD).sum(), y_BTD

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

  inputs = variables_of(case), normal(2, T, D)
  (_, y_BTD), gradients = with_gradients(
    functools.partial(module_of(case).apply, tokens=TOKENS)
  )(*inputs)
  (_, z_BTD), expected = with_gradients(
    lambda *inputs: DEFINITIONS['sinkhorn'].definition(case, *inputs, TOKENS)
  )(*inputs)
  assert_close(y_BTD[KEEP_BT], z_BTD[KEEP_BT])
  jax.tree.map(
    functools.partial(assert_close, tolerance=GRADIENT_TOLERANCE),
    gradients,
    expected,
  )


N = 5


def matrix(causal, iterations, keep_NN=None, scale=1.0):
  keep_NN = np.ones((N, N), bool) if keep_NN is None else keep_NN
  if causal:
    keep_NN = keep_NN & np.tri(N, k=-1, dtype=bool)
  logits_NN = jnp.asarray(scale * normal(N, N))
  return np.asarray(
    sinkhorn.normalise(logits_NN, jnp.asarray(keep_NN), iterations, causal)
  )


def test_matrix_becomes_doubly_stochastic():
  errors = []
  for iterations in (1, 3, 30):
    sort_NN = matrix(False, iterations)
    assert_close(sort_NN.sum(1), np.ones(N))
    errors.append(np.abs(sort_NN.sum(0) - 1).max())
  assert errors[0] > errors[1] > errors[2]
  assert errors[2] < 1e-5


def test_matrix_becomes_a_permutation_where_logits_are_far_apart():
  sort_NN = matrix(False, 200, scale=100.0)
  assert sort_NN.max(1).min() > 0.99
  assert sorted(sort_NN.argmax(1)) == list(range(N))


@pytest.mark.parametrize('causal', [False, True])
def test_blocks_without_tokens_have_no_part(causal):
  real_N = np.array([True, False, True, True, False])
  sort_NN = matrix(causal, 8, real_N[:, None] & real_N[None])
  assert (sort_NN[~real_N] == 0).all()
  assert (sort_NN[:, ~real_N] == 0).all()
  total_N = sort_NN.sum(1)[real_N]
  # Where causal, the first block has nothing to take.
  assert_close(total_N, [0.0, 1.0, 1.0] if causal else np.ones(3))


def test_rows_of_the_causal_matrix_do_not_know_later_ones():
  keep_NN = np.tri(N, k=-1, dtype=bool)
  logits_NN = jnp.asarray(normal(N, N))

  def sort(logits_NN):
    return sinkhorn.normalise(logits_NN, jnp.asarray(keep_NN), 8, True)

  slope_NNNN = np.asarray(jax.jacobian(sort)(logits_NN))
  assert np.isfinite(slope_NNNN).all()
  for row in range(N):
    assert (slope_NNNN[row][:, row + 1 :] == 0).all()
  # But they do know what earlier ones took.
  assert np.abs(slope_NNNN[4][:, 2]).max() > 1e-3


def test_masked_entries_are_no_weights():
  sort_NN = matrix(False, 8, ~np.eye(N, dtype=bool))
  assert (np.diagonal(sort_NN) == 0).all()
  assert_close(sort_NN.sum(1), np.ones(N))


def test_noise_is_drawn_in_training_only():
  calm, x_BTD = make(block=2), normal(2, T, D)
  case = calm.having(gumbel=True)

  def train(case, seed):
    return module_of(case).apply(
      variables_of(calm), x_BTD, tokens=TOKENS, deterministic=False,
      rngs={'dropout': jax.random.key(seed)},
    )  # fmt: skip

  y_BTD = run(calm, x_BTD, TOKENS)
  np.testing.assert_array_equal(
    call_of(case)(variables_of(calm), x_BTD, TOKENS), y_BTD
  )
  np.testing.assert_array_equal(train(case, 0), train(case, 0))
  assert np.abs(train(case, 0) - train(case, 1)).max() > 1e-3
  assert_close(train(calm, 0), y_BTD)


def test_sorted_slots_are_means_of_the_real_tokens_in_them():
  keep_NC = jnp.array([[True, True], [True, False]])
  sort_NN = jnp.array([[0.25, 0.75], [1.0, 0.0]])
  x_NC1 = jnp.array([[[1.0], [2.0]], [[5.0], [1e9]]])
  k_NC1, v_NC1, mass_NC = sinkhorn._mix_blocks(sort_NN, keep_NC, x_NC1, x_NC1)
  assert_close(mass_NC, [[1.0, 0.25], [1.0, 1.0]])
  assert_close(k_NC1[..., 0], [[4.0, 2.0], [1.0, 2.0]])
  assert_close(k_NC1, v_NC1)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'block': -1}, 'block.*-1'),
    ({'combine': 'product'}, 'product'),
    ({'sortcut': -1}, 'sortcut.*-1'),
    ({'iterations': 0}, 'iterations.*0'),
    ({'temperature': 0.0}, r'temperature.*0\.0'),
    ({'max_length': 0}, 'max_length.*0'),
  ],
)
def test_wrong_value_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    attention.build('sinkhorn', **settings)


@pytest.mark.parametrize(
  'asked', [{'causal': True}, {'rotary': True}, {'relative_bias': 'alibi'}]
)
def test_sortcut_refuses_what_it_would_ignore(asked):
  (capability,) = asked
  with pytest.raises(NotImplementedError, match=f'{capability}.*sortcut=2'):
    attention.build('sinkhorn', sortcut=2, **asked)


def test_hopeless_logits_of_slots_are_masked():
  logits_CS = sinkhorn._logits(
    jnp.ones((1, K)), jnp.array([True]), jnp.ones((2, K)), jnp.array([0.5, 0])
  )
  assert_close(logits_CS[0, 0], K**0.5 + np.log(0.5))
  assert logits_CS[0, 1] == softmax.MASKED
