"""BigBird, by transformers."""

import numpy as np
from oracles import common
from oracles.record import record
from oracles.sizes import D, H, T
from transformers import BigBirdConfig, BigBirdModel
from transformers.models.big_bird import modeling_big_bird

BLOCK, NUM_RANDOM = 3, 2


def files():
  config = BigBirdConfig(
    hidden_size=D, num_attention_heads=H, block_size=BLOCK, use_bias=True,
    num_random_blocks=NUM_RANDOM, attention_type='block_sparse',
  )  # fmt: skip
  module = modeling_big_bird.BigBirdBlockSparseAttention(config)
  common.stir(module, seed=36)
  out = common.projections(seed=37)[3]
  ranks, plan = random_blocks(T // BLOCK)
  module._bigbird_block_rand_mask_with_head = lambda **_: list(plan)

  def oracle(x, keep):
    blocked, band, rows, columns = (
      BigBirdModel.create_masks_for_block_sparse_attn(keep.float(), BLOCK)
    )
    return out(module(x, band, rows, columns, blocked, blocked)[0])

  yield record(
    'bigbird', 'bigbird', oracle,
    common.four(module.query, module.key, module.value, out),
    {'num_heads': H, 'use_bias': True, 'block': BLOCK,
     'num_random': NUM_RANDOM},
    # Padding within the last block, which stays the last.
    lengths=(T, T - BLOCK + 1), packages=['transformers'], constant=ranks,
    source='transformers BigBirdBlockSparseAttention',
    note='without training its random blocks are all block 0, which then '
    'counts several times. The constant are ranks of random blocks among those '
    'that a block may draw, which both are given',
  )  # fmt: skip


def random_blocks(blocks):
  """The ranks of random blocks among all that a block may draw, and they."""
  rng = np.random.default_rng(38)
  ranks = np.zeros((H, blocks, NUM_RANDOM), np.int32)
  plan = np.zeros((H, blocks - 2, NUM_RANDOM), np.int32)
  for head in range(H):
    for i in range(1, blocks - 1):
      seen = {0, i - 1, i, i + 1, blocks - 1}
      others = np.array(sorted(set(range(blocks)) - seen))
      drawn = np.sort(rng.permutation(len(others))[:NUM_RANDOM])
      ranks[head, i], plan[head, i - 1] = drawn, others[drawn]
  return ranks, plan
