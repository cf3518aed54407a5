"""Softmax attention, by torch and by Llama and T5 of transformers."""

import functools

import torch
from oracles import common
from oracles.record import record
from oracles.sizes import LENGTHS, B, D, H, K, T
from transformers import LlamaConfig, T5Config
from transformers.models.bloom import modeling_bloom
from transformers.models.llama import modeling_llama
from transformers.models.t5 import modeling_t5

save = functools.partial(
  record, mechanism='full', lengths=LENGTHS, packages=['transformers']
)


def files():
  yield plain()
  yield rotary()
  yield t5(causal=False)
  yield t5(causal=True)
  yield alibi()


def pairs(keep, causal=True):
  """Real tokens [B, T] -> admissible pairs, for logits [B, H, T, T]."""
  keep = keep[:, None, None]
  length = keep.shape[-1]
  past = torch.ones(length, length, dtype=torch.bool).tril()
  return keep & past if causal else keep


def plain():
  layers = common.projections(seed=6)

  def mix(q, k, v, keep):
    return common.attend(q, k, v, pairs(keep, causal=False))

  return save(
    'full', oracle=common.multihead(layers, mix),
    params=common.four(*layers),
    settings={'num_heads': H, 'use_bias': True, 'block': 8},
    source='torch scaled_dot_product_attention',
  )  # fmt: skip


def rotary():
  config = LlamaConfig(
    hidden_size=16, num_attention_heads=4, num_key_value_heads=2,
    attn_implementation='sdpa',
  )  # fmt: skip
  llama = common.stir(modeling_llama.LlamaAttention(config, 0), seed=1)
  turn = modeling_llama.LlamaRotaryEmbedding(config)

  def oracle(x, keep):
    angles = turn(x, torch.arange(T)[None])
    return llama(x, angles, common.penalty(pairs(keep)))[0]

  return save(
    'full-rotary', oracle=oracle, shape=(B, T, 16),
    params=common.four(
      llama.q_proj, llama.k_proj, llama.v_proj, llama.o_proj, 4, 2, False
    ),
    settings={
      'num_heads': 4, 'num_kv_heads': 2, 'causal': True, 'rotary': True,
      'block': 8,
    },
    source='transformers LlamaAttention, with grouped queries',
  )  # fmt: skip


def t5(causal):
  config = T5Config(
    d_model=D, d_kv=K, num_heads=H, is_decoder=causal, dropout_rate=0.0,
    attn_implementation='eager',
  )  # fmt: skip
  module = common.stir(modeling_t5.T5Attention(config, True, 0), seed=1)
  module.relative_attention_bias.weight.data *= 3

  def oracle(x, keep):
    bias = module.compute_bias(x.shape[1], x.shape[1])
    bias = bias + common.penalty(pairs(keep, causal))
    return module(x, position_bias=bias)[0]

  params = common.four(module.q, module.k, module.v, module.o, use_bias=False)
  params['query']['kernel'] = params['query']['kernel'] * K**0.5
  params['relative_bias'] = module.relative_attention_bias.weight.T
  return save(
    'full-t5-causal' if causal else 'full-t5', oracle=oracle, params=params,
    settings={'num_heads': H, 'causal': causal, 'relative_bias': 't5',
              'block': 8},
    source='transformers T5Attention',
    note='its logits are not scaled: our query kernel is sqrt(K) times its',
  )  # fmt: skip


def alibi():
  layers = common.projections(seed=7)
  # Its bias is slope times the index of the key, which is the same under a
  # softmax as slope times the distance.
  bias = modeling_bloom.build_alibi_tensor(
    torch.ones(B, T), H, torch.float32
  ).reshape(B, H, 1, T)

  def mix(q, k, v, keep):
    return common.attend(q, k, v, pairs(keep), bias)

  return save(
    'full-alibi-causal', oracle=common.multihead(layers, mix),
    params=common.four(*layers),
    settings={
      'num_heads': H, 'use_bias': True, 'causal': True,
      'relative_bias': 'alibi', 'block': 8,
    },
    source='torch scaled_dot_product_attention, transformers Bloom biases',
  )  # fmt: skip
