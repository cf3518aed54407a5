"""The chunked form against the dense one, and its own backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import chunked, softmax

T, S, K, V = 13, 11, 4, 5
TOLERANCE = 2e-5
SEGMENTS_T = np.array([1] * 6 + [0] + [2] * 4 + [3] * 2)
SEGMENTS_S = np.array([1] * 5 + [2] * 4 + [0] * 2)
PATTERNS = {
  'all': softmax.Pattern(),
  'causal': softmax.Pattern(causal=True),
  'window': softmax.Pattern(window=3),
  'causal window': softmax.Pattern(causal=True, window=3),
}


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def inputs():
  return 3 * normal(T, K), normal(S, K), normal(S, V)


def where():
  return softmax.sites(jnp.array(SEGMENTS_T), jnp.array(SEGMENTS_S))


def outputs_and_gradients(form):
  """(o, lse, dq, dk, dv) of a loss that reads both outputs."""
  weights_TV, weights_T = normal(T, V, seed=1), normal(T, seed=1)

  def loss(q_TK, k_SK, v_SV):
    o_TV, lse_T = form(q_TK, k_SK, v_SV, where())
    total = (o_TV * weights_TV).sum()
    total += jnp.where(jnp.isfinite(lse_T), lse_T * weights_T, 0.0).sum()
    return total, (o_TV, lse_T)

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  gradients, outputs = gradient(*inputs())
  return *outputs, *gradients


@functools.cache
def expected(name):
  return outputs_and_gradients(
    functools.partial(softmax.tile, pattern=PATTERNS[name])
  )


@pytest.mark.parametrize('block', [1, 3, 4, 64])
@pytest.mark.parametrize('name', PATTERNS)
def test_chunked_equals_dense(name, block):
  actual = outputs_and_gradients(
    functools.partial(chunked.attend, pattern=PATTERNS[name], block=block)
  )
  for ours, theirs in zip(actual, expected(name), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_dense_equals_jax():
  q_TK, k_SK, v_SV = inputs()
  v_SV = v_SV[:, :K]
  o_TV, _ = softmax.tile(q_TK, k_SK, v_SV, where())
  keep_TS = softmax.admissible(where(), softmax.Pattern())
  reference_T1V = jax.nn.dot_product_attention(
    q_TK[:, None], k_SK[:, None], v_SV[:, None], mask=keep_TS[None]
  )
  full_T = np.asarray(keep_TS).any(-1)
  np.testing.assert_allclose(
    o_TV[full_T], reference_T1V[full_T, 0], rtol=TOLERANCE, atol=TOLERANCE
  )


@pytest.mark.parametrize('name', ['all', 'causal'])
def test_queries_without_keys(name):
  empty_T = np.isin(SEGMENTS_T, [0, 3])
  for form in (softmax.tile, functools.partial(chunked.attend, block=3)):
    o_TV, lse_T, dq_TK, *rest = outputs_and_gradients(
      functools.partial(form, pattern=PATTERNS[name])
    )
    np.testing.assert_array_equal(o_TV[empty_T], 0.0)
    np.testing.assert_array_equal(lse_T[empty_T], -np.inf)
    np.testing.assert_array_equal(dq_TK[empty_T], 0.0)
    assert np.isfinite(lse_T[~empty_T]).any()
    assert all(np.isfinite(leaf).all() for leaf in rest)


def test_gradient_of_an_infinite_logsumexp_is_finite():
  def loss(q_TK, k_SK, v_SV):
    _, lse_T = chunked.attend(q_TK, k_SK, v_SV, where(), block=4)
    return jnp.logaddexp(lse_T, lse_T).sum()

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs())
  assert all(np.isfinite(leaf).all() for leaf in gradients)


def test_huge_logits_stay_finite():
  q_TK, k_SK, v_SV = inputs()

  def loss(q_TK, k_SK, v_SV):
    return chunked.attend(q_TK, k_SK, v_SV, where(), block=4)[0].sum()

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(
    1e4 * q_TK, 1e4 * k_SK, v_SV
  )
  assert all(np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize(
  'form', [softmax.tile, functools.partial(chunked.attend, block=4)],
  ids=['dense', 'chunked'],
)  # fmt: skip
def test_dropout_is_the_same_mask_forward_and_backward(form):
  pattern = softmax.Pattern(dropout=0.5)
  weights_TV = normal(T, V, seed=1)

  @jax.jit
  def loss(args, rng=jax.random.key(3)):  # noqa: B008
    return (form(*args, where(), rng, pattern=pattern)[0] * weights_TV).sum()

  args = inputs()
  gradients = jax.jit(jax.grad(loss))(args)
  for seed, (arg, gradient) in enumerate(zip(args, gradients, strict=True)):
    direction = normal(*arg.shape, seed=seed)
    step = 1e-2
    sides = []
    for sign in (1, -1):
      moved = [arg + sign * step * direction if x is arg else x for x in args]
      sides.append(loss(tuple(moved)))
    slope = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(
      slope, (gradient * direction).sum(), rtol=1e-2, atol=1e-2
    )
  assert loss(args) != loss(args, jax.random.key(4))


def test_tile_side_shrinks_with_the_rows():
  sides = [chunked.side(rows) for rows in (1, 4, 32, 128, 10_000)]
  assert sides == sorted(sides, reverse=True)
  assert sides[0] == 256
  assert sides[-1] == 64
