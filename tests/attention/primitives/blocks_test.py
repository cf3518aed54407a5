"""Attention over a table of blocks, against one tile with a mask of pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import blocks, positions, softmax

T, S, K, V, C = 11, 14, 4, 5, 3
SEGMENTS_T = np.array([1] * 6 + [2] * 4 + [0])
SEGMENTS_S = np.array([1] * 5 + [2] * 6 + [0] * 3)
# Rows of four blocks of queries, of five blocks of keys.
TABLE = np.array([[0, 3, -1], [4, 1, 0], [2, -1, -1], [3, 2, 1]])
BIAS = positions.Rule('t5', num_buckets=6, max_distance=5)
PATTERNS = {
  'all': softmax.Pattern(),
  'causal': softmax.Pattern(causal=True),
  'apart': softmax.Pattern(apart=2),
  'bias': softmax.Pattern(bias=BIAS),
}


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def where():
  return softmax.sites(jnp.array(SEGMENTS_T), jnp.array(SEGMENTS_S))


def by_pairs(q_TK, k_SK, v_SV, bias_R, pattern):
  """All pairs; keys outside of the table belong to nobody."""
  in_table_TS = np.zeros((T, S), bool)
  for t in range(T):
    for s in range(S):
      in_table_TS[t, s] = s // C in TABLE[t // C]

  def one(q_K, t, keep_S):
    here = where()
    here = here._replace(
      segment_T=here.segment_T[t][None],
      index_T=here.index_T[t][None],
      position_T=here.position_T[t][None],
      segment_S=jnp.where(keep_S, here.segment_S, 0),
    )
    o_1V, lse_1 = softmax.tile(
      q_K[None], k_SK, v_SV, here, None, bias_R, pattern=pattern
    )
    return o_1V[0], lse_1[0]

  return jax.vmap(one)(q_TK, jnp.arange(T), jnp.asarray(in_table_TS))


def by_blocks(q_TK, k_SK, v_SV, bias_R, pattern, table=TABLE):
  return blocks.attend(
    q_TK, k_SK, v_SV, where(), table, None, bias_R, pattern=pattern, block=C
  )


def outputs_and_gradients(form, pattern):
  weights_TV, weights_T = normal(T, V, seed=1), normal(T, seed=1)
  inputs = 2 * normal(T, K), normal(S, K), normal(S, V), normal(6)
  if pattern.bias is None:
    inputs = (*inputs[:3], None)

  def loss(inputs):
    o_TV, lse_T = form(*inputs, pattern)
    total = (o_TV * weights_TV).sum()
    total += jnp.where(jnp.isfinite(lse_T), lse_T * weights_T, 0.0).sum()
    return total, (o_TV, lse_T)

  gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(inputs)
  return outputs, gradients


@pytest.mark.parametrize('name', PATTERNS)
def test_table_equals_mask_of_pairs(name):
  expected = outputs_and_gradients(by_pairs, PATTERNS[name])
  actual = outputs_and_gradients(by_blocks, PATTERNS[name])
  assert np.isfinite(actual[0][1]).any()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5),
    actual,
    expected,
  )


def test_results_over_disjoint_keys_merge():
  q_TK, k_SK, v_SV = normal(T, K), normal(S, K), normal(S, V)

  def part(first, last):
    segment_S = where().segment_S.at[:first].set(0).at[last:].set(0)
    return softmax.tile(q_TK, k_SK, v_SV, where()._replace(segment_S=segment_S))

  merged = softmax.merge(part(0, 3), part(3, 9), part(9, S))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    merged,
    softmax.tile(q_TK, k_SK, v_SV, where()),
  )


def test_wrong_table_is_refused():
  with pytest.raises(ValueError, match='3 rows for 4 blocks'):
    by_blocks(
      normal(T, K), normal(S, K), normal(S, V), None, PATTERNS['all'], TABLE[:3]
    )


def test_memory_grows_linearly_with_the_length():
  sizes = []
  # From here on as many blocks are in work together.
  for length in (8192, 16384, 32768):
    block, num_blocks = 64, length // 64
    near = np.arange(num_blocks)[:, None] + np.array([[-1, 0]])
    segments = jnp.ones((length,), jnp.int32)

    def loss(x_TK, near=near, segments=segments, block=block):
      o_TK, _ = blocks.attend(
        x_TK, x_TK, x_TK, softmax.sites(segments, segments), near, block=block
      )
      return (o_TK**2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros((length, 16))).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  assert sizes[2] - sizes[1] <= 2.2 * (sizes[1] - sizes[0]), sizes
