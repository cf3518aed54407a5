"""Means of groups of real tokens."""

import numpy as np

from effformer.attention.primitives import pooling
from tests.attention.cases import assert_close, normal


def test_groups_are_equal_where_that_is_possible():
  x_TK = normal(12, 5)
  mean_MK, is_there_M = pooling.means(x_TK, np.ones(12, int), 4)
  assert_close(mean_MK, x_TK.reshape(4, 3, 5).mean(1))
  assert is_there_M.tolist() == [1] * 4


def test_groups_are_of_real_tokens_wherever_padding_is():
  x_TK = normal(11, 5)
  segment_T = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0])
  mean_MK, _ = pooling.means(x_TK, segment_T, 3)
  real = x_TK[segment_T > 0]
  assert_close(mean_MK, [real[:3].mean(0), real[3:5].mean(0), real[5:].mean(0)])


def test_groups_differ_by_one_token_and_may_be_empty():
  tokens = np.arange(1.0, 8.0, dtype='f4')[:, None]
  mean_M1, _ = pooling.means(tokens, np.ones(7, int), 3)
  assert_close(mean_M1[:, 0], [2.0, 4.5, 6.5])
  mean_M1, is_there_M = pooling.means(tokens, np.ones(7, int), 9)
  assert is_there_M.sum() == 7
  assert_close(mean_M1[is_there_M > 0], tokens)
  mean_M1, is_there_M = pooling.means(tokens, np.zeros(7, int), 3)
  assert not mean_M1.any()
  assert not is_there_M.any()
