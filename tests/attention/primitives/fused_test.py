"""The kernel of the device against the dense form, and what it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention.primitives import fused, softmax

B, T, S, H, G, K = 3, 7, 5, 6, 2, 4
RIGHT_T = [[1] * 7, [1] * 4 + [0] * 3, [0] * 7]
RIGHT_S = [[1] * 5, [1] * 2 + [0] * 3, [1] * 5]
ANY_S = [[1] * 5, [0, 1, 1, 0, 1], [0] * 5]
PACKED_T = [[1, 1, 2, 2, 2, 0, 3], [1] * 7, [0, 1, 1, 2, 2, 0, 0]]
PACKED_S = [[1, 2, 2, 0, 3], [1] * 5, [2, 2, 2, 1, 1]]


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def dense(q_BTHK, k_BSHK, v_BSHV, segment_BT, segment_BS, causal):
  pattern = softmax.Pattern(causal=causal)

  def one(q_TK, k_SK, v_SV, segment_T, segment_S):
    where = softmax.sites(segment_T, segment_S)
    return softmax.tile(q_TK, k_SK, v_SV, where, pattern=pattern)[0]

  k_BSHK, v_BSHV = (jnp.repeat(x, H // G, axis=2) for x in (k_BSHK, v_BSHV))
  over_heads = jax.vmap(one, (1, 1, 1, None, None), 1)
  return jax.vmap(over_heads)(q_BTHK, k_BSHK, v_BSHV, segment_BT, segment_BS)


@pytest.mark.parametrize(
  ('segment_BT', 'segment_BS', 'causal', 'is_packed'),
  [
    (RIGHT_T, RIGHT_T, True, False),
    (RIGHT_T, RIGHT_S, False, False),
    (RIGHT_T, ANY_S, False, False),
    (PACKED_T, PACKED_T, True, True),
    (PACKED_T, PACKED_S, False, True),
  ],
)
def test_equals_dense(segment_BT, segment_BS, causal, is_packed):
  segment_BT, segment_BS = jnp.array(segment_BT), jnp.array(segment_BS)
  num_keys = segment_BS.shape[1]
  q_BTHK, weight_BTHK = normal(B, T, H, K), normal(B, T, H, K, seed=1)
  k_BSHK, v_BSHV = normal(B, num_keys, G, K), normal(B, num_keys, G, K, seed=2)

  def loss(function, *inputs):
    o_BTHV = function(*inputs)
    # What stands at padding is not promised.
    is_real_BT11 = (segment_BT > 0)[:, :, None, None]
    o_BTHV = jnp.where(is_real_BT11, o_BTHV, 0.0)
    return (o_BTHV * weight_BTHK).sum(), o_BTHV

  def by_fused(*inputs):
    return fused.attend(
      *inputs, segment_BT, segment_BS, causal=causal, is_packed=is_packed
    )

  def by_dense(*inputs):
    return dense(*inputs, segment_BT, segment_BS, causal)

  gradient = jax.jit(
    jax.grad(loss, argnums=(1, 2, 3), has_aux=True), static_argnums=0
  )
  actual = gradient(by_fused, q_BTHK, k_BSHK, v_BSHV)
  expected = gradient(by_dense, q_BTHK, k_BSHK, v_BSHV)
  for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
  ('segment_BS', 'lengths'), [(RIGHT_S, [5, 2, 5]), (ANY_S, None)]
)
def test_kernel_is_told_lengths_where_they_say_all(
  monkeypatch, segment_BS, lengths
):
  told = []

  def kernel(q_BTHK, *_, key_value_seq_lengths=None, **__):
    told.append(key_value_seq_lengths)
    return q_BTHK

  monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
  with jax.disable_jit():
    fused.attend(
      normal(B, T, H, K), normal(B, S, G, K), normal(B, S, G, K),
      jnp.array(RIGHT_T), jnp.array(segment_BS), causal=False, is_packed=False,
    )  # fmt: skip
  (only,) = told
  assert (only is None) if lengths is None else only.tolist() == lengths


def test_what_the_kernel_lacks_is_refused():
  with pytest.raises(
    ValueError, match=r"form 'fused' has no dropout, got 0\.1"
  ):
    attention.build('full', form='fused', dropout=0.1)
  with pytest.raises(ValueError, match="form 'fused' has no relative_bias"):
    attention.build('full', form='fused', relative_bias='t5')
