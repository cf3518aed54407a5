"""FNet: the transform itself."""

import jax
import numpy as np
import pytest

from effformer import attention
from effformer.attention import fnet
from effformer.shapes import Tokens
from tests.attention.cases import (
  B,
  Case,
  D,
  T,
  assert_close,
  normal,
  run,
  variables_of,
)

PLAIN = Case('fnet')


@pytest.mark.parametrize('length', [1, 2, 7, 8])
@pytest.mark.parametrize('width', [1, 2, 5, 12])
def test_equals_the_real_part_of_numpy(length, width):
  """Half of the frequencies are mirrored: odd and even sizes differ."""
  x_BTD = normal(B, length, width)
  expected_BTD = np.fft.fft2(x_BTD.astype('f8')).real
  assert_close(fnet.transform(x_BTD), expected_BTD, 2e-5)


def test_constant_input_is_one_spike():
  tokens = Tokens.from_lengths(np.full(B, T), T)
  y_BTD = run(PLAIN, np.ones((B, T, D), 'f4'), tokens)
  expected_BTD = np.zeros((B, T, D))
  expected_BTD[:, 0, 0] = T * D
  assert_close(y_BTD, expected_BTD, 1e-5)


def test_unitary_keeps_the_size():
  tokens = Tokens.from_lengths(np.full(B, T), T)
  x_BTD = normal(B, T, D)
  y_BTD = run(PLAIN, x_BTD, tokens)
  small_BTD = run(PLAIN.having(unitary=True), x_BTD, tokens)
  assert_close(small_BTD * (T * D) ** 0.5, y_BTD, 1e-5)
  # The real part is half of the energy.
  assert (small_BTD**2).sum() == pytest.approx((x_BTD**2).sum() / 2, rel=0.3)


def test_more_padding_changes_the_frequencies():
  """Why `any_padding` is not declared."""
  x_BTD, lengths = normal(B, T, D), np.array([T, 4])
  y_BTD = run(PLAIN, x_BTD, Tokens.from_lengths(lengths, T))
  wider_BTD = np.pad(x_BTD, ((0, 0), (0, 2), (0, 0)))
  z_BTD = run(PLAIN, wider_BTD, Tokens.from_lengths(lengths, T + 2))
  assert np.abs(z_BTD[:, :4] - y_BTD[:, :4]).max() > 0.1


def test_there_is_nothing_to_train():
  assert jax.tree.leaves(variables_of(PLAIN)) == []


@pytest.mark.parametrize('dropout', [-0.1, 1.0])
def test_wrong_value_is_refused(dropout):
  with pytest.raises(ValueError, match=f'fnet: dropout.*{dropout}'):
    attention.build('fnet', dropout=dropout)
