"""Native sparse attention (Yuan et al. 2025, 2502.11089).

    o_i = sum_c sigmoid(g_c(x_i)) softmax(q_i K_c^T / sqrt(K)) V_c

with three branches c,

    compress   phi(block) of every l keys, one block each d tokens
    select     the n blocks of keys of C tokens that matter most, all of them
    window     the keys with |i - j| < window

with keys and values of its own in each branch. The importance of a block of C
tokens is the sum of the weights of the compressed blocks, each times the share
of it that lies in that block, over all heads that share keys and values: these
select together. The first block, the token's own and the one before are always
among the n. phi is a network of one hidden layer of width K on the l keys with
a vector added for their place in the block, the same for all heads. Choices
carry no gradient; phi learns through its own branch.

Cost: time T (T / d + n C + window) K and memory T. Dropout acts on the
attention probabilities. Not supported: a context; packing (blocks would have to
begin anew in every segment); biases of the logits. Rotary positions turn
queries and keys of the branches select and window; compressed keys have no
position but their place in the block.

The bidirectional form is ours: compressed blocks and candidates lie on both
sides, and the block after the token's own is always selected too. The paper's
eq. 9 sums over l / d and C / d steps of d tokens; shares of blocks are the same
sum, for blocks of any sizes. A block counts from the first token of the row;
padding inside a row takes up room in the blocks of a batch call, but not in
those of a stream.
"""

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention import heads
from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import (
  band,
  blocks,
  cache,
  chosen,
  chunked,
  compressed,
  positions,
  softmax,
)
from effformer.shapes import Array

BLOCK = 64
# The importance of blocks that are always selected: above any sum of weights.
FORCED = 1e9


@flax.struct.dataclass
class Stream:
  """State of one head of keys and values.

  Attributes:
    selected: keys and values of the branch select.
    window: the last of the branch window.
    compressed_MK: keys and values of the branch compress.
    tail_CK: the last tokens, of which its next blocks will be made.
  """

  selected: cache.Cache
  window: band.Ring
  compressed_MK: tuple[Array, Array]
  tail_CK: tuple[Array, Array]


class NativeSparseAttention(MultiHead):
  """Compressed, selected and near tokens.

  Attributes:
    compress_block: l, tokens of a compressed block.
    compress_stride: d, tokens from one compressed block to the next; at most l.
    block: C, tokens of a selected block; 0 for 64.
    num_selected: n, blocks that a token sees; those that are always selected
      are among them: 3 where causal, else 4.
    window: tokens; the distance to a token of the branch window is less.
  """

  mechanism: ClassVar[str] = 'nsa'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    streaming=True,
    rotary=True,
    grouped=True,
    grouped_choice=True,
    linear_memory=True,
  )
  rotates_itself: ClassVar[bool] = True
  is_discrete: ClassVar[bool] = True
  mixes_groups: ClassVar[bool] = True

  compress_block: int = 32
  compress_stride: int = 16
  block: int = 0
  num_selected: int = 16
  window: int = 512

  def __post_init__(self):
    super().__post_init__()
    for setting in ('compress_block', 'compress_stride', 'window'):
      self.at_least(setting, 1)
    self.at_least('block', 0)
    self.at_least('num_selected', 3 if self.causal else 4)
    if self.compress_stride > self.compress_block:
      raise ValueError(
        f'nsa: compress_stride {self.compress_stride} would leave out tokens; '
        f'use at most compress_block, {self.compress_block}'
      )

  def project(self, x_BTD, context_BSD, tokens, carry):
    """See `MultiHead`; keys and values of the other branches are in `more`."""
    streams, carry = super().project(x_BTD, context_BSD, tokens, carry)
    shape = streams[1].shape[2:]
    names = ('compress_key', 'compress_value', 'window_key', 'window_value')
    more = {name: self.projection(name, shape)(x_BTD) for name in names}
    return (*streams[:3], more), carry

  def head_params(self, num_source, step):
    """phi of keys and of values."""
    width = self.known_head_width()
    shape = (self.compress_block, width)
    normal = nn.initializers.normal(0.02)
    dense = nn.initializers.lecun_normal(in_axis=(0, 1))
    dense_out = nn.initializers.lecun_normal()

    def network(name):
      return {
        'place': self.param(f'phi_{name}_place', normal, shape),
        'hidden': self.param(f'phi_{name}_hidden', dense, (*shape, width)),
        'out': self.param(f'phi_{name}_out', dense_out, (width, width)),
      }

    return {name: network(name) for name in ('key', 'value')}, False

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`; queries are [T, G, K], outputs [T, G, 3 V]."""
    size, stride = self.compress_block, self.compress_stride
    compressed_MK = tuple(
      compressed.compress(head.more[f'compress_{name}'], network, stride)
      for name, network in params.items()
    )
    is_whole_M = compressed.whole(head.segment_S > 0, size, stride)
    where = softmax.sites(*head[-4:])
    turned, near = self._turned(head)
    pattern = self._pattern(head, self.window)
    near_TGV = heads.each(
      lambda near: band.attend(near, pattern, rows=call.rows)[0], near
    )
    rough_TGV, table_TJ = self._survey(
      head, where, compressed_MK, is_whole_M, call
    )
    fine_TGV = self._select(turned, where, table_TJ, call)
    return jnp.concatenate([rough_TGV, fine_TGV, near_TGV], axis=-1)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`."""
    size = self.compress_block
    num_blocks = compressed.number(max_length, size, self.compress_stride)
    zeros_MK = jnp.zeros((num_blocks, head_width), dtype)
    tail_CK = jnp.zeros((size, head_width), dtype)
    return Stream(
      cache.empty(max_length, head_width, head_width, dtype),
      band.empty(self.window, head_width, dtype),
      (zeros_MK, zeros_MK),
      (tail_CK, tail_CK),
    )

  @nn.nowrap
  def step(self, head: Head, state: Stream, params, call: Call):
    """See `MultiHead`."""
    keep_T = head.segment_T > 0
    order_T = jnp.argsort(~keep_T, stable=True)
    made = [
      compressed.extend(
        stored_MK, tail_CK, head.more[f'compress_{name}'][order_T],
        state.selected.count, keep_T.sum(), params[name], self.compress_stride,
      )
      for name, stored_MK, tail_CK in zip(
        params, state.compressed_MK, state.tail_CK, strict=True
      )
    ]  # fmt: skip
    compressed_MK, tail_CK = zip(*made, strict=True)
    turned, near = self._turned(head)
    pattern = self._pattern(head, self.window)

    def extend_window(near):
      (o_TV, _), ring = band.extend(near, state.window, pattern, rows=call.rows)
      return o_TV, ring

    near_TGV, ring = heads.each(extend_window, near, out_axes=(1, None))
    stored, turned, where = cache.append(state.selected, turned)
    # Blocks to come end after every query.
    is_whole_M = jnp.ones((compressed_MK[0].shape[0],), bool)
    rough_TGV, table_TJ = self._survey(
      head, where, compressed_MK, is_whole_M, call
    )
    fine_TGV = self._select(turned, where, table_TJ, call)
    o_TGV = jnp.concatenate([rough_TGV, fine_TGV, near_TGV], axis=-1)
    o_TGV = jnp.where(stored.is_full, jnp.nan, o_TGV)
    return o_TGV, Stream(stored, ring, compressed_MK, tail_CK)

  def refine(self, o_BTHV, x_BTD):
    """Adds the branches, each times its gate."""
    gate_BTHN = self.projection('gate', (self.num_heads, 3))(x_BTD)
    gate_BTHN = nn.sigmoid(gate_BTHN.astype(jnp.float32))
    branches = jnp.split(o_BTHV, 3, axis=-1)
    # One after the other; XLA:CPU is slow at a sum over an axis of three.
    return sum(
      gate_BTHN[..., n, None] * branch_BTHV
      for n, branch_BTHV in enumerate(branches)
    )

  @nn.nowrap
  def _block(self):
    return self.block or BLOCK

  @nn.nowrap
  def _pattern(self, head, window=0):
    dropout = 0.0 if head.rng is None else self.dropout
    return softmax.Pattern(causal=self.causal, window=window, dropout=dropout)

  @nn.nowrap
  def _turned(self, head):
    """The head with rotary positions, and that of the branch window."""
    k_SK, v_SV = head.more['window_key'], head.more['window_value']
    if self.rotary:
      turn = jax.vmap(positions.rotate, in_axes=(1, None), out_axes=1)
      head = head._replace(
        q_TK=turn(head.q_TK, head.position_T),
        k_SK=positions.rotate(head.k_SK, head.position_S),
      )
      k_SK = positions.rotate(k_SK, head.position_S)
    head = head._replace(more=None)
    near = head._replace(k_SK=k_SK, v_SV=v_SV, rng=_fold(head.rng, 1))
    return head, near

  @nn.nowrap
  def _survey(self, head, where, compressed_MK, is_whole_M, call):
    """The branch compress: o_TGV, and the blocks that each query selects.

    Of these there is no table where all of them are selected.
    """
    k_MK, v_MV = compressed_MK
    size, stride = self.compress_block, self.compress_stride
    num_compressed = k_MK.shape[0]
    end_M = np.arange(num_compressed) * stride + size - 1
    (keep_NC,) = softmax.in_blocks(self._block(), where.segment_S > 0)
    keep_N = keep_NC.any(-1)
    shares = compressed.shares(
      num_compressed, size, stride, keep_N.shape[0], self._block()
    )

    def choose(weight_CM, index_C):
      if self.num_selected >= keep_N.shape[0]:
        return None
      index_NM, share_NM = shares
      score_CN = jnp.einsum('cnm,nm->cn', weight_CM[:, index_NM], share_NM)
      return selection(
        score_CN,
        index_C // self._block(),
        keep_N,
        self.causal,
        self.num_selected,
      )

    return compressed.attend(
      head.q_TK, k_MK, v_MV, where, is_whole_M, end_M,
      _fold(head.rng, 2), choose,
      pattern=self._pattern(head), rows=call.rows,
    )  # fmt: skip

  @nn.nowrap
  def _select(self, head, where, table_TJ, call):
    """The branch select: exact attention to the tokens of some blocks."""
    pattern = self._pattern(head)
    if table_TJ is None:

      def all_keys(head):
        return chunked.attend(
          head.q_TK, head.k_SK, head.v_SV, where, head.rng,
          pattern=pattern, rows=call.rows,
        )[0]  # fmt: skip

      return heads.each(all_keys, head)
    return chosen.attend(
      head.q_TK, head.k_SK, head.v_SV, where, table_TJ,
      None if head.rng is None else head.rng[0],
      pattern=pattern, block=self._block(), rows=call.rows,
    )[0]  # fmt: skip


def selection(
  score_CN: Array, own_C: Array, keep_N: Array, causal: bool, number: int
) -> Array:
  """Blocks that each query sees, [C, number], or NOTHING.

  Args:
    score_CN: importance of each block, at least 0 and below FORCED.
    own_C: the block in which the query stands.
    keep_N: whether a block has real tokens.
    causal: no blocks after the query's own.
    number: of blocks to select; ties go to the earlier one.
  """
  block_1N = np.arange(keep_N.shape[0])[None]
  ahead_CN = block_1N - own_C[:, None]
  is_forced_CN = (block_1N == 0) | (jnp.abs(ahead_CN) <= 1)
  score_CN = jnp.where(is_forced_CN, FORCED, score_CN)
  can_see_CN = keep_N[None] & ((ahead_CN <= 0) | (not causal))
  score_CN = jnp.where(can_see_CN, score_CN, -1.0)
  score_CJ, block_CJ = jax.lax.top_k(score_CN, number)
  return jnp.where(score_CJ >= 0, block_CJ, blocks.NOTHING)


def _fold(rng_G, branch):
  if rng_G is None:
    return None
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng_G, branch)
