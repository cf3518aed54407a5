"""S5 against the real system that its conjugate states stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from effformer import attention
from effformer.attention import s5
from effformer.shapes import Tokens
from tests.attention.cases import (
  Case,
  D,
  T,
  assert_close,
  call_of,
  normal,
  run,
  variables_of,
)

P = 6


def hippo_normal(size):
  """HiPPO-LegS plus the rank-one term that makes it normal; definitions."""
  a_PP = np.zeros((size, size))
  for n in range(size):
    for k in range(n + 1):
      is_below = np.sqrt((2 * n + 1) * (2 * k + 1))
      a_PP[n, k] = -(n + 1) if n == k else -is_below
  p_P = np.sqrt(np.arange(size) + 0.5)
  return a_PP + np.outer(p_P, p_P)


@pytest.mark.parametrize('size', [2, 6, 64])
def test_rates_are_eigenvalues_of_hippo(size):
  ours_M = s5.hippo_rates(size)
  expected_P = np.linalg.eigvals(hippo_normal(size))
  both_P = np.concatenate([ours_M, ours_M.conj()])
  np.testing.assert_allclose(
    np.sort(both_P.imag), np.sort(expected_P.imag), rtol=1e-6
  )
  np.testing.assert_allclose(expected_P.real, -0.5, rtol=1e-6)
  assert (ours_M.real == -0.5).all()
  assert (ours_M.imag > 0).all()


def test_conjugate_halves_are_the_real_state_space():
  # h' = A h + B x with x held for a step, y = C h, everything real.
  rng = np.random.default_rng(0)
  a_PP, step = hippo_normal(P), 0.3
  b_PD, c_DP = rng.normal(size=(P, D)), rng.normal(size=(D, P))
  fade_PP = scipy.linalg.expm(a_PP * step)
  gain_PP = np.linalg.solve(a_PP, fade_PP - np.eye(P))
  x_BTD = normal(1, T, D)
  h_P, expected_TD = np.zeros(P), []
  for x_D in x_BTD[0]:
    h_P = fade_PP @ h_P + gain_PP @ b_PD @ x_D
    expected_TD.append(c_DP @ h_P)

  case = Case('s5').having(state_width=P, hippo_blocks=1, causal=True)
  params = dict(variables_of(case)['params'])
  _, vectors_PP = np.linalg.eigh(-1j * (a_PP + 0.5 * np.eye(P)))
  vectors_PM = vectors_PP[:, P // 2 :]
  b_DM, c_MD = (vectors_PM.conj().T @ b_PD).T, (c_DP @ vectors_PM).T
  params |= {
    'input_real': b_DM.real, 'input_imaginary': b_DM.imag,
    'past_real': c_MD.real, 'past_imaginary': c_MD.imag,
    'log_step': np.full(P // 2, np.log(step)), 'through': np.zeros(D),
    # sigmoid(20) = 1
    'gate': {'kernel': np.zeros((D, D)), 'bias': np.full(D, 20.0)},
  }  # fmt: skip
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  tokens = Tokens.from_lengths(np.array([T]), T)
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  expected_TD = jax.nn.gelu(jnp.asarray(expected_TD, jnp.float32))
  assert_close(y_BTD[0], expected_TD, 1e-5)


def test_directions_have_columns_of_their_own():
  case = Case('s5').having(state_width=P, hippo_blocks=1)
  variables = variables_of(case)
  x_BTD, tokens = normal(1, T, D), Tokens.from_lengths(np.array([T]), T)
  params = dict(variables['params'])
  for part in ('real', 'imaginary'):
    past, future = params[f'past_{part}'], params[f'future_{part}']
    assert np.abs(past - future).max() > 0.1
    params |= {f'past_{part}': future, f'future_{part}': past}
  y_BTD = call_of(case)({'params': params}, x_BTD[:, ::-1], tokens)
  assert_close(y_BTD[:, ::-1], run(case, x_BTD, tokens))


def test_no_state_grows():
  case = Case('s5').having(state_width=P, hippo_blocks=1, causal=True)
  params = dict(variables_of(case)['params'])
  params['rate_real'] = jnp.full(P // 2, 3.0)
  length = 1000
  x_BTD = np.zeros((1, length, D), 'f4')
  x_BTD[:, 0] = 1.0
  tokens = Tokens.from_lengths(np.array([length]), length)
  y_BTD = np.asarray(call_of(case)({'params': params}, x_BTD, tokens))
  assert np.isfinite(y_BTD).all()
  assert np.abs(y_BTD[:, -100:]).max() < 3 * np.abs(y_BTD[:, :100]).max()


def test_parameters_are_real_and_their_start_is_that_of_the_paper():
  case = Case('s5').having(state_width=64, hippo_blocks=4)
  params = variables_of(case)['params']
  leaves = jax.tree.leaves(params)
  assert all(leaf.dtype == jnp.float32 for leaf in leaves)
  assert params['rate_turn'].shape == (32,)
  rates_M = s5.hippo_rates(16)
  assert_close(params['rate_turn'], np.tile(rates_M.imag, 4))
  steps_M = np.exp(params['log_step'])
  assert 1e-3 <= steps_M.min() < 3e-3 < 3e-2 < steps_M.max() <= 1e-1
  # A complex number has the variance of a real one of fan-in D, or P.
  for name, fan_in in (('input', D), ('past', 64), ('future', 64)):
    both = np.stack([params[f'{name}_real'], params[f'{name}_imaginary']])
    np.testing.assert_allclose((both**2).mean() * 2 * fan_in, 1, rtol=0.15)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'state_width': 12, 'hippo_blocks': 4}, 'state_width.*multiple.*8.*12'),
    ({'hippo_blocks': 0}, 'hippo_blocks.*0'),
    ({'chunk': 0}, 'chunk.*0'),
    ({'dropout': -0.1}, 'dropout.*-0.1'),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=f's5: {message}'):
    attention.build('s5', **settings)
