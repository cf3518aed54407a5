"""Performer: its random features, their schedule, their range of numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention.primitives import random_directions
from effformer.shapes import Tokens
from tests.attention.cases import (
  PACKED,
  TOLERANCE,
  B,
  Case,
  D,
  H,
  K,
  T,
  assert_close,
  call_of,
  cross_of,
  normal,
  run,
  variables_of,
)

PLAIN = Case('performer').having(num_heads=H, num_features=8, chunk=3)
FULL = Case('full').having(num_heads=H, form='dense')
FORMS = ('positive', 'hyperbolic', 'relu')


@functools.cache
def draws(number, num_features=8, width=8):
  # Heads are independent of each other.
  draw = functools.partial(
    random_directions.draw, 2, 0, number, num_features, width
  )
  return np.asarray(jax.jit(draw)())


# Omega.


def test_blocks_of_directions_are_orthogonal():
  omega_MK = draws(1, num_features=20)[0]
  unit_MK = omega_MK / np.linalg.norm(omega_MK, axis=-1, keepdims=True)
  for first in (0, 8, 16):
    block = unit_MK[first : first + 8]
    assert_close(block @ block.T, np.eye(len(block)))
  assert np.abs(unit_MK[:8] @ unit_MK[8:16].T).max() > 0.3


def test_every_entry_is_a_standard_normal():
  """Without the sign fix the first direction points down always."""
  omega_NMK = draws(4000)
  error = 4.5 / len(omega_NMK) ** 0.5
  assert np.abs(omega_NMK.mean(0)).max() < error
  assert np.abs((omega_NMK**2).mean(0) - 1.0).max() < 1.5 * error
  # Squared norms are chi squared: variance 2 K, and not tied to directions.
  norm_NM = (omega_NMK**2).sum(-1)
  assert np.abs(norm_NM.var(0) / 16 - 1.0).max() < 0.25
  unit_NM = omega_NMK[..., 0] / norm_NM**0.5
  # Norms first, then a component of each direction.
  related = np.corrcoef(norm_NM.T, unit_NM.T)[:8]
  assert np.abs(related[~np.eye(8, 16, dtype=bool)]).max() < error


def test_heads_and_numbers_have_directions_of_their_own():
  draw = functools.partial(random_directions.draw, 2)
  omega_NHMK = np.stack([draw(number, H, 8, 8) for number in (0, 1)])
  unit_LK = omega_NHMK.reshape(-1, 8)
  unit_LK = unit_LK / np.linalg.norm(unit_LK, axis=-1, keepdims=True)
  alike = np.abs(unit_LK @ unit_LK.T)[np.triu_indices(len(unit_LK), 1)]
  assert alike.max() < 0.98
  # The first heads are the same whatever follows.
  assert_close(draw(1, H + 2, 8, 8)[:H], omega_NHMK[1])


def test_a_cpu_factors_one_matrix_at_a_time():
  """Two batches at a time may wait for ever (jaxlib 0.10, two cores)."""
  draw = jax.jit(lambda number: random_directions.draw(2, number, H, 20, 8))
  text = draw.trace(1).lower(lowering_platforms=('cpu',)).as_text()
  calls = [line for line in text.splitlines() if 'lapack_sgeqrf' in line]
  assert calls
  for line in calls:
    assert 'tensor<8x8xf32>' in line, line
    assert 'x8x8xf32' not in line, line


@pytest.mark.parametrize('form', ['positive', 'hyperbolic'])
def test_kernel_is_that_of_softmax_in_the_mean(form):
  """P4: raw QR gives 0.80 here in place of 0.69."""
  q_K, k_K = 0.3 * normal(2, 8)
  omega_NMK = draws(20_000)
  features = [np.exp(omega_NMK @ x - 0.5 * (x @ x)) for x in (q_K, k_K)]
  if form == 'hyperbolic':
    features = [
      np.concatenate([phi, np.exp(-omega_NMK @ x - 0.5 * (x @ x))], -1)
      for phi, x in zip(features, (q_K, k_K), strict=True)
    ]
  estimates_N = (features[0] * features[1]).mean(-1)
  error = estimates_N.std() / len(estimates_N) ** 0.5
  assert abs(estimates_N.mean() - np.exp(q_K @ k_K)) < 4.5 * error
  assert error < 0.01


def test_orthogonal_features_vary_less_than_independent_ones():
  # Larger vectors have tails that no sample shows.
  q_K, k_K = 0.2 * normal(2, 8)

  def variance(omega_NMK):
    exponents_NM = omega_NMK @ (q_K + k_K) - 0.5 * (q_K @ q_K + k_K @ k_K)
    return np.exp(exponents_NM).mean(-1).var()

  independent_NMK = normal(20_000, 8, 8)
  assert variance(draws(20_000)) < 0.93 * variance(independent_NMK)


# L6: towards softmax attention.


@pytest.mark.parametrize('is_causal', [False, True])
def test_more_features_come_closer_to_softmax(is_causal):
  # The error grows with exp(|q|^2 + |k|^2).
  x_BTD, tokens = 0.5 * normal(B, T, D), FULL.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  expected = run(FULL.having(causal=is_causal), x_BTD, tokens)[keep_BT]
  errors = []
  for num_features in (8, 128, 2048):
    case = PLAIN.having(num_features=num_features, causal=is_causal)
    y_BTD = np.asarray(call_of(case)(variables_of(FULL), x_BTD, tokens))
    error = y_BTD[keep_BT] - expected
    assert error.min() < 0 < error.max()
    errors.append(np.sqrt((error**2).mean()))
  # Sixteen times as many features: a quarter of the error.
  assert errors[1] < errors[0] / 2
  assert errors[2] < errors[1] / 2
  assert errors[2] < 0.02


# When Omega is drawn, and of what it is a function.


def omega_of(step=None, **settings):
  module = attention.build('performer', num_heads=H, **settings)
  step = None if step is None else jnp.asarray(step, jnp.int32)
  return np.asarray(module.omega(K, step))


def test_omega_is_drawn_on_schedule():
  start = omega_of(redraw_every=10)
  assert_close(omega_of(9, redraw_every=10), start)
  assert_close(omega_of(19, redraw_every=10), omega_of(10, redraw_every=10))
  assert np.abs(omega_of(10, redraw_every=10) - start).max() > 0.1
  assert_close(omega_of(12345, redraw_every=0), start)


def test_omega_differs_by_head_and_seed():
  omega_HMK = omega_of()
  assert np.abs(omega_HMK[0] - omega_HMK[1]).max() > 0.1
  assert np.abs(omega_of(seed=1) - omega_HMK).max() > 0.1


def test_step_of_the_tokens_draws():
  case = PLAIN.having(redraw_every=10)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  y_BTD = run(case, x_BTD, tokens)
  for step, is_same in ((9, True), (10, False)):
    z_BTD = run(case, x_BTD, tokens.replace(step=jnp.asarray(step)))
    assert (np.abs(z_BTD - y_BTD).max() < TOLERANCE) == is_same
  assert not jax.tree.leaves(
    {k: v for k, v in variables_of(case).items() if k != 'params'}
  )


# The range of numbers.


def softmax_like(case, scale):
  """Output and gradient of rows whose queries and keys are scaled."""
  tokens = case.tokens([[1] * T, [1] * 4 + [2] * 3])
  variables = variables_of(case)
  params = dict(variables['params'])
  for name in ('query', 'key'):
    params[name] = jax.tree.map(lambda w: scale * w, params[name])

  def loss(params, x_BTD):
    y_BTD = attention.build(case.name, **case.settings).apply(
      {'params': params}, x_BTD, tokens=tokens
    )
    return (y_BTD**2).sum(), y_BTD

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  return gradient(params, normal(B, T, D))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('is_causal', [False, True])
@pytest.mark.slow
def test_large_queries_and_keys_stay_finite(form, is_causal):
  case = PLAIN.having(features=form, causal=is_causal)
  gradients, y_BTD = softmax_like(case, 100.0)
  assert np.isfinite(y_BTD).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def streams(is_causal):
  """q, k, v of one head; keys of large norms, and of all where they may be."""
  k_TK = normal(T, K, seed=1)
  k_TK /= np.linalg.norm(k_TK, axis=-1, keepdims=True)
  # Falling norms: weights of later keys are larger, by up to exp(30).
  k_TK *= np.linspace(31.0, 29.0, T, dtype='f4')[:, None]
  if not is_causal:
    k_TK *= np.abs(np.sin(np.arange(T))[:, None]).astype('f4')
  return normal(T, K), k_TK, normal(T, K, seed=2)


@pytest.mark.parametrize('settings', [
  {}, {'causal': True}, {'features': 'hyperbolic', 'causal': True},
], ids=str)  # fmt: skip
def test_weights_of_all_sizes_equal_those_in_float64(settings):
  """Exponents of the keys go down to -200; float32 ends at -87."""
  module = attention.build(
    'performer', num_heads=1, head_width=K, num_features=8, chunk=3, **settings
  )
  q_TK, k_TK, v_TK = streams('causal' in settings)
  omega_MK = np.asarray(module.omega(K, None)[0], 'f8')
  eye = np.eye(K, dtype='f4')
  params = {
    'query': {'kernel': np.pad(eye, ((0, 2 * K), (0, 0)))[:, None]},
    'key': {'kernel': np.pad(eye, ((K, K), (0, 0)))[:, None]},
    'value': {'kernel': np.pad(eye, ((2 * K, 0), (0, 0)))[:, None]},
    'out': {'kernel': np.pad(eye, ((0, 0), (0, 2 * K)))[None]},
  }
  x_BTD = np.concatenate([q_TK, k_TK, v_TK], axis=-1)[None]
  tokens = Tokens.from_lengths(np.array([T]), T)
  y_TK = module.apply({'params': params}, x_BTD, tokens=tokens)[0, :, :K]

  def exponents(x_TK):
    x_TK = x_TK.astype('f8') / K**0.25
    scores_TM = x_TK @ omega_MK.T
    if 'features' in settings:
      scores_TM = np.concatenate([scores_TM, -scores_TM], axis=-1)
    return scores_TM - 0.5 * (x_TK**2).sum(-1, keepdims=True)

  weights_TS = np.exp(exponents(q_TK)) @ np.exp(exponents(k_TK)).T
  assert exponents(k_TK).min() < -200
  if settings.get('causal'):
    weights_TS = np.tril(weights_TS)
  weights_TS /= weights_TS.sum(-1, keepdims=True)
  assert_close(y_TK, weights_TS @ v_TK, 1e-4)


def test_bidirectional_rows_are_normalised_at_any_scale():
  """No denominator is below 1, so that nothing has to be added to it."""
  case = PLAIN.having(num_features=3)
  x_BTD = normal(B, T, D)
  x_BTD[..., 0] = 1.0
  params = dict(variables_of(case)['params'])
  for name in ('query', 'key'):
    params[name] = {'kernel': 300.0 * np.asarray(params[name]['kernel'])}
  params['value'] = {'kernel': np.zeros((D, H, K), 'f4')}
  params['value']['kernel'][0] = 1.0
  tokens = Tokens.from_lengths(np.array([T, 4]), T)
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  expected_D = np.asarray(params['out']['kernel']).sum((0, 1))
  difference = np.abs(y_BTD - expected_D[None, None])
  assert difference[np.asarray(tokens.keep_BT)].max() < 1e-5


def test_larger_weights_of_another_segment_change_nothing():
  """Those of this one are all below 1e-40."""
  tokens = PLAIN.tokens([[1] * 3 + [2] * 4] * B)
  params = dict(variables_of(PLAIN)['params'])
  params['key'] = {'kernel': 15.0 * np.asarray(params['key']['kernel'])}
  outputs = []
  for scale in (1.0, 0.01):
    x_BTD = normal(B, T, D)
    x_BTD[:, 3:] *= scale
    outputs.append(call_of(PLAIN)({'params': params}, x_BTD, tokens)[:, :3])
  assert np.abs(outputs[0]).max(-1).min() > 0.1
  assert_close(outputs[1], outputs[0])


# What is refused.


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'features': 'trig'}, 'features.*positive.*trig'),
    ({'num_features': 0}, 'num_features.*0'),
    ({'seed': -1}, 'seed.*-1'),
    ({'redraw_every': -1}, 'redraw_every.*-1'),
    ({'chunk': 0}, 'chunk.*0'),
  ],
)
def test_wrong_value_is_refused(settings, message):
  with pytest.raises(ValueError, match=f'performer.*{message}'):
    attention.build('performer', **settings)


def test_context_with_rotary_or_packing_is_refused():
  packed = Tokens.from_segments(np.array(PACKED))
  alone = packed.replace(is_packed=False)
  for case, tokens, capability in (
    (PLAIN, packed, 'packing'), (PLAIN.having(rotary=True), alone, 'rotary'),
  ):  # fmt: skip
    with pytest.raises(NotImplementedError, match=f'performer.*{capability}'):
      cross_of(case)(
        variables_of(case), normal(B, T, D), normal(B, T, D), tokens, tokens
      )
