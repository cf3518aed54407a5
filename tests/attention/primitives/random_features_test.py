"""Random features in several chunks, against all of them at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import one_by_one, random_features

# Chunks have at least 64 tokens: three of queries and three of keys.
T, S, K, V, M, ROWS = 150, 131, 3, 2, 5, 2


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def dense(features, q_TK, k_SK, v_SV, keep_S, omega_MK):
  def phi(x_NK):
    x_NK = x_NK / K**0.25
    scores_NM = x_NK @ omega_MK.T
    if features == 'relu':
      return jnp.maximum(scores_NM, 0.0) + 1e-3
    if features == 'hyperbolic':
      scores_NM = jnp.concatenate([scores_NM, -scores_NM], -1)
    return jnp.exp(scores_NM - (x_NK**2).sum(-1, keepdims=True) / 2)

  weight_TS = phi(q_TK) @ phi(k_SK).T * keep_S[None]
  return weight_TS @ v_SV / weight_TS.sum(-1, keepdims=True)


@pytest.mark.parametrize('is_alone', [False, True])
@pytest.mark.parametrize('features', random_features.FEATURES)
def test_chunks_equal_the_definition(monkeypatch, features, is_alone):
  monkeypatch.setattr(one_by_one, 'is_faster', lambda *_: is_alone)
  monkeypatch.setattr(one_by_one, 'numbers', lambda *_: 1)
  keep_RS = np.random.default_rng(1).random((ROWS, S)) < 0.7
  # Later keys have larger features: the largest so far keeps growing.
  growth_S1 = np.linspace(0.1, 3, S, dtype='f4')[:, None]
  omega_MK, sample_RTV = normal(M, K, seed=4), normal(ROWS, T, V, seed=5)
  inputs = (
    normal(ROWS, T, K),
    normal(ROWS, S, K, seed=2) * growth_S1,
    normal(ROWS, S, V, seed=3),
  )

  def ours(q_TK, k_SK, v_SV, keep_S):
    return random_features.attend(
      q_TK, k_SK, v_SV, keep_S.astype(jnp.int32), jnp.asarray(omega_MK),
      features=features, rows=ROWS,
    )  # fmt: skip

  def outputs_and_gradients(one):
    def loss(inputs):
      o_RTV = jax.vmap(one)(*inputs, keep_RS)
      return (o_RTV * sample_RTV).sum(), o_RTV

    return jax.jit(jax.grad(loss, has_aux=True))(inputs)

  actual = outputs_and_gradients(ours)
  expected = outputs_and_gradients(lambda *x: dense(features, *x, omega_MK))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max()
    ),
    actual,
    expected,
  )
