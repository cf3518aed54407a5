"""Reformer where it is softmax attention, and what its hashes must obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention import reformer
from effformer.attention.primitives import copies
from effformer.shapes import Tokens
from tests.attention.cases import (
  GRADIENT_TOLERANCE,
  Case,
  D,
  H,
  K,
  assert_close,
  call_of,
  module_of,
  normal,
  variables_of,
)

T = 8
TOKENS = Tokens.from_lengths(np.array([T, T]), T)


def make(**settings):
  plain = {'num_heads': H, 'num_buckets': 4, 'num_hashes': 1}
  return Case('reformer').having(**(plain | settings))


def dense(case, x_BTD, keep_TT):
  """Softmax of shared queries and unit keys over the others."""
  params = variables_of(case)['params']
  q, v = (
    np.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
    for name in ('query_key', 'value')
  )
  k = q / np.linalg.norm(q, axis=-1, keepdims=True)
  weights = np.exp(np.einsum('bthk,bshk->bhts', q, k)) * keep_TT
  total = weights.sum(-1, keepdims=True)
  attn = np.where(total > 0, weights / np.where(total > 0, total, 1), np.eye(T))
  o = np.einsum('bhts,bshv->bthv', attn, v)
  return np.einsum('bthv,hvd->btd', o, params['out']['kernel'])


def run(case, x_BTD, tokens=TOKENS):
  return np.asarray(call_of(case)(variables_of(case), x_BTD, tokens))


@pytest.mark.parametrize('seed', range(3))
def test_two_chunks_of_one_hash_see_everything(seed):
  case, x_BTD = make(block=T // 2, seed=seed), normal(2, T, D)
  assert_close(run(case, x_BTD), dense(case, x_BTD, 1 - np.eye(T)))


@pytest.mark.parametrize('is_causal', [False, True])
def test_a_chunk_for_all_tokens_is_softmax_attention(is_causal):
  x_BTD = normal(2, T, D)
  case = make(block=T, causal=is_causal).having(num_hashes=2)
  keep_TT = np.tri(T, k=-1) if is_causal else 1 - np.eye(T)
  assert_close(run(case, x_BTD), dense(case, x_BTD, keep_TT))


def test_hashes_that_find_every_key_count_each_of_them_once():
  x_BTD = normal(2, T, D)
  case = make(block=3, count_once=True).having(num_hashes=12)
  expected_BTD = dense(case, x_BTD, 1 - np.eye(T))
  assert_close(run(case, x_BTD), expected_BTD)
  often_BTD = run(case.having(count_once=False), x_BTD)
  assert np.abs(often_BTD - expected_BTD).max() > 1e-2


def test_what_is_said_by_later_tokens_never_matters():
  case, x_BTD = make(block=2, causal=True), normal(1, T, D)
  tokens = Tokens.from_lengths(np.array([T]), T)

  def apply(x_BTD):
    return module_of(case).apply(variables_of(case), x_BTD, tokens=tokens)[0]

  slope_TDTD = jax.jit(jax.jacobian(apply))(x_BTD)[:, :, 0]
  size_TT = np.abs(slope_TDTD).sum((1, 3))
  np.testing.assert_array_equal(np.triu(size_TT, 1), 0.0)
  assert (np.diagonal(size_TT) > 0).all()


def test_where_all_is_seen_no_choice_leaks():
  case, x_BTD = make(block=T, causal=True), normal(2, T, D)
  other_BTD = x_BTD.copy()
  other_BTD[:, 5:] *= -30.0
  y_BTD, z_BTD = run(case, x_BTD), run(case, other_BTD)
  assert_close(y_BTD[:, :5], z_BTD[:, :5])


def test_padding_in_between_takes_no_room():
  case, x_BTD = make(block=2, num_hashes=2), normal(1, T, D)
  keep_T = np.array([1, 0, 1, 1, 0, 1, 1, 0])
  holes = Tokens.from_segments(keep_T[None]).replace(is_packed=False)
  dense_BTD = np.zeros_like(x_BTD)
  dense_BTD[:, :5] = x_BTD[:, keep_T > 0]
  y_BTD = run(case, x_BTD, holes)
  z_BTD = run(case, dense_BTD, Tokens.from_lengths(np.array([5]), T))
  assert_close(y_BTD[:, keep_T > 0], z_BTD[:, :5])


def test_a_lone_token_sees_itself():
  case, x_BTD = make(block=2, num_hashes=2, dropout=0.9), normal(1, T, D)
  params = variables_of(case)['params']
  y_BTD = module_of(case).apply(
    {'params': params},
    x_BTD,
    tokens=Tokens.from_lengths(np.array([1]), T),
    deterministic=False,
    rngs={'dropout': jax.random.key(0)},
  )
  value_HV = np.einsum('d,dhv->hv', x_BTD[0, 0], params['value']['kernel'])
  expected_D = np.einsum('hv,hvd->d', value_HV, params['out']['kernel'])
  assert_close(y_BTD[0, 0], expected_D)


@pytest.mark.parametrize('count_once', [False, True])
def test_hash_is_the_same_in_training(count_once):
  case = make(block=2, num_hashes=2, count_once=count_once)
  faint = case.having(dropout=1e-9)
  x_BTD = normal(2, T, D)
  y_BTD = module_of(faint).apply(
    variables_of(case), x_BTD, tokens=TOKENS, deterministic=False,
    rngs={'dropout': jax.random.key(7)},
  )  # fmt: skip
  assert_close(y_BTD, run(case, x_BTD))
  other_BTD = run(case.having(seed=1), x_BTD)
  assert np.abs(other_BTD - run(case, x_BTD)).max() > 1e-2


@pytest.mark.parametrize('count_once', [False, True])
def test_dropout_keeps_the_mean(count_once):
  case = make(block=2, count_once=count_once)
  variables, x_BTD = variables_of(case), normal(2, T, D)

  @jax.jit
  @jax.vmap
  def sample(rng):
    return module_of(case.having(dropout=0.4)).apply(
      variables, x_BTD, tokens=TOKENS, deterministic=False,
      rngs={'dropout': rng},
    )  # fmt: skip

  y_NBTD = np.asarray(sample(jax.random.split(jax.random.key(0), 400)))
  error_BTD = y_NBTD.std(0) / 400**0.5
  difference_BTD = np.abs(y_NBTD.mean(0) - run(case, x_BTD))
  assert error_BTD.min() > 0
  assert (difference_BTD / error_BTD).max() < 4.5


def hashes_of(q_TK, num_buckets, seed=0):
  size = sum(reformer._factors(num_buckets)) // 2
  directions_RKM = jax.random.normal(
    jax.random.key(seed), (2, q_TK.shape[1], size)
  )
  return np.asarray(reformer._hashes(q_TK, directions_RKM, num_buckets))


@pytest.mark.parametrize('num_buckets', [2, 6, 128, 132, 200, 256])
def test_hash_of_a_vector_is_that_of_its_direction(num_buckets):
  q_TK = normal(20_000, 32)
  bucket_RT = hashes_of(q_TK, num_buckets)
  np.testing.assert_array_equal(np.unique(bucket_RT), range(num_buckets))
  np.testing.assert_array_equal(hashes_of(7.3 * q_TK, num_buckets), bucket_RT)
  # The opposite is in the opposite bucket, of both hashes of a pair.
  assert (hashes_of(-q_TK, num_buckets) != bucket_RT).all()


def test_near_tokens_meet_more_often():
  q_TK, noise_TK = normal(4000, 32), normal(4000, 32, seed=1)
  bucket_RT = hashes_of(q_TK, 16)
  met = [
    (hashes_of(q_TK + size * noise_TK, 16) == bucket_RT).mean()
    for size in (0.0, 0.1, 0.5, 100.0)
  ]
  assert met[0] == 1.0
  assert met == sorted(met, reverse=True)
  # Independent directions meet by chance.
  assert abs(met[-1] - 1 / 16) < 0.02


def test_heads_have_hashes_of_their_own():
  params, is_per_head = module_of(make(num_hashes=2)).apply(
    variables_of(make(num_hashes=2)), T, None, method='head_params'
  )
  assert is_per_head
  assert params.shape == (H, 2, K, 2)
  assert np.unique(np.asarray(params)).size == params.size


def test_order_is_by_hash_bucket_and_token_with_padding_behind():
  bucket_RT = jnp.array([[3, 0, 3, 1], [0, 2, 2, 2]])
  keep_T = jnp.array([True, True, False, True])
  order = copies.sort(bucket_RT, keep_T, 4)
  np.testing.assert_array_equal(order.slot_S, [1, 3, 0, 4, 5, 7, 2, 6])
  np.testing.assert_array_equal(order.bucket_S, [0, 1, 3, 4, 6, 6, 8, 9])
  np.testing.assert_array_equal(order.place_RT, [[2, 0, 6, 1], [3, 4, 7, 5]])
  # Six real copies are three chunks: the first looks back to the third.
  table_NJ = copies.windows(6, 8, 2)
  np.testing.assert_array_equal(table_NJ, [[0, 2], [1, 0], [2, 1], [3, 2]])
  np.testing.assert_array_equal(copies.windows(0, 2, 2), [[0, -1]])


def test_gradient_of_a_permutation_is_that_of_autodiff():
  x_TK, sample_SK = normal(T, K), normal(2 * T, K)
  order = np.random.default_rng(0).permutation(2 * T)
  place_RT = np.argsort(order).reshape(2, T)

  def loss(take):
    return jax.grad(lambda x_TK: (take(x_TK) * sample_SK).sum())(x_TK)

  assert_close(
    loss(lambda x_TK: copies.take(x_TK, order % T, place_RT)),
    loss(lambda x_TK: x_TK[order % T]),
    GRADIENT_TOLERANCE,
  )


def test_long_and_zero_vectors_have_gradients():
  case = make(block=2)

  @jax.jit
  def gradient(x_BTD):
    return jax.grad(
      lambda x_BTD: (
        module_of(case).apply(variables_of(case), x_BTD, tokens=TOKENS).sum()
      )
    )(x_BTD)

  # Beyond 2e19 the square of a number is beyond float32; much farther so are
  # the products of the backward pass.
  for scale in (0.0, 1e20):
    assert np.isfinite(gradient(scale * normal(2, T, D))).all()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'block': -1}, 'block.*-1'),
    ({'num_hashes': 0}, 'num_hashes.*0'),
    ({'seed': -1}, 'seed.*-1'),
    ({'num_buckets': 0}, r'even.*got 0'),
    ({'num_buckets': 7}, r'even.*got 7'),
    ({'num_buckets': 130}, r'multiple of 4.*130'),
  ],
)
def test_wrong_value_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    attention.build('reformer', **settings)


def test_more_than_one_sort_can_hold_is_refused():
  bucket_RT = jax.ShapeDtypeStruct((8, 1 << 16), jnp.int32)
  keep_T = jax.ShapeDtypeStruct((1 << 16,), bool)
  with pytest.raises(ValueError, match='fewer buckets'):
    jax.eval_shape(lambda *x: copies.sort(*x, 4096), bucket_RT, keep_T)
