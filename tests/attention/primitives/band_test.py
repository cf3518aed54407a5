"""The band, against one tile with a mask of pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.heads import Head
from effformer.attention.primitives import band, softmax

T, K = 13, 4
SEGMENTS_T = np.array([1] * 6 + [0] + [2] * 5 + [0])


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def head_of(q_TK, k_SK, v_SV):
  segment_T = jnp.array(SEGMENTS_T)
  index_T = jnp.arange(T, dtype=jnp.int32)
  return Head(
    q_TK, k_SK, v_SV, None, None, None, segment_T, segment_T, index_T, index_T
  )


def by_pairs(q_TK, k_SK, v_SV, keep_TS):
  keep_TS &= (SEGMENTS_T[:, None] == SEGMENTS_T[None]) & (SEGMENTS_T > 0)[None]

  def one(q_K, keep_S):
    where = softmax.sites(jnp.ones((1,), int), keep_S.astype(jnp.int32))
    o_1V, lse_1 = softmax.tile(q_K[None], k_SK, v_SV, where)
    return o_1V[0], lse_1[0]

  return jax.vmap(one)(q_TK, jnp.asarray(keep_TS))


def outputs_and_gradients(form):
  weights_TK, weights_T = normal(T, K, seed=1), normal(T, seed=1)
  inputs = 2 * normal(T, K), normal(T, K, seed=2), normal(T, K)

  def loss(inputs):
    o_TV, lse_T = form(*inputs)
    total = (o_TV * weights_TK).sum()
    total += jnp.where(jnp.isfinite(lse_T), lse_T * weights_T, 0.0).sum()
    return total, (o_TV, lse_T)

  gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(inputs)
  return outputs, gradients


def offsets():
  return np.arange(T)[:, None] - np.arange(T)[None]


def assert_same(form, keep_TS):
  actual = outputs_and_gradients(form)
  expected = outputs_and_gradients(functools.partial(by_pairs, keep_TS=keep_TS))
  assert np.isfinite(actual[0][1]).any()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5),
    actual,
    expected,
  )


# Many rows: blocks are computed one after the other, or by twos.
@pytest.mark.parametrize('rows', [1, 1 << 14, 1 << 19])
@pytest.mark.parametrize('is_causal', [False, True])
@pytest.mark.parametrize('step', [1, 3])
def test_band_equals_mask_of_pairs(step, is_causal, rows):
  pattern = softmax.Pattern(causal=is_causal, window=2)
  # Blocks of 2 tokens: several, the last one not full.
  keep_TS = (np.abs(offsets()) < 2 * step) & (offsets() % step == 0)
  if is_causal:
    keep_TS &= offsets() >= 0
  assert_same(
    lambda *inputs: band.attend(
      head_of(*inputs), pattern, block=2, rows=rows, step=step
    ),
    keep_TS,
  )


@pytest.mark.parametrize('rows', [1, 1 << 19])
def test_bfloat16_has_gradients_of_its_type(rows):
  pattern = softmax.Pattern(window=2)

  def gradients(dtype):
    inputs = (jnp.asarray(normal(T, K, seed=n), dtype) for n in range(3))
    return jax.jit(
      jax.grad(
        lambda *inputs: (
          band.attend(head_of(*inputs), pattern, block=2, rows=rows)[0] ** 2
        ).sum(),
        (0, 1, 2),
      )
    )(*inputs)

  for rough, fine in zip(
    gradients(jnp.bfloat16), gradients(jnp.float32), strict=True
  ):
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype('f4'), fine, atol=0.05)


@pytest.mark.parametrize('rows', [1, 1 << 19])
def test_same_remainder_equals_mask_of_pairs(rows):
  pattern = softmax.Pattern(causal=True, apart=1)
  assert_same(
    lambda *inputs: band.same_remainder(
      head_of(*inputs), pattern, 3, rows=rows
    ),
    (offsets() % 3 == 0) & (offsets() > 0),
  )


@pytest.mark.parametrize('step', [1, 3])
def test_stream_equals_band_over_real_tokens(step):
  pattern = softmax.Pattern(causal=True, window=2)
  head = head_of(normal(T, K), normal(T, K, seed=2), normal(T, K))
  keep_T = SEGMENTS_T > 0
  expected = jax.jit(lambda head: band.attend(head, pattern, step=step))(
    band.over_tokens(lambda x: x[keep_T], head)
  )
  extend = jax.jit(
    lambda part, ring: band.extend(part, ring, pattern, step=step)
  )
  ring, outputs = band.empty(2, K, jnp.float32, step), []
  for first, last in [(0, 1), (1, 8), (8, T)]:
    part = band.over_tokens(lambda x, a=first, b=last: x[a:b], head)
    output, ring = extend(part, ring)
    outputs.append(output)
  for part, whole in zip(zip(*outputs, strict=True), expected, strict=True):
    actual = np.concatenate(part)[keep_T]
    np.testing.assert_allclose(actual, whole, rtol=2e-5, atol=2e-5)
