"""Longformer, by transformers."""

import torch
from oracles import common
from oracles.record import record
from oracles.sizes import LENGTHS, D, H
from transformers import LongformerConfig
from transformers.models.longformer import modeling_longformer

WINDOW = 6


def files():
  yield with_global('longformer-window', 0)
  yield with_global('longformer', 2)


def with_global(file, num_global):
  config = LongformerConfig(
    hidden_size=D, num_attention_heads=H, attention_window=[WINDOW],
    attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  module = modeling_longformer.LongformerSelfAttention(config, 0)
  common.stir(module, seed=14)
  out = common.projections(seed=15)[3]

  def oracle(x, keep):
    is_global = torch.zeros_like(keep)
    is_global[:, :num_global] = True
    mask = torch.where(keep, 0.0, -1e4)
    mask = torch.where(is_global, 1e4, mask)
    return out(
      module(
        x, attention_mask=mask, is_index_masked=~keep,
        is_index_global_attn=is_global, is_global_attn=num_global > 0,
      )[0]
    )  # fmt: skip

  params = common.four(module.query, module.key, module.value, out)
  if num_global:
    params |= {
      f'{name}_global': common.heads_in(getattr(module, f'{name}_global'))
      for name in ('query', 'key', 'value')
    }
  return record(
    file, 'longformer', oracle, params,
    {'num_heads': H, 'use_bias': True, 'attention_window': WINDOW,
     'global_tokens': num_global, 'block': 5},
    lengths=LENGTHS, packages=['transformers'],
    source='transformers LongformerSelfAttention',
  )  # fmt: skip
