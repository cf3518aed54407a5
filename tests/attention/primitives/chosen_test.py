"""Attention to chosen blocks, against one tile with a mask of pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import blocks, chosen, one_by_one, softmax

T, G, S, K, V, C = 11, 2, 14, 4, 5, 3
SEGMENTS_T = jnp.array([1] * 6 + [2] * 4 + [0])
SEGMENTS_S = jnp.array([1] * 5 + [2] * 6 + [0] * 3)
# Blocks of eleven queries; block 3 has one, block 4 none, block 0 most of them.
TABLE = jnp.array(
  [[0, 2], [1, 0], [0, -1], [-1, 0], [2, 1], [0, 1], [0, 3], [2, 0], [1, 2],
   [-1, -1], [0, 1]]
)  # fmt: skip
PATTERNS = {
  'all': softmax.Pattern(),
  'causal': softmax.Pattern(causal=True),
  'dropout': softmax.Pattern(dropout=0.4),
}


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def by_pairs(q_TGK, k_SK, v_SV, pattern, table_TJ=TABLE):
  """All pairs; keys outside of the table belong to nobody."""
  where = softmax.sites(SEGMENTS_T, SEGMENTS_S)
  is_chosen_TS = (jnp.arange(S)[None, :, None] // C == table_TJ[:, None]).any(2)

  def one(q_K, t):
    here = jax.tree.map(
      lambda x: x[t][None] if x.shape[0] == T else x, where
    )._replace(segment_S=jnp.where(is_chosen_TS[t], SEGMENTS_S, 0))
    o_1V, lse_1 = softmax.tile(q_K[None], k_SK, v_SV, here, pattern=pattern)
    return o_1V[0], lse_1[0]

  over_heads = jax.vmap(one, in_axes=(0, None))
  return jax.vmap(over_heads)(q_TGK, jnp.arange(T))


def by_blocks(q_TGK, k_SK, v_SV, pattern, table_TJ=TABLE, rng=None):
  where = softmax.sites(SEGMENTS_T, SEGMENTS_S)
  return chosen.attend(
    q_TGK, k_SK, v_SV, where, table_TJ, rng, pattern=pattern, block=C
  )


def inputs(*lead):
  return (
    2 * normal(*lead, T, G, K), normal(*lead, S, K), normal(*lead, S, V)
  )  # fmt: skip


def outputs_and_gradients(form, arrays):
  """Of sums with weights that are all different."""

  def loss(arrays):
    o, lse = form(*arrays)
    total = (o * normal(*o.shape, seed=1)).sum()
    finite = jnp.where(jnp.isfinite(lse), lse, 0.0)
    return total + (finite * normal(*lse.shape, seed=1)).sum(), (o, lse)

  gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(arrays)
  return outputs, gradients


def assert_equal(actual, expected):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5),
    actual,
    expected,
  )


@pytest.mark.parametrize('tile', [2, 3, 64])
@pytest.mark.parametrize('name', ['all', 'causal'])
def test_table_equals_mask_of_pairs(name, tile, monkeypatch):
  monkeypatch.setattr(chosen, 'TILE', tile)
  # No keys are gathered.
  monkeypatch.setattr(blocks, 'attend', None)
  pattern = PATTERNS[name]
  expected = outputs_and_gradients(
    functools.partial(by_pairs, pattern=pattern), inputs()
  )
  actual = outputs_and_gradients(
    functools.partial(by_blocks, pattern=pattern), inputs()
  )
  o_TGV, lse_TG = actual[0]
  assert (o_TGV[9] == 0).all()
  assert (lse_TG[9] == -np.inf).all()
  assert_equal(actual, expected)


def test_each_pair_has_a_place_in_a_tile_of_its_block():
  # Blocks of 7, 1, 1 and 0 pairs and tiles of 3: a tile more than 9 / 3 for
  # each of three blocks, or for none.
  table_TJ = jnp.array([[0], [0], [1], [0], [0], [0], [2], [0], [0], [-1]])
  for table in (table_TJ, jnp.zeros_like(table_TJ), TABLE):
    size, num_blocks = 3, 4
    num_tiles = (table.size + num_blocks * (size - 1)) // size + 1
    plan = chosen.arrange(table, num_blocks, num_tiles, size)
    pair_P = np.asarray(plan.pair_LC).reshape(-1)
    place_P = np.asarray(plan.place_JT).T.reshape(-1)
    for pair, block in enumerate(np.asarray(table).reshape(-1)):
      if block == blocks.NOTHING:
        assert place_P[pair] == pair_P.size - 1
      else:
        assert pair_P[place_P[pair]] == pair
        assert plan.block_L[place_P[pair] // size] == block
    assert (pair_P < table.size).sum() == (table >= 0).sum()
    assert pair_P[-1] == table.size


@pytest.mark.parametrize('together', [1, 3])
def test_rows_in_turn_and_few_tiles_at_once_change_nothing(
  together, monkeypatch
):
  tables = jnp.stack([TABLE, (TABLE + 2) % 5])

  def form(*arrays):
    one = functools.partial(by_blocks, pattern=PATTERNS['causal'])
    return jax.vmap(one)(*arrays, table_TJ=tables)

  expected = outputs_and_gradients(form, inputs(2))
  numbers = together * 2 * G * C * 4
  monkeypatch.setattr(one_by_one, 'numbers', lambda *_: numbers)
  monkeypatch.setattr(one_by_one, 'is_faster', lambda *_: together == 3)
  assert_equal(outputs_and_gradients(form, inputs(2)), expected)


def test_dropout_is_the_same_in_the_backward_pass():
  # With equal weights of P, O is linear in V: its gradient says what was kept.
  q_TGK, k_SK = jnp.zeros((T, G, K)), jnp.zeros((S, K))
  v_SV = jnp.asarray(normal(S, V))

  def outputs(v_SV):
    return by_blocks(
      q_TGK, k_SK, v_SV, PATTERNS['dropout'], rng=jax.random.key(3)
    )[0]

  do_TGV = jnp.asarray(normal(T, G, V, seed=2))
  o_TGV, pull = jax.vjp(outputs, v_SV)
  (dv_SV,) = pull(do_TGV)
  np.testing.assert_allclose(
    (dv_SV * v_SV).sum(), (do_TGV * o_TGV).sum(), rtol=1e-4
  )
  plain_TGV = by_blocks(q_TGK, k_SK, v_SV, PATTERNS['all'])[0]
  assert np.abs(o_TGV - plain_TGV).max() > 0.1


def test_few_queries_gather_their_keys(monkeypatch):
  # Three pairs for five blocks.
  monkeypatch.setattr(chosen, '_attend', None)
  q_TGK, k_SK, v_SV = inputs()
  table_TJ = jnp.full((T, 1), blocks.NOTHING).at[:3, 0].set(jnp.arange(3))
  long_TJ = jnp.pad(table_TJ, ((0, 0), (0, 1)), constant_values=-1)
  where = softmax.sites(SEGMENTS_T, SEGMENTS_S)
  where = where._replace(
    segment_T=where.segment_T[:9], index_T=where.index_T[:9],
    position_T=where.position_T[:9],
  )  # fmt: skip
  actual = chosen.attend(
    q_TGK[:9], k_SK, v_SV, where, table_TJ[:9],
    pattern=PATTERNS['causal'], block=C,
  )  # fmt: skip
  expected = by_pairs(q_TGK, k_SK, v_SV, PATTERNS['causal'], long_TJ)
  assert_equal(actual, jax.tree.map(lambda x: x[:9], expected))
