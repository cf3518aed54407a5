"""Softmax attention over a table of blocks, fixed or made from data.

Queries and keys stand in blocks of C; block n of the queries sees the blocks
`table_NJ[n]` of the keys, all J of them in one softmax. Nothing of size T x S
exists: the blocks of keys are gathered where the tile is, in the forward and in
the backward pass, which adds what it finds to the blocks they came from.

Cost: time T J C (K + V), memory T + S (forward and backward).
"""

import functools

import jax
import jax.numpy as jnp

from effformer.attention.primitives import one_by_one, softmax
from effformer.attention.primitives.softmax import Pattern, Sites
from effformer.shapes import Array

# No block stands in this place of a table.
NOTHING = -1


def attend(
  q_TK: Array,
  k_SK: Array,
  v_SV: Array,
  where: Sites,
  table_NJ: Array,
  rng: Array | None = None,
  bias: Array | None = None,
  *,
  pattern: Pattern = softmax.EVERYTHING,
  block: int,
  query_block: int = 0,
  rows: int = 1,
) -> tuple[Array, Array]:
  """`softmax.tile` for each block of queries over its row of the table.

  Args:
    q_TK, k_SK, v_SV, where, rng, bias, pattern: as there.
    table_NJ: integers, N blocks of queries; numbers of blocks of keys, each at
      most once in a row, or NOTHING.
    block: C, tokens.
    query_block: C of the queries, where it differs; 0 for `block`.
    rows: under `vmap` over so many, fewer blocks are in work together.

  Returns:
    o_TV and lse_T, float32. A row without admissible keys has 0 and -inf.

  Raises:
    ValueError: if the table is not one row for each block of queries.
  """
  length = q_TK.shape[0]
  query_block = query_block or block
  q_NCK, *own = softmax.in_blocks(
    query_block, q_TK, where.segment_T, where.index_T, where.position_T
  )
  k_MCK, v_MCV, *other = softmax.in_blocks(
    block, k_SK, v_SV, where.segment_S, where.index_S, where.position_S
  )
  num_blocks = q_NCK.shape[0]
  if table_NJ.shape[0] != num_blocks:
    raise ValueError(
      f'a table of {table_NJ.shape[0]} rows for {num_blocks} blocks of queries'
    )
  # Logits of a block, or if these are few, the keys that are gathered for it.
  work = block * table_NJ.shape[1] * max(query_block, q_TK.shape[1])
  together = one_by_one.numbers(rows) // work
  together = divisor(num_blocks, together)
  blocks = Sites(own[0], other[0], own[1], other[1], own[2], other[2])
  o_NCV, lse_NC = _attend(
    pattern, together, q_NCK, k_MCK, v_MCV, blocks, table_NJ, rng, bias
  )
  return o_NCV.reshape(-1, o_NCV.shape[-1])[:length], lse_NC.reshape(-1)[
    :length
  ]


def divisor(number: int, most: int) -> int:
  """The largest divisor of `number` up to `most`, at least 1."""
  result = max(min(most, number), 1)
  while number % result:
    result -= 1
  return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(pattern, together, q_NCK, k_MCK, v_MCV, where, table_NJ, rng, bias):
  def one(query):
    number, row_J, q_CK, *own = query
    here, k_SK, v_SV = _gather(row_J, own, k_MCK, v_MCV, where)
    here_rng = jax.random.fold_in(rng, number) if pattern.dropout else None
    return softmax.tile(q_CK, k_SK, v_SV, here, here_rng, bias, pattern=pattern)

  return jax.lax.map(one, _queries(table_NJ, q_NCK, where), batch_size=together)


def _attend_forward(
  pattern, together, q_NCK, k_MCK, v_MCV, where, table_NJ, rng, bias
):
  inputs = (q_NCK, k_MCK, v_MCV, where, table_NJ, rng, bias)
  outputs = _attend(pattern, together, *inputs)
  return outputs, (*inputs, *outputs)


def _attend_backward(pattern, together, saved, cotangents):
  q_NCK, k_MCK, v_MCV, where, table_NJ, rng, bias, o_NCV, lse_NC = saved
  row_N = softmax.row(q_NCK, o_NCV, lse_NC, *cotangents, v_MCV.dtype)

  def one(number, row_J, row, *own):
    here, k_SK, v_SV = _gather(row_J, own, k_MCK, v_MCV, where)
    here_rng = jax.random.fold_in(rng, number) if pattern.dropout else None
    return softmax.tile_gradient(row, k_SK, v_SV, here, here_rng, bias, pattern)

  def step(carry, queries):
    dk_MCK, dv_MCV, dbias = carry
    dq_GCK, dk_GSK, dv_GSV, dbias_G = jax.vmap(one)(*queries)
    # Tiles of what is not there have sent nothing, wherever it is added.
    target = jnp.maximum(queries[1], 0).reshape(-1)
    dk_MCK = dk_MCK.at[target].add(dk_GSK.reshape(-1, *dk_MCK.shape[1:]))
    dv_MCV = dv_MCV.at[target].add(dv_GSV.reshape(-1, *dv_MCV.shape[1:]))
    dbias = jax.tree.map(lambda a, b: a + b.sum(0), dbias, dbias_G)
    return (dk_MCK, dv_MCV, dbias), dq_GCK

  def in_groups(x):
    return x.reshape(-1, together, *x.shape[1:])

  start = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.float32), (k_MCK, v_MCV, bias)
  )
  queries = jax.tree.map(in_groups, _queries(table_NJ, row_N, where))
  (dk_MCK, dv_MCV, dbias), dq_NCK = jax.lax.scan(step, start, queries)
  gradients = jax.tree.map(
    lambda gradient, x: gradient.reshape(x.shape).astype(x.dtype),
    (dq_NCK, dk_MCK, dv_MCV, dbias),
    (q_NCK, k_MCK, v_MCV, bias),
  )
  return *gradients[:3], None, None, None, gradients[3]


_attend.defvjp(_attend_forward, _attend_backward)


def _queries(table_NJ, rows_N, where):
  number_N = jnp.arange(table_NJ.shape[0])
  own = (where.segment_T, where.index_T, where.position_T)
  return number_N, jnp.asarray(table_NJ), rows_N, *own


def _gather(row_J, own, k_MCK, v_MCV, where):
  """Sites, keys and values of the blocks in a row of the table."""
  source_J = jnp.maximum(row_J, 0)

  def take(x_MC):
    return x_MC[source_J].reshape(-1, *x_MC.shape[2:])

  segment_S = jnp.where(row_J[:, None] >= 0, where.segment_S[source_J], 0)
  segment_C, index_C, position_C = own
  here = Sites(
    segment_C,
    segment_S.reshape(-1),
    index_C,
    take(where.index_S),
    position_C,
    take(where.position_S),
  )
  return here, take(k_MCK), take(v_MCV)
