"""Linformer, by the package linformer."""

import functools

import torch
from linformer.linformer import LinformerSelfAttention
from oracles import common
from oracles.record import ALONE, record, rows_alone, unmasked
from oracles.sizes import LENGTHS, B, D, H, T


def files():
  module = LinformerSelfAttention(D, seq_len=T + 4, k=5, heads=H)
  common.stir(module, seed=1)
  params = common.four(module.to_q, module.to_k, module.to_v, module.to_out)
  mixes = {'mix_keys': module.proj_k.T, 'mix_values': module.proj_v.T}
  settings = {
    'num_heads': H, 'rank': 5, 'max_length': T + 4, 'use_bias': True,
    'sharing': 'headwise',
  }  # fmt: skip
  save = functools.partial(
    record, mechanism='linformer', packages=['linformer'],
    source='linformer LinformerSelfAttention',
  )  # fmt: skip
  yield save(
    'linformer', oracle=rows_alone(module), params=params | mixes,
    settings=settings, lengths=LENGTHS, note=f'the oracle has {ALONE}',
  )  # fmt: skip
  yield save(
    'linformer-context',
    oracle=lambda x, keep, context: module(x, context=context),
    params=params | mixes, settings=settings,
    context=common.normal(B, T + 1, D, seed=4),
  )  # fmt: skip
  with torch.no_grad():
    module.proj_v.copy_(module.proj_k)
  yield save(
    'linformer-key_value', oracle=unmasked(module),
    params=params | {'mix_keys': mixes['mix_keys']},
    settings=settings | {'sharing': 'key_value'},
  )  # fmt: skip
