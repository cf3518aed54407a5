"""Mamba-2, by transformers."""

import torch
from oracles import common
from oracles.record import record
from oracles.sizes import LENGTHS, D
from transformers import Mamba2Config
from transformers.models.mamba2 import modeling_mamba2

HEADS, STATE, WIDTH, TAPS = 4, 5, 6, 4


def files():
  yield with_groups('mamba2', 1)
  yield with_groups('mamba2-groups', 2)


def with_groups(file, groups):
  config = Mamba2Config(
    hidden_size=D, num_heads=HEADS, head_dim=WIDTH, state_size=STATE,
    expand=2, n_groups=groups, conv_kernel=TAPS, use_conv_bias=True,
    chunk_size=8, layer_norm_epsilon=1e-5, num_hidden_layers=1,
  )  # fmt: skip
  module = modeling_mamba2.Mamba2Mixer(config, 0)
  common.stir(module, seed=30)
  common.stir_rates(module, seed=31)
  return record(
    file, 'mamba2', lambda x, keep: module(x, attention_mask=keep),
    params_of(module, groups),
    {'num_heads': HEADS, 'num_groups': groups, 'causal': True, 'chunk': 5,
     'head_width': STATE, 'value_width': WIDTH, 'taps': TAPS},
    lengths=LENGTHS, packages=['transformers'],
    source='transformers Mamba2Mixer',
  )  # fmt: skip


def params_of(module, groups):
  values, keys = HEADS * WIDTH, groups * STATE
  gate, value, key, query, step = module.in_proj.weight.T.split(
    [values, values, keys, keys, HEADS], dim=-1
  )

  def in_our_order(channels):
    value, key, query = channels.split([values, keys, keys], dim=-1)
    return torch.cat([query, key, value], dim=-1)

  return {
    'query': {'kernel': query.unflatten(-1, (groups, STATE))},
    'key': {'kernel': key.unflatten(-1, (groups, STATE))},
    'value': {'kernel': value.unflatten(-1, (HEADS, WIDTH))},
    'gate': {'kernel': gate.unflatten(-1, (groups, -1))},
    'out': common.heads_out(module.out_proj, groups, use_bias=False),
    'step': {'kernel': step}, 'step_bias': module.dt_bias,
    'log_rate': module.A_log, 'skip': module.D, 'norm': module.norm.weight,
    'conv': in_our_order(common.taps_of(module.conv1d)),
    'conv_bias': in_our_order(module.conv1d.bias),
  }  # fmt: skip
