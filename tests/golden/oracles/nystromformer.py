"""Nyströmformer, by transformers and by nystrom-attention."""

import functools

import torch
from nystrom_attention import nystrom_attention
from oracles import common
from oracles.record import record, rows_alone, unmasked
from oracles.sizes import D, H, T
from transformers import NystromformerConfig
from transformers.models.nystromformer import modeling_nystromformer

LANDMARKS, TAPS = 6, 5
SETTINGS = {
  'use_bias': True, 'rank': LANDMARKS, 'iterations': 6, 'conv_width': TAPS,
}  # fmt: skip

save = functools.partial(record, mechanism='nystromformer', dtype=torch.float64)


def files():
  yield by_transformers()
  yield by_nystrom_attention()


def by_transformers():
  config = NystromformerConfig(
    hidden_size=D, num_attention_heads=H, num_landmarks=LANDMARKS,
    segment_means_seq_len=T, conv_kernel_size=TAPS,
    attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  module = modeling_nystromformer.NystromformerSelfAttention(config)
  common.stir(module, seed=33).double()
  module.init_option = 'exact'
  out = common.projections(seed=34)[3].double()
  return save(
    'nystromformer', oracle=unmasked(lambda x: out(module(x)[0])),
    params=common.four(module.query, module.key, module.value, out)
    | {'conv': module.conv.weight[:, 0, :, 0]},
    settings={'num_heads': H, **SETTINGS}, packages=['transformers'],
    source='transformers NystromformerSelfAttention',
    note='made with its exact start of the inverse, which its settings cannot '
    'say; otherwise it starts from a maximum over all rows and heads',
  )  # fmt: skip


def by_nystrom_attention():
  module = nystrom_attention.NystromAttention(
    D, dim_head=D, heads=1, num_landmarks=LANDMARKS, pinv_iterations=6,
    residual_conv_kernel=TAPS,
  )  # fmt: skip
  common.stir(module, seed=35).double()
  kernels = module.to_qkv.weight.T.reshape(D, 3, 1, D).unbind(1)
  params = {
    name: {'kernel': kernel, 'bias': torch.zeros(1, D)}
    for name, kernel in zip(('query', 'key', 'value'), kernels, strict=True)
  }
  params |= {
    'conv': module.res_conv.weight[:, 0, :, 0],
    'out': common.heads_out(module.to_out[0], 1),
  }
  return save(
    'nystromformer-padded', oracle=rows_alone(module), params=params,
    settings={'num_heads': 1, **SETTINGS}, lengths=(T, T - LANDMARKS),
    packages=['nystrom-attention'], source='nystrom-attention NystromAttention',
    note='Its groups are of the padded row, padding on the left where they '
    'are unequal, ours of the real tokens: each row alone, at a length that '
    'its landmarks divide.',
  )  # fmt: skip
