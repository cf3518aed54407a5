"""What oracles share: random weights, weights under our names, attention."""

import importlib.util
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from oracles.sizes import D, H
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

FOUR = ('query', 'key', 'value', 'out')


def normal(*shape, seed):
  values = np.random.default_rng([seed, *shape]).normal(size=shape)
  return torch.tensor(values, dtype=torch.float32)


def stir(module, seed):
  """Random weights, large enough for attention to be far from uniform."""
  with torch.no_grad():
    for number, parameter in enumerate(module.parameters()):
      noise = normal(*parameter.shape, seed=100 * seed + number)
      if parameter.ndim < 2:
        parameter.add_(0.3 * noise)
      else:
        fan_in = int(np.prod(parameter.shape[1:]))
        parameter.copy_(1.5 * noise * fan_in**-0.5)
  return module.eval()


def stir_rates(module, seed):
  """Decays and steps of a layer of transformers, by heads."""
  with torch.no_grad():
    module.A_log.copy_(normal(*module.A_log.shape, seed=seed))
    module.dt_bias.copy_(normal(*module.dt_bias.shape, seed=seed + 1) - 1)


def projections(seed, bias=True):
  """Four linear layers for oracles that have none of their own."""
  layers = torch.nn.ModuleList(
    [torch.nn.Linear(D, D, bias=bias) for _ in range(4)]
  )
  return stir(layers, seed)


def without_bias(widths):
  """Linear layers by name, from D to their width; still to be stirred."""
  return torch.nn.ModuleDict(
    {name: torch.nn.Linear(D, n, bias=False) for name, n in widths.items()}
  )


def dense(linear, use_bias=True):
  """torch [F, D] -> our kernel [D, F] and bias [F], zeros if it has none."""
  if not use_bias:
    return {'kernel': linear.weight.T}
  bias = linear.bias
  if bias is None:
    bias = torch.zeros(linear.weight.shape[0])
  return {'kernel': linear.weight.T, 'bias': bias}


def heads_in(linear, heads=H, use_bias=True):
  """torch [H K, D] -> our kernel [D, H, K] and bias [H, K]."""
  whole = dense(linear, use_bias)
  return {name: x.unflatten(-1, (heads, -1)) for name, x in whole.items()}


def heads_out(linear, heads=H, use_bias=True):
  """torch [D, H V] -> our kernel [H, V, D] and bias [D]."""
  whole = dense(linear, use_bias)
  return whole | {'kernel': whole['kernel'].unflatten(0, (heads, -1))}


def four(query, key, value, out, heads=H, sources=None, use_bias=True):
  """The standard projections of ours."""
  sources = sources or heads
  return {
    'query': heads_in(query, heads, use_bias),
    'key': heads_in(key, sources, use_bias),
    'value': heads_in(value, sources, use_bias),
    'out': heads_out(out, heads, use_bias),
  }


def taps_of(conv):
  """torch [D, 1, taps], the present last -> ours [taps, D], it first."""
  return conv.weight[:, 0].flip(-1).T


def split(x):
  """[B, T, H K] -> [B, H, T, K]."""
  return x.unflatten(-1, (H, -1)).transpose(1, 2)


def merge(x):
  return x.transpose(1, 2).flatten(-2)


def multihead(layers, mix):
  """An oracle: four layers around `mix(q, k, v)`, arrays [B, H, T, K].

  What it is given beside x, `mix` is given too.
  """
  *inputs, out = layers

  def oracle(x, *keep):
    return out(merge(mix(*(split(layer(x)) for layer in inputs), *keep)))

  return oracle


def penalty(keep):
  """What to add to logits, so that only admissible pairs count."""
  return torch.zeros(keep.shape).masked_fill(~keep, -1e9)


def attend(q, k, v, keep, bias=0.0):
  """torch's own attention over admissible pairs; [B, H, T, K]."""
  return F.scaled_dot_product_attention(q, k, v, attn_mask=penalty(keep) + bias)


def rotation(width):
  """Rotary positions of [B, H, T, width], as Llama has them."""
  config = LlamaConfig(hidden_size=width, num_attention_heads=1)
  angles = modeling_llama.LlamaRotaryEmbedding(config)

  def turn(x, position=None):
    if position is None:
      position = torch.arange(x.shape[2])
    cos, sin = angles(x, position[None])
    return modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[0]

  return turn


def rms_norm(x, scale):
  return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * scale


def naive(name):
  """A `naive.py` of fla, by its path: importing fla itself needs Triton.

  What such a file takes from fla itself serves packed rows only.
  """
  for stub in ('fla.ops.utils', 'fla.ops.utils.pooling'):
    sys.modules[stub] = mock.MagicMock()
  root = pathlib.Path(importlib.util.find_spec('fla').origin).parent
  spec = importlib.util.spec_from_file_location(
    f'naive_{name}', root / 'ops' / name / 'naive.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
