"""Gated DeltaNet, by Qwen3-Next of transformers."""

from oracles import common
from oracles.record import record
from oracles.sizes import LENGTHS, D, H
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next


def files():
  key_width, value_width, taps = 4, 6, 4
  config = Qwen3NextConfig(
    hidden_size=D, linear_num_value_heads=H, linear_num_key_heads=H,
    linear_key_head_dim=key_width, linear_value_head_dim=value_width,
    linear_conv_kernel_dim=taps, rms_norm_eps=1e-5, num_hidden_layers=1,
    layer_types=['linear_attention'],
  )  # fmt: skip
  module = modeling_qwen3_next.Qwen3NextGatedDeltaNet(config, 0)
  common.stir(module, seed=27)
  common.stir_rates(module, seed=28)
  # Rows of its first projection: for each head q, k, v, gate.
  joint = module.in_proj_qkvz.weight.T.reshape(D, H, -1)
  q, k, v, gate = joint.split([key_width] * 2 + [value_width] * 2, dim=-1)
  rate, decay = module.in_proj_ba.weight.T.reshape(D, H, 2).unbind(-1)
  params = {
    'query': {'kernel': q}, 'key': {'kernel': k}, 'value': {'kernel': v},
    'gate': {'kernel': gate}, 'rate': {'kernel': rate},
    'step': {'kernel': decay}, 'step_bias': module.dt_bias,
    'log_rate': module.A_log, 'norm': module.norm.weight,
    'conv': common.taps_of(module.conv1d),
    'out': common.heads_out(module.out_proj, use_bias=False),
  }  # fmt: skip
  yield record(
    'gated_deltanet', 'gated_deltanet',
    lambda x, keep: module(x, attention_mask=keep), params,
    {'num_heads': H, 'causal': True, 'chunk': 5, 'head_width': key_width,
     'value_width': value_width, 'taps': taps},
    lengths=LENGTHS, packages=['transformers'],
    source='transformers Qwen3NextGatedDeltaNet',
  )  # fmt: skip
