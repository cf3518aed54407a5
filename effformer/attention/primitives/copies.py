"""Attention among copies of tokens, sorted by hashes and cut into chunks.

R hashes make R copies of T tokens, S = R T in all. They stand in the order of
(hash, bucket, token), those of padding behind all others. A chunk of C copies
sees itself and the chunk before it; the first chunk sees the last one with a
real token, so that nothing depends on the amount of padding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from effformer.attention.primitives import blocks, one_by_one, softmax
from effformer.shapes import Array


class Order(NamedTuple):
  """The copies in their order.

  Attributes:
    slot_S: r T + i of each copy.
    place_RT: where the copy of each token stands.
    bucket_S: r b + bucket, ascending; R b + r at padding.
  """

  slot_S: Array
  place_RT: Array
  bucket_S: Array


def sort(bucket_RT: Array, keep_T: Array, num_buckets: int) -> Order:
  """Sorts all copies at once by one whole number each.

  Raises:
    ValueError: if these numbers do not fit into 32 bits.
  """
  num_hashes, length = bucket_RT.shape
  last = num_hashes * num_buckets
  if (last + num_hashes) * length >= 2**31:
    raise ValueError(
      f'{num_hashes} hashes of {num_buckets} buckets and {length} tokens are '
      'too many for one sort; take fewer buckets'
    )
  hash_R1 = jnp.arange(num_hashes, dtype=jnp.int32)[:, None]
  bucket_RT = jnp.where(
    keep_T[None], hash_R1 * num_buckets + bucket_RT, last + hash_R1
  )
  index_T = jnp.arange(length, dtype=jnp.int32)
  key_S = jnp.sort((bucket_RT * length + index_T[None]).reshape(-1))
  bucket_S = key_S // length
  hash_S = jnp.where(bucket_S < last, bucket_S // num_buckets, bucket_S - last)
  slot_S = hash_S * length + key_S % length
  place_S = jnp.arange(slot_S.size, dtype=jnp.int32)
  place_S = place_S.at[slot_S].set(place_S, unique_indices=True)
  return Order(slot_S, place_S.reshape(bucket_RT.shape), bucket_S)


def windows(num_real: Array, num_copies: int, block: int) -> Array:
  """A table of `blocks`, [N, 2]: each chunk of `block` and the one before.

  `num_real` copies are not those of padding.
  """
  chunk_N = jnp.arange(-(-num_copies // block), dtype=jnp.int32)
  last = jnp.maximum(num_real - 1, 0).astype(jnp.int32) // block
  before_N = jnp.where(chunk_N > 0, chunk_N - 1, last)
  before_N = jnp.where(before_N == chunk_N, blocks.NOTHING, before_N)
  return jnp.stack([chunk_N, before_N], axis=1)


@jax.custom_vjp
def take(x_T: Array, source_S: Array, back_RT: Array) -> Array:
  """`x[source]`; `back` says where the R copies of each row of x went.

  The gradient gathers by `back`, where autodiff would scatter by `source`.
  """
  return x_T[source_S]


def _take_forward(x_T, source_S, back_RT):
  return x_T[source_S], back_RT


def _take_backward(back_RT, dy_S):
  return dy_S[back_RT].sum(0), None, None


take.defvjp(_take_forward, _take_backward)


class Shares(NamedTuple):
  """Numbers that are equal where copies share a window.

  Attributes:
    window_SM: of a query, the windows of all copies of its token.
    stand_SR: of a key, where all copies of its token stand.
  """

  window_SM: Array
  stand_SR: Array


def shares(
  order: Order, table_NJ: Array, block: int, within_bucket: bool
) -> Shares:
  """Windows as the table has them, or only a copy's own bucket of them."""
  length = order.place_RT.shape[1]
  stand_RT = order.place_RT // block
  window_RTJ = table_NJ[stand_RT]
  if within_bucket:
    bucket_RT = order.bucket_S[order.place_RT]
    # More than any bucket, so that no two pairs have one number.
    stride = order.bucket_S[-1] + 1
    stand_RT = stand_RT * stride + bucket_RT
    window_RTJ = jnp.where(
      window_RTJ >= 0, window_RTJ * stride + bucket_RT[..., None], -1
    )
  window_TM = jnp.moveaxis(window_RTJ, 0, 1).reshape(length, -1)
  token_S = order.slot_S % length
  return Shares(window_TM[token_S], stand_RT.T[token_S])


def attend_once(
  q_SK: Array,
  k_SK: Array,
  v_SV: Array,
  where: softmax.Sites,
  table_NJ: Array,
  shared: Shares,
  rng: Array | None = None,
  bias: Any = None,
  *,
  pattern: softmax.Pattern = softmax.EVERYTHING,
  block: int,
  rows: int = 1,
) -> tuple[Array, Array]:
  """`blocks.attend`, less log N_ij from each logit.

  N_ij is how many pairs of copies of the tokens i and j share a window, so that
  copies together count once. Makes each chunk again in the backward pass.
  """
  own = (where.segment_T, where.index_T, where.position_T)
  queries = softmax.in_blocks(block, q_SK, *own, shared.window_SM)
  keys = softmax.in_blocks(block, k_SK, v_SV, *own, shared.stand_SR)

  @jax.checkpoint
  def one(chunk):
    number, row_J, (q_CK, *own, window_CM), keys = chunk
    k_SK, v_SV, segment_S, *others, stand_SR = (
      x.reshape(-1, *x.shape[2:]) for x in keys
    )
    segment_S = jnp.where(jnp.repeat(row_J, block) >= 0, segment_S, 0)
    pairs = zip(own, (segment_S, *others), strict=True)
    here = softmax.Sites(*(site for pair in pairs for site in pair))
    is_shared = window_CM[:, None, :, None] == stand_SR[None, :, None]
    count_CS = jnp.maximum(is_shared.sum((-1, -2)), 1)
    logits_CS = softmax.logits(q_CK, k_SK, here, pattern, bias)
    here_rng = jax.random.fold_in(rng, number) if pattern.dropout else None
    logits_CS -= jnp.log(count_CS)
    return softmax.weigh(logits_CS, v_SV, here_rng, pattern.dropout)

  num_blocks = table_NJ.shape[0]
  numbers = one_by_one.numbers(rows)
  together = numbers // (block**2 * table_NJ.shape[1])
  source_NJ = jnp.maximum(table_NJ, 0)
  chunks = (
    jnp.arange(num_blocks),
    table_NJ,
    queries,
    tuple(x[source_NJ] for x in keys),
  )
  o_NCV, lse_NC = jax.lax.map(
    one, chunks, batch_size=blocks.divisor(num_blocks, together)
  )
  length = q_SK.shape[0]
  o_SV = o_NCV.reshape(-1, o_NCV.shape[-1])[:length]
  return o_SV, lse_NC.reshape(-1)[:length]
