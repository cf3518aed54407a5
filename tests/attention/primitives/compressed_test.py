"""Compressed blocks, against loops over blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import compressed

T, K = 19, 4
# Size and stride of compressed blocks, size of blocks of tokens.
SIZES = [(1, 1, 1), (4, 2, 8), (4, 4, 4), (5, 3, 7), (32, 16, 64), (6, 2, 3)]


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def network(size):
  return {
    'place': normal(size, K), 'hidden': normal(size, K, K), 'out': normal(K, K)
  }  # fmt: skip


def one_block(x_CK, params):
  hidden_K = np.einsum('ck,ckm->m', x_CK + params['place'], params['hidden'])
  return jax.nn.gelu(hidden_K) @ params['out']


@pytest.mark.parametrize(('size', 'stride'), [(1, 1), (4, 2), (5, 3), (25, 7)])
def test_blocks_are_made_of_their_own_tokens(size, stride):
  x_SK, params = normal(T, K), network(size)
  y_MK = compressed.compress(x_SK, params, stride)
  firsts = [b for b in range(0, T, stride) if b + size <= T]
  assert y_MK.shape[0] == max(len(firsts), 1)
  for first, y_K in zip(firsts, y_MK, strict=False):
    expected_K = one_block(x_SK[first : first + size], params)
    np.testing.assert_allclose(y_K, expected_K, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('size', 'stride'), [(1, 1), (4, 2), (5, 3), (25, 7)])
def test_a_block_is_whole_if_all_its_tokens_are_real(size, stride):
  keep_S = np.arange(T) != 9
  is_whole_M = compressed.whole(keep_S, size, stride)
  firsts = [b for b in range(0, T, stride) if b + size <= T] or [0]
  expected = [
    b + size <= T and keep_S[b : b + size].all() for b in firsts
  ]  # fmt: skip
  np.testing.assert_array_equal(is_whole_M, expected)


@pytest.mark.parametrize('parts', [[1] * T, [7, 1, 11], [T], [2, 17]])
@pytest.mark.parametrize(('size', 'stride'), [(1, 1), (4, 2), (5, 3)])
def test_a_stream_makes_the_same_blocks(size, stride, parts):
  x_SK, params = normal(T, K), network(size)
  expected_MK = jax.jit(compressed.compress, static_argnums=2)(
    x_SK, params, stride
  )
  extend = jax.jit(compressed.extend, static_argnames='stride')
  stored_MK = np.zeros((len(expected_MK) + 1, K), 'f4')
  tail_CK, count = np.zeros((size, K), 'f4'), 0
  for part in parts:
    # Two tokens of padding come after each part.
    new_TK = np.concatenate([x_SK[count : count + part], np.full((2, K), 1e3)])
    stored_MK, tail_CK = extend(
      jnp.asarray(stored_MK), tail_CK, new_TK, count, part, params,
      stride=stride,
    )  # fmt: skip
    count += part
  np.testing.assert_allclose(stored_MK[:-1], expected_MK, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(stored_MK[-1], 0.0)
  np.testing.assert_array_equal(tail_CK, x_SK[-size:])


def importance(weight_M, size, stride, num_blocks, block):
  index_NM, share_NM = compressed.shares(
    len(weight_M), size, stride, num_blocks, block
  )
  return (weight_M[index_NM] * share_NM).sum(-1)


@pytest.mark.parametrize(('size', 'stride', 'block'), SIZES)
def test_shares_are_those_of_the_tokens(size, stride, block):
  length = 3 * size + 2 * block + 1
  weight_M = normal(compressed.number(length, size, stride)) ** 2
  expected_S = np.zeros(length)
  for b, weight in enumerate(weight_M):
    expected_S[b * stride : b * stride + size] += weight / size
  num_blocks = -(-length // block)
  expected_S = np.pad(expected_S, (0, num_blocks * block - length))
  np.testing.assert_allclose(
    importance(weight_M, size, stride, num_blocks, block),
    expected_S.reshape(num_blocks, block).sum(1),
    rtol=1e-5,
  )


def test_shares_are_the_sum_of_equation_9():
  # Of steps of d tokens: block n has steps (C / d) n + a, and these are in the
  # compressed blocks that begin b = 0 ... l / d - 1 steps before them.
  size, stride, block, num_blocks = 32, 16, 64, 5
  weight_M = normal(compressed.number(num_blocks * block, size, stride)) ** 2
  expected_N = np.zeros(num_blocks)
  for n in range(num_blocks):
    for a in range(block // stride):
      for b in range(size // stride):
        m = (block // stride) * n + a - b
        expected_N[n] += weight_M[m] if 0 <= m < len(weight_M) else 0.0
  np.testing.assert_allclose(
    importance(weight_M, size, stride, num_blocks, block),
    expected_N * stride / size,
    rtol=1e-5,
  )
