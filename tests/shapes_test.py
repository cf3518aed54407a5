"""Tokens: lengths, segments, positions."""

import jax
import numpy as np
import pytest

from effformer.shapes import Tokens


def test_from_lengths():
  tokens = jax.jit(Tokens.from_lengths, static_argnums=1)(
    np.array([3, 0, 5, 9]), 5
  )
  np.testing.assert_array_equal(
    tokens.segment_BT,
    [[1, 1, 1, 0, 0], [0] * 5, [1] * 5, [1] * 5],
  )
  np.testing.assert_array_equal(tokens.position_BT, [range(5)] * 4)
  np.testing.assert_array_equal(tokens.keep_BT, tokens.segment_BT == 1)
  assert tokens.segment_BT.dtype == tokens.position_BT.dtype == np.int32
  assert not tokens.is_packed


def test_positions_restart_with_each_segment_and_skip_padding():
  tokens = Tokens.from_segments(
    np.array([[0, 4, 4, 0, 4, 2, 2, 0], [1, 2, 2, 2, 0, 0, 3, 3]])
  )
  keep_BT = np.asarray(tokens.keep_BT)
  positions = np.asarray(tokens.position_BT)
  np.testing.assert_array_equal(positions[0][keep_BT[0]], [0, 1, 2, 0, 1])
  np.testing.assert_array_equal(positions[1][keep_BT[1]], [0, 0, 1, 2, 0, 1])
  assert positions.min() == 0
  assert tokens.is_packed


def test_tokens_behind_others_move_and_empty_rows_stay_empty():
  padded = Tokens.from_segments(np.array([[0, 1, 0, 1], [0, 0, 0, 0]]))
  padded = padded.replace(is_packed=False, step=np.int32(3))
  tokens = jax.jit(Tokens.behind, static_argnums=1)(padded, 2)
  np.testing.assert_array_equal(
    tokens.segment_BT, [[1, 1, 0, 1, 0, 1], [0] * 6]
  )
  np.testing.assert_array_equal(tokens.position_BT[:, :2], [[0, 1]] * 2)
  np.testing.assert_array_equal(
    tokens.position_BT[:, 2:], padded.position_BT + 2
  )
  assert tokens.segment_BT.dtype == tokens.position_BT.dtype == np.int32
  assert not tokens.is_packed
  assert tokens.step == 3


def test_tokens_made_by_hand_may_be_packed():
  zeros_BT = np.zeros((2, 7), np.int32)
  tokens = Tokens(zeros_BT, zeros_BT)
  assert tokens.is_packed
  leaves, structure = jax.tree.flatten(tokens)
  assert len(leaves) == 2
  assert jax.tree.unflatten(structure, leaves).is_packed


@pytest.mark.parametrize('make', [
  lambda array: Tokens.from_lengths(array, 4), Tokens.from_segments,
], ids=['lengths', 'segments'])  # fmt: skip
def test_wrong_rank_is_refused(make):
  with pytest.raises(ValueError, match=r'dimension'):
    make(np.ones((2, 3, 4), np.int32))
