"""RetNet: its decays, its norm and its positions."""

import jax
import numpy as np

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import (
  Case,
  D,
  H,
  T,
  assert_close,
  call_of,
  normal,
  run,
  variables_of,
)


def test_decays_of_the_heads():
  retnet = attention.build('retnet', num_heads=4)
  log_gamma_H, is_per_head = retnet.head_params(T, None)
  assert is_per_head
  np.testing.assert_allclose(
    np.exp(log_gamma_H), [31 / 32, 63 / 64, 127 / 128, 255 / 256], rtol=1e-7
  )
  # No head of a wide layer stops decaying because of rounding.
  log_gamma_H, _ = attention.build('retnet', num_heads=30).head_params(T, None)
  np.testing.assert_allclose(log_gamma_H[-1], -(2.0**-34), rtol=1e-6)


def test_size_of_values_is_lost_in_the_norm():
  case = Case('retnet').having(num_heads=H)
  x_BTD, tokens = normal(1, T, D), Tokens.from_lengths(np.array([T]), T)
  params = dict(variables_of(case)['params'])
  # Large, so that epsilon is nothing beside them; a factor for each head.
  kernel_DHV = 1e3 * np.asarray(params['value']['kernel'])
  scaled_DHV = kernel_DHV * np.array([1.0, 3.0, 0.2], 'f4')[None, :, None]
  y_BTD, z_BTD = (
    call_of(case)(
      {'params': params | {'value': {'kernel': kernel}}}, x_BTD, tokens
    )
    for kernel in (kernel_DHV, scaled_DHV)
  )
  assert_close(z_BTD, y_BTD, 1e-5)


def test_norm_takes_the_mean_away():
  o_BTHV = 3.0 + normal(1, T, H, 8)
  module = attention.build('retnet', num_heads=H)
  normed_BTHV = module.norm(o_BTHV)
  np.testing.assert_allclose(normed_BTHV.mean(-1), 0.0, atol=1e-6)
  np.testing.assert_allclose(normed_BTHV.std(-1), 1.0, atol=1e-4)


def test_rotary_positions_are_relative():
  case = Case('retnet').having(num_heads=H, rotary=True)
  x_BTD, tokens = normal(1, T, D), Tokens.from_lengths(np.array([T]), T)
  y_BTD = run(case, x_BTD, tokens)
  later = tokens.replace(position_BT=tokens.position_BT + 5)
  assert_close(run(case, x_BTD, later), y_BTD, 1e-5)
  stretched = tokens.replace(position_BT=tokens.position_BT * 2)
  assert np.abs(run(case, x_BTD, stretched) - y_BTD).max() > 1e-2


def test_value_is_twice_as_wide_as_the_key_unless_set():
  for settings, expected in ({}, 8), ({'value_width': 5}, 5):
    case = Case('retnet').having(num_heads=H, **settings)
    params = variables_of(case)['params']
    shapes = jax.tree.map(np.shape, params)
    assert shapes['query']['kernel'] == (D, H, D // H)
    assert shapes['gate']['kernel'] == (D, H, expected)
    assert shapes['out']['kernel'] == (H, expected, D)
