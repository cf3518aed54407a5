"""Local attention, by local-attention and by torch with the mask of a band."""

import functools

import torch
from local_attention import LocalAttention
from oracles import common
from oracles.record import record
from oracles.sizes import LENGTHS, H, K, T

SETTINGS = {'num_heads': H, 'use_bias': True, 'window': 6, 'block': 6}

save = functools.partial(
  record, mechanism='local', lengths=LENGTHS, packages=['local-attention']
)


def files():
  for file, causal, rotary in (
    ('local', False, False), ('local-causal', True, False),
    ('local-causal-rotary', True, True),
  ):  # fmt: skip
    layers = common.projections(seed=5)
    yield by_blocks(file, layers, causal, rotary)
  yield by_mask(layers)


def by_blocks(file, layers, causal, rotary):
  band = LocalAttention(
    5, causal=causal, autopad=True, exact_windowsize=True,
    use_rotary_pos_emb=rotary, dim=K,
  )  # fmt: skip
  return save(
    file, oracle=common.multihead(layers, band), params=common.four(*layers),
    settings=SETTINGS | {'causal': causal, 'rotary': rotary},
    source='local-attention LocalAttention, exact_windowsize',
    note='its window counts distances up to the window, ours less than',
  )  # fmt: skip


def by_mask(layers):
  turn = common.rotation(K)
  index = torch.arange(T)
  near = (index[:, None] - index[None]).abs() < 6

  def mix(q, k, v, keep):
    return common.attend(turn(q), turn(k), v, keep[:, None, None] & near)

  return save(
    'local-rotary', oracle=common.multihead(layers, mix),
    params=common.four(*layers),
    settings=SETTINGS | {'rotary': True},
    source='torch scaled_dot_product_attention with the mask of a band',
    note='LocalAttention turns queries as if they stood in the last block '
    'that they see, which is theirs only where it does not look forward',
  )  # fmt: skip
