"""Reformer: attention among tokens of similar hash (Kitaev et al. 2020,
2001.04451).

    q_i = x_i W_qk      k_i = q_i / |q_i|      h(i) = argmax [q_i D; -q_i D]

Copies of all tokens, one for each of the hashes, are sorted by (hash, h, i) and
cut into chunks; a query sees its chunk and the one before it, the first chunk
that and the last one. Outputs of the hashes are merged by their logsumexp. A
token sees itself only where it sees nothing else, and then with probability 1,
whatever the dropout. Cost: time T R C K for R hashes and chunks of C tokens,
memory T R K.

As in public code, keys of other buckets count (`same_bucket`), a key in several
windows counts several times (`count_once` is the paper's -log N_ij), and logits
are <q_i, k_j>, not divided by sqrt(K) (`scaled`). Deviations: D comes from a
seed and stays, so that training and evaluation have the same hash; chunks count
real tokens only, so that no amount of padding matters.

Causal: what is seen lies in the past, but which of it depends on the hashes of
all tokens. Not supported, therefore: streaming; packing, since the borders of
chunks in one segment would depend on the others; a context and grouped heads,
since queries are keys. Rotary positions turn queries and keys after the hash.
Dropout acts on the attention probabilities.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import blocks, copies, positions, softmax
from effformer.shapes import Array

# More buckets than that are pairs of two hashes, or hashing would cost more
# than attention.
SIMPLE_BUCKETS = 128


class ReformerAttention(MultiHead):
  """LSH attention.

  Attributes:
    block: C, tokens of a chunk; 0 for 64.
    num_hashes: R, hashes of each token; more find more of the near keys.
    num_buckets: b, values of a hash, even; 2 T / C in the paper. Above 128, a
      multiple of 4, pairs of two hashes.
    seed: of the random directions D, which differ between heads.
    same_bucket: only keys of the query's own bucket are seen.
    count_once: a key counts once in however many windows it is.
    scaled: logits are divided by sqrt(K).
  """

  mechanism: ClassVar[str] = 'reformer'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    rotary=True,
    relative_bias=True,
    row_normalised=True,
    linear_time=True,
    linear_memory=True,
    choice_leaks=True,
  )
  rotates_itself: ClassVar[bool] = True
  is_discrete: ClassVar[bool] = True

  block: int = 0
  num_hashes: int = 2
  num_buckets: int = 32
  seed: int = 0
  same_bucket: bool = False
  count_once: bool = False
  scaled: bool = False

  def __post_init__(self):
    super().__post_init__()
    for setting, least in (('block', 0), ('num_hashes', 1), ('seed', 0)):
      self.at_least(setting, least)
    step = 2 if self.num_buckets <= SIMPLE_BUCKETS else 4
    if self.num_buckets < 2 or self.num_buckets % step:
      raise ValueError(
        'reformer: num_buckets must be even and at least 2, and above '
        f'{SIMPLE_BUCKETS} a multiple of 4; got {self.num_buckets}'
      )

  def project(self, x_BTD, context_BSD, tokens, carry):
    """See `MultiHead`; keys are queries."""
    width = (self.num_heads, self.width_of_head(x_BTD.shape[-1]))
    q_BTHK = self.projection('query_key', width)(x_BTD)
    v_BTHV = self.projection('value', width)(x_BTD)
    return (q_BTHK, q_BTHK, v_BTHV, None), carry

  def head_params(self, num_source, step):
    """D of each head, [H, R, K, half of the buckets]."""
    kernel = self.get_variable('params', 'query_key')['kernel']
    size = sum(_factors(self.num_buckets)) // 2
    shape = (self.num_heads, self.num_hashes, kernel.shape[-1], size)
    return jax.random.normal(jax.random.key(self.seed), shape), True

  @nn.nowrap
  def mix(self, head: Head, directions_RKM, call: Call):
    """See `MultiHead`."""
    length = head.q_TK.shape[0]
    num_copies = self.num_hashes * length
    block = min(self.block or 64, num_copies)
    keep_T = head.segment_T > 0
    bucket_RT = _hashes(head.q_TK, directions_RKM, self.num_buckets)
    order = copies.sort(bucket_RT, keep_T, self.num_buckets)
    table_NJ = copies.windows(keep_T.sum() * self.num_hashes, num_copies, block)
    token_S = order.slot_S % length
    q_TK, k_TK = self._queries_and_keys(head)
    q_SK, k_SK, v_SV = (
      copies.take(x, token_S, order.place_RT) for x in (q_TK, k_TK, head.v_SV)
    )
    segment_S = head.segment_T[token_S]
    if self.same_bucket:
      segment_S *= order.bucket_S + 1
    position_S = head.position_T[token_S]
    where = softmax.Sites(
      segment_S, segment_S, token_S, token_S, position_S, position_S
    )
    pattern = softmax.Pattern(
      causal=self.causal,
      # No token sees itself, nor its copies.
      apart=1,
      dropout=0.0 if head.rng is None else self.dropout,
      bias=self.bias_rule(),
    )
    inputs = (q_SK, k_SK, v_SV, where, table_NJ)
    facts = {'pattern': pattern, 'block': block, 'rows': call.rows}
    if self.count_once:
      shared = copies.shares(order, table_NJ, block, self.same_bucket)
      o_SV, lse_S = copies.attend_once(
        *inputs, shared, head.rng, head.bias, **facts
      )
    else:
      o_SV, lse_S = blocks.attend(*inputs, head.rng, head.bias, **facts)
    back = order.place_RT.reshape(-1), order.slot_S[None]
    o_RTV = copies.take(o_SV, *back).reshape(self.num_hashes, length, -1)
    lse_RT = copies.take(lse_S, *back).reshape(self.num_hashes, length)
    o_TV, lse_T = softmax.merge(*zip(o_RTV, lse_RT, strict=True))
    is_alone_T = keep_T & ~jnp.isfinite(lse_T)
    return jnp.where(is_alone_T[:, None], head.v_SV, o_TV)

  @nn.nowrap
  def _queries_and_keys(self, head):
    """Queries, and keys for logits that are divided by sqrt(K)."""
    q_TK = head.q_TK.astype(jnp.float32)
    # Divided first: the square of a long vector overflows.
    top_T1 = jax.lax.stop_gradient(jnp.abs(q_TK).max(-1, keepdims=True))
    k_TK = q_TK / jnp.where(top_T1 > 0, top_T1, 1.0)
    square_T1 = (k_TK**2).sum(-1, keepdims=True)
    # The root of 0 has no slope.
    k_TK /= jnp.sqrt(jnp.where(top_T1 > 0, square_T1, 1.0))
    if not self.scaled:
      k_TK *= math.sqrt(k_TK.shape[-1])
    both = (head.q_TK, k_TK.astype(head.q_TK.dtype))
    if not self.rotary:
      return both
    return tuple(positions.rotate(x_TK, head.position_T) for x_TK in both)


def _factors(num_buckets: int) -> tuple[int, ...]:
  """Numbers of values of the hashes that make up one; all are even."""
  if num_buckets <= SIMPLE_BUCKETS:
    return (num_buckets,)
  half = num_buckets // 4
  first = blocks.divisor(half, math.isqrt(half))
  return 2 * first, num_buckets // (2 * first)


def _hashes(q_TK: Array, directions_RKM: Array, num_buckets: int) -> Array:
  """h(i) of each hash, int32 [R, T], in float32 for every type of q."""
  q_TK = jax.lax.stop_gradient(q_TK).astype(jnp.float32)
  score_RTM = jnp.einsum('tk,rkm->rtm', q_TK, directions_RKM)
  result, first, stride = 0, 0, 1
  for size in _factors(num_buckets):
    part_RTM = score_RTM[..., first : first + size // 2]
    both_RTM = jnp.concatenate([part_RTM, -part_RTM], axis=-1)
    result += stride * jnp.argmax(both_RTM, axis=-1).astype(jnp.int32)
    first, stride = first + size // 2, stride * size
  return result
