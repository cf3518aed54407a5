"""BigBird: a window, global and random blocks of tokens in one softmax (Zaheer
et al. 2020, 2007.14062).

    block n sees the set {0, N - 1, n - 1, n, n + 1} and r random blocks
    blocks 0 and N - 1 see all blocks

Blocks of `block` tokens stand in the row; N - 1 is the block of the last real
token, so more padding on the right changes nothing. The random blocks of n are
drawn without repetition from those that it does not see anyway, for each head
its own, and as the set of a row is a function of `seed`, head, n and N they are
the same in training and evaluation. All layers with one seed have one plan.
Every key counts once. Cost: time T (5 + r) block K, memory T K.

That is the form with internal global blocks (ITC). The form with extra global
tokens (ETC) has global tokens in place of the global blocks:

    the first g = `global_tokens` real tokens see and are seen by all
    block n of the others sees the set {n - 1, n, n + 1} and r random blocks

in time T (g + (3 + r) block) K. The model puts the extra tokens before the row
(`extra_tokens` of the encoder, as many as g), where they pass through all
layers; without these the first tokens of the row itself are global. Global
queries have no projections of their own.

Not supported: causal, as global tokens see all others, hence streaming; a
context; packing, where the number of global tokens would have no bound. Dropout
acts on the attention probabilities.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import blocks, chunked, gather, softmax
from effformer.attention.primitives.blocks import NOTHING
from effformer.shapes import Array

# Of the paper.
BLOCK = 64


class BigBirdAttention(MultiHead):
  """Attention to neighbouring and random blocks, and to what is global.

  Attributes:
    num_random: r, random blocks that each block sees.
    block: tokens; 0 for 64.
    seed: of the random blocks.
    global_tokens: g, first tokens of the row that see and are seen by all; 0
      for the first and the last block in their place.
  """

  mechanism: ClassVar[str] = 'bigbird'
  supports: ClassVar[Supports] = Supports(
    rotary=True,
    relative_bias=True,
    grouped=True,
    row_normalised=True,
    linear_time=True,
    linear_memory=True,
  )

  num_random: int = 3
  block: int = 0
  seed: int = 0
  global_tokens: int = 0

  def __post_init__(self):
    super().__post_init__()
    for setting in ('num_random', 'block', 'seed', 'global_tokens'):
      self.at_least(setting, 0)

  @nn.nowrap
  def head_params(self, num_source, step):
    """Random bits [H, N, r], from which the blocks are drawn; no parameters."""
    num_others = max(num_source - self.global_tokens, 1)
    num_blocks = -(-num_others // self._size())
    # More blocks than there are cannot be drawn.
    num_random = min(self.num_random, num_blocks)
    return random_bits(self.seed, self.num_heads, num_blocks, num_random), True

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    mix = self._mix_tokens if self.global_tokens else self._mix_blocks
    return mix(head, softmax.sites(*head[-4:]), params, call)

  @nn.nowrap
  def _mix_blocks(self, head, where, bits_NM, call):
    """The first and the last block are global."""
    size, length = self._size(), head.q_TK.shape[0]
    rngs = _split(head.rng, 2)
    last = _last_block(where.segment_S, size)
    table_NJ = plan(bits_NM, last)
    o_TV, _ = self._over_blocks(head, where, table_NJ, rngs[0], call)
    first_M = jnp.arange(size)
    last_M = jnp.where(last > 0, last * size + first_M, length)
    index_M = jnp.concatenate([first_M, last_M])
    return self._put_global(o_TV, head, where, index_M, rngs[1], call)

  @nn.nowrap
  def _mix_tokens(self, head, where, bits_NM, call):
    """The first tokens are global; blocks are cut from the others."""
    g, size = self.global_tokens, self._size()
    start = min(g, head.q_TK.shape[0])
    rngs = _split(head.rng, 3)
    # Padding may stand before a global token, which has a place in a block
    # then; its key is not to count twice.
    segment_T = jnp.where(where.position_S < g, 0, where.segment_S)
    here = where._replace(segment_T=segment_T, segment_S=segment_T)
    here = softmax.Sites(*(x_T[start:] for x_T in here))
    q_TK, k_SK, v_SV = (x[start:] for x in head[:3])
    others = head._replace(q_TK=q_TK, k_SK=k_SK, v_SV=v_SV)
    last = _last_block(here.segment_S, size)
    table_NJ = plan(bits_NM, last, with_ends=False)
    near = self._over_blocks(others, here, table_NJ, rngs[0], call)
    index_M = gather.first(where.segment_S, where.position_S, g)
    k_MK, v_MV = (gather.at(x, index_M) for x in (head.k_SK, head.v_SV))
    here = here._replace(
      segment_S=gather.at(where.segment_S, index_M),
      index_S=index_M,
      position_S=gather.at(where.position_S, index_M),
    )
    seen = others._replace(k_SK=k_MK, v_SV=v_MV)
    o_TV, _ = softmax.merge(near, self._over_all(seen, here, rngs[1], call))
    o_TV = jnp.pad(o_TV, ((start, 0), (0, 0)))
    return self._put_global(o_TV, head, where, index_M, rngs[2], call)

  @nn.nowrap
  def _put_global(self, o_TV, head, where, index_M, rng, call):
    """`o_TV` with the outputs of queries that see all tokens of the row."""
    here = where._replace(
      segment_T=gather.at(where.segment_T, index_M),
      index_T=index_M,
      position_T=gather.at(where.position_T, index_M),
    )
    head = head._replace(q_TK=gather.at(head.q_TK, index_M))
    o_MV, _ = self._over_all(head, here, rng, call)
    return gather.put(o_TV, index_M, o_MV)

  @nn.nowrap
  def _over_blocks(self, head, where, table_NJ, rng, call):
    return blocks.attend(
      *head[:3], where, table_NJ, rng, head.bias,
      pattern=self._pattern(head), block=self._size(), rows=call.rows,
    )  # fmt: skip

  @nn.nowrap
  def _over_all(self, head, where, rng, call):
    return chunked.attend(
      *head[:3], where, rng, head.bias,
      pattern=self._pattern(head), rows=call.rows,
    )  # fmt: skip

  @nn.nowrap
  def _pattern(self, head):
    dropout = 0.0 if head.rng is None else self.dropout
    return softmax.Pattern(dropout=dropout, bias=self.bias_rule())

  @nn.nowrap
  def _size(self):
    return self.block or BLOCK


def _split(rng, number):
  return (None,) * number if rng is None else jax.random.split(rng, number)


def _last_block(segment_T, size):
  """Number of the block of the last real token; 0 where there is none."""
  index_T = jnp.arange(segment_T.shape[0], dtype=jnp.int32)
  return jnp.where(segment_T > 0, index_T, 0).max(initial=0) // size


def random_bits(
  seed: int, num_heads: int, num_blocks: int, num_random: int
) -> Array:
  """uint32 [H, N, r]; those of a block are the same for every N."""
  key = jax.random.key(seed)

  def draw(head, block):
    key_of_both = jax.random.fold_in(jax.random.fold_in(key, head), block)
    return jax.random.bits(key_of_both, (num_random,), jnp.uint32)

  over_blocks = jax.vmap(draw, (None, 0))
  return jax.vmap(over_blocks, (0, None))(
    jnp.arange(num_heads), jnp.arange(num_blocks)
  )


def plan(bits_NM: Array, last: Array, with_ends: bool = True) -> Array:
  """The blocks that each block sees, int32 [N, J], each once, or NOTHING.

  Args:
    bits_NM: random numbers, uint32 [N, r].
    last: number of the last block that holds a token. Rows of what is behind
      hold nothing.
    with_ends: blocks 0 and `last` are seen by all; their own rows hold nothing.

  Returns:
    With J = 3 + r, or 5 + r with the ends.
  """
  number_N1 = jnp.arange(bits_NM.shape[0], dtype=jnp.int32)[:, None]
  # The blocks that are drawn from, and whose rows these are.
  low, high = (1, last - 1) if with_ends else (0, last)
  left_N1 = jnp.where(number_N1 > low, number_N1 - 1, NOTHING)
  right_N1 = jnp.where(number_N1 < high, number_N1 + 1, NOTHING)
  # What is left to draw from: low to n - 2, and n + 2 to high.
  below_N1 = jnp.maximum(number_N1 - 1 - low, 0)
  above_N1 = jnp.maximum(high - 1 - number_N1, 0)
  rank_NM = _draw(bits_NM, below_N1 + above_N1)
  gap_N1 = number_N1 + 2 - low - below_N1
  block_NM = rank_NM + low + jnp.where(rank_NM >= below_N1, gap_N1, 0)
  random_NM = jnp.where(rank_NM >= 0, block_NM, NOTHING)
  seen = [left_N1, number_N1, right_N1, random_NM]
  if with_ends:
    ends_N1 = (jnp.zeros_like(number_N1), jnp.full_like(number_N1, last))
    seen = [*ends_N1, *seen]
  is_between_N1 = (number_N1 >= low) & (number_N1 <= high)
  return jnp.where(is_between_N1, jnp.concatenate(seen, axis=1), NOTHING)


def _draw(bits_NM, size_N1):
  """r distinct numbers below the size, evenly likely; -1 where it has fewer.

  Floyd's way: draw from 0 to n = size - r + m, for m = 0 to r - 1; what was
  drawn before is replaced by n.
  """
  number = bits_NM.shape[1]
  start_NM = jnp.full(bits_NM.shape, -1, jnp.int32)
  if not number:
    return start_NM

  def step(m, drawn_NM):
    most_N1 = size_N1 - number + m
    bits_N1 = jax.lax.dynamic_slice_in_dim(bits_NM, m, 1, axis=1)
    range_N1 = jnp.maximum(most_N1 + 1, 1).astype(jnp.uint32)
    new_N1 = (bits_N1 % range_N1).astype(jnp.int32)
    is_old_N1 = (drawn_NM == new_N1).any(1, keepdims=True)
    new_N1 = jnp.where(is_old_N1, most_N1, new_N1)
    new_N1 = jnp.where(most_N1 >= 0, new_N1, -1)
    return jax.lax.dynamic_update_slice_in_dim(drawn_NM, new_N1, m, axis=1)

  return jax.lax.fori_loop(0, number, step, start_NM)
