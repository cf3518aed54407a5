"""Softmax attention of each query to blocks of its own choice, block by block.

Query i sees the blocks `table_TJ[i]` of C keys, all J of them in one softmax.
`blocks` gathers the keys of each query, T J C rows. Here the T J pairs of a
query and a block are sorted by block and cut into tiles of queries that share
one, so that only queries are gathered, T J rows, and every tile is a product of
two matrices. The J parts of a query's softmax are merged by their logsumexp.

Cost: time T J C (K + V), memory T J V + S (forward and backward).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import blocks, gather, one_by_one, softmax
from effformer.attention.primitives.softmax import Pattern, Sites
from effformer.shapes import Array

# Queries of a tile: where the products of a CPU are fast, at little padding.
TILE = 64


class Plan(NamedTuple):
  """Which pairs are in which tile; pair i J + j is query i and its block j.

  Attributes:
    block_L: the block of keys that a tile reads.
    pair_LC: its pairs; T J where there is none.
    place_JT: l C + c of each pair; where the table has NOTHING the last one,
      which no pair has.
  """

  block_L: Array
  pair_LC: Array
  place_JT: Array


class Cut(NamedTuple):
  """How the work is cut; static.

  Attributes:
    block: keys in a block.
    together: tiles that are in work at once.
    in_turn: under `vmap`, heads and examples one after the other.
  """

  block: int
  together: int
  in_turn: bool


def attend(
  q_TGK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  table_TJ: Array,
  rng: Array | None = None,
  *,
  pattern: Pattern = softmax.EVERYTHING,
  block: int,
  rows: int = 1,
) -> tuple[Array, Array]:
  """`softmax.tile` for each query over its row of the table.

  Args:
    q_TGK: queries of G heads, which choose together.
    k_SK, v_SV: keys and values, which all G heads share.
    where, rng, pattern: as in `softmax.tile`; there is no bias.
    table_TJ: integers, numbers of blocks of keys, each at most once in a row,
      or `blocks.NOTHING`.
    block: C, tokens.
    rows: under `vmap` over so many, fewer tiles are in work together.

  Returns:
    o_TGV and lse_TG, float32. A row without admissible keys has 0 and -inf.
  """
  length, group, width = q_TGK.shape
  num_blocks = max(-(-k_SK.shape[0] // block), 1)
  mean_pairs = table_TJ.size // num_blocks
  if mean_pairs < 2:
    # Few queries, as in a stream: most blocks would be read for nobody.
    own = (where.segment_T, where.index_T, where.position_T)
    own = (jnp.repeat(site_T, group) for site_T in own)
    names = ('segment_T', 'index_T', 'position_T')
    outputs = blocks.attend(
      q_TGK.reshape(-1, width), k_SK, v_SV,
      where._replace(**dict(zip(names, own, strict=True))), table_TJ, rng,
      pattern=pattern, block=block, query_block=group, rows=rows,
    )  # fmt: skip
    return tuple(x.reshape(length, group, *x.shape[1:]) for x in outputs)
  in_turn = one_by_one.is_faster(length, width)
  size = min(mean_pairs, TILE)
  numbers = one_by_one.numbers(rows, in_turn)
  # As many as the worst table needs, where each block has a tile begun, and
  # one for what is not there.
  num_tiles = (table_TJ.size + num_blocks * (size - 1)) // size + 1
  most = max(numbers // (size * group * block), 1)
  together = softmax.even_size(num_tiles, most)
  num_tiles = -(-num_tiles // together) * together
  cut = Cut(block, together, in_turn)
  plan = arrange(table_TJ, num_blocks, num_tiles, size)
  return _attend(pattern, cut, q_TGK, k_SK, v_SV, where, plan, rng)


def arrange(
  table_TJ: Array, num_blocks: int, num_tiles: int, size: int
) -> Plan:
  """Sorts the pairs of a table into tiles of `size`, each of one block."""
  num_pairs = table_TJ.size
  block_P = jnp.where(table_TJ >= 0, table_TJ, num_blocks).reshape(-1)
  pair_P = jnp.arange(num_pairs, dtype=jnp.int32)
  block_P, pair_P = jax.lax.sort((block_P.astype(jnp.int32), pair_P))
  # Of block n, the sorted pairs first_N[n] ... first_N[n + 1] - 1.
  first_N = jnp.searchsorted(block_P, jnp.arange(num_blocks + 1))
  start_N = jnp.pad(jnp.cumsum(-(-jnp.diff(first_N) // size)), (1, 0))
  tile_L = jnp.arange(num_tiles)
  block_L = jnp.searchsorted(start_N, tile_L, side='right') - 1
  block_L = jnp.minimum(block_L, num_blocks - 1)
  rank_LC = (tile_L - start_N[block_L])[:, None] * size + jnp.arange(size)[None]
  index_LC = first_N[block_L][:, None] + rank_LC
  is_pair_LC = index_LC < first_N[block_L + 1][:, None]
  pair_LC = pair_P[jnp.minimum(index_LC, num_pairs - 1)]
  place_P = start_N[block_P] * size - first_N[block_P] + jnp.arange(num_pairs)
  place_P = jnp.where(block_P < num_blocks, place_P, num_tiles * size - 1)
  place_P = place_P.at[pair_P].set(place_P, unique_indices=True)
  return Plan(
    block_L,
    jnp.where(is_pair_LC, pair_LC, num_pairs),
    place_P.reshape(table_TJ.shape).T,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(pattern, cut, *inputs):
  forward = functools.partial(_forward, pattern, cut)
  return one_by_one.rows(forward, cut.in_turn)(*inputs)


def _forward(pattern, cut, q_TGK, k_SK, v_SV, where, plan, rng):
  def tile(number, block, pair_C):
    q_CK, *keys = cut_out(q_TGK, block, pair_C)
    here_rng = jax.random.fold_in(rng, number) if pattern.dropout else None
    return softmax.tile(q_CK, *keys, here_rng, pattern=pattern)

  def step(carry, *tiles):
    return carry, jax.vmap(tile)(*tiles)

  cut_out = _cutter(cut, k_SK, v_SV, where, plan)
  outputs = _over_tiles(cut, plan, step, None)[1]
  o_PGV, lse_PG = (_of_places(x, q_TGK.shape[1]) for x in outputs)
  weight_JTG, lse_TG = softmax.union(lse_PG[plan.place_JT])
  return _sum_over_pairs(o_PGV, plan, weight_JTG), lse_TG


def _attend_forward(pattern, cut, *inputs):
  outputs = _attend(pattern, cut, *inputs)
  return outputs, (inputs, outputs)


def _attend_backward(pattern, cut, saved, cotangents):
  backward = functools.partial(_backward, pattern, cut)
  gradients = one_by_one.rows(backward, cut.in_turn)(saved, cotangents)
  return *gradients, None, None, None


def _backward(pattern, cut, saved, cotangents):
  (q_TGK, k_SK, v_SV, where, plan, rng), (o_TGV, lse_TG) = saved
  row_TG = softmax.row(q_TGK, o_TGV, lse_TG, *cotangents, v_SV.dtype)

  def tile(number, block, pair_C):
    row_C, *keys = cut_out(row_TG, block, pair_C)
    here_rng = jax.random.fold_in(rng, number) if pattern.dropout else None
    return softmax.tile_gradient(row_C, *keys, here_rng, None, pattern)[:3]

  def step(sums, number, block, pair):
    dq_LCK, *parts = jax.vmap(tile)(number, block, pair)
    sums = jax.tree.map(lambda x, part: x.at[block].add(part), sums, parts)
    return sums, dq_LCK

  cut_out = _cutter(cut, k_SK, v_SV, where, plan)
  zeros = softmax.in_blocks(cut.block, k_SK, v_SV)
  zeros = [jnp.zeros(x.shape, jnp.float32) for x in zeros]
  sums, dq = _over_tiles(cut, plan, step, zeros)
  dq_PGK = _of_places(dq, q_TGK.shape[1])
  one_J11 = jnp.ones((plan.place_JT.shape[0], 1, 1))
  dq_TGK = _sum_over_pairs(dq_PGK, plan, one_J11)
  dk_SK, dv_SV = (x.reshape(-1, x.shape[-1])[: k_SK.shape[0]] for x in sums)
  return tuple(
    gradient.astype(x.dtype)
    for gradient, x in ((dq_TGK, q_TGK), (dk_SK, k_SK), (dv_SV, v_SV))
  )


_attend.defvjp(_attend_forward, _attend_backward)


def _cutter(cut, k_SK, v_SV, where, plan):
  """Of one tile: what its queries have, keys, values and `Sites`.

  Its rows are the heads of its first query, then those of the second.
  """
  k_MCK, v_MCV, *other = softmax.in_blocks(
    cut.block, k_SK, v_SV, where.segment_S, where.index_S, where.position_S
  )
  own = (where.segment_T, where.index_T, where.position_T)
  num_choices = plan.place_JT.shape[0]

  def cut_out(tree_TG, block, pair_C):
    query_C = pair_C // num_choices

    def take(x_TG):
      x_CG = gather.at(x_TG, query_C)
      return x_CG.reshape(-1, *x_CG.shape[2:])

    tree = jax.tree.map(take, tree_TG)
    group = jax.tree.leaves(tree_TG)[0].shape[1]
    sites = []
    for site_T, site_MC in zip(own, other, strict=True):
      sites += [jnp.repeat(gather.at(site_T, query_C), group), site_MC[block]]
    return tree, k_MCK[block], v_MCV[block], Sites(*sites)

  return cut_out


def _over_tiles(cut, plan, step, carry):
  """`step(carry, numbers, blocks, pairs)` for so many tiles at a time."""
  tiles = (jnp.arange(plan.block_L.shape[0]), plan.block_L, plan.pair_LC)
  tiles = jax.tree.map(
    lambda x: x.reshape(-1, cut.together, *x.shape[1:]), tiles
  )
  return jax.lax.scan(lambda carry, tiles: step(carry, *tiles), carry, tiles)


def _of_places(x, group):
  """[N, L, C G, ...] of the tiles to [P, G, ...] of their places."""
  return x.reshape(-1, group, *x.shape[3:])


def _sum_over_pairs(x_PGV, plan, weight_JTG):
  """sum_j weight_j x at the place of the j-th pair of each query.

  One j after the other: all at once are read many times slower.
  """

  def add(sum_TGV, pairs):
    place_T, weight_TG = pairs
    return sum_TGV + weight_TG[..., None] * x_PGV[place_T], None

  shape = (plan.place_JT.shape[1], *x_PGV.shape[1:])
  pairs = (plan.place_JT, weight_JTG)
  return jax.lax.scan(add, jnp.zeros(shape, jnp.float32), pairs)[0]
