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

This is the form with internal global blocks (ITC). Not supported: the form with
extra global tokens (ETC), which pass through all layers beside the row, but a
mixer returns the tokens it was given; causal, as global tokens see all others,
hence streaming; a context; packing, where the number of global blocks would
have no bound. Dropout acts on the attention probabilities.
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
  """Attention to neighbouring, first, last and random blocks.

  Attributes:
    num_random: r, random blocks that each block sees.
    block: tokens; 0 for 64.
    seed: of the random blocks.
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

  def __post_init__(self):
    super().__post_init__()
    for setting in ('num_random', 'block', 'seed'):
      self.at_least(setting, 0)

  @nn.nowrap
  def head_params(self, num_source):
    """Random bits [H, N, r], from which the blocks are drawn; no parameters."""
    num_blocks = -(-num_source // self._size())
    # More blocks than there are cannot be drawn.
    num_random = min(self.num_random, num_blocks)
    return random_bits(self.seed, self.num_heads, num_blocks, num_random), True

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    size, length = self._size(), head.q_TK.shape[0]
    where = softmax.sites(*head[-4:])
    last_index = jnp.where(head.segment_S > 0, where.index_S, 0).max(initial=0)
    last = last_index // size
    inputs = (head.k_SK, head.v_SV)
    is_dropping = head.rng is not None
    pattern = softmax.Pattern(
      dropout=self.dropout if is_dropping else 0.0, bias=self.bias_rule()
    )
    rngs = jax.random.split(head.rng) if is_dropping else (None, None)
    o_TV, _ = blocks.attend(
      head.q_TK, *inputs, where, plan(params, last), rngs[0], head.bias,
      pattern=pattern, block=size, rows=call.rows,
    )  # fmt: skip
    first_M = jnp.arange(size)
    last_M = jnp.where(last > 0, last * size + first_M, length)
    index_M = jnp.concatenate([first_M, last_M])
    o_MV, _ = chunked.attend(
      gather.at(head.q_TK, index_M),
      *inputs,
      where._replace(
        segment_T=gather.at(where.segment_T, index_M),
        index_T=index_M,
        position_T=gather.at(where.position_T, index_M),
      ),
      rngs[1],
      head.bias,
      pattern=pattern,
      block=chunked.side(call.rows),
    )
    return gather.put(o_TV, index_M, o_MV)

  @nn.nowrap
  def _size(self):
    return self.block or BLOCK


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


def plan(bits_NM: Array, last: Array) -> Array:
  """The blocks that each block sees, int32 [N, 5 + r], each once, or NOTHING.

  Args:
    bits_NM: random numbers, uint32 [N, r].
    last: number of the last block that holds a token. Rows of the first block,
      of this one, and of what is behind hold nothing.
  """
  number_N1 = jnp.arange(bits_NM.shape[0], dtype=jnp.int32)[:, None]
  left_N1 = jnp.where(number_N1 > 1, number_N1 - 1, NOTHING)
  right_N1 = jnp.where(number_N1 + 1 < last, number_N1 + 1, NOTHING)
  ends_N1 = (jnp.zeros_like(number_N1), jnp.full_like(number_N1, last))
  # What is left to draw from: 1 to n - 2, and n + 2 to last - 1.
  below_N1 = jnp.maximum(number_N1 - 2, 0)
  above_N1 = jnp.maximum(last - 2 - number_N1, 0)
  rank_NM = _draw(bits_NM, below_N1 + above_N1)
  block_NM = (
    rank_NM + 1 + jnp.where(rank_NM >= below_N1, number_N1 + 1 - below_N1, 0)
  )
  random_NM = jnp.where(rank_NM >= 0, block_NM, NOTHING)
  table_NJ = jnp.concatenate(
    [*ends_N1, left_N1, number_N1, right_N1, random_NM], axis=1
  )
  is_inner_N1 = (number_N1 > 0) & (number_N1 < last)
  return jnp.where(is_inner_N1, table_NJ, NOTHING)


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
