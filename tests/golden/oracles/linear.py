"""Linear attention, by performer-pytorch; its features are those of torch."""

import functools

import torch.nn.functional as F
from oracles import common
from oracles.record import ALONE, record, rows_alone
from oracles.sizes import LENGTHS, H
from performer_pytorch import performer_pytorch


def files():
  for causal in (False, True):
    layers = common.projections(seed=39)
    mix = over_features(lambda q, k: (F.elu(q) + 1, F.elu(k) + 1), causal)
    yield record(
      'linear-causal' if causal else 'linear', 'linear',
      rows_alone(common.multihead(layers, mix)), common.four(*layers),
      {'num_heads': H, 'use_bias': True, 'causal': causal, 'chunk': 5},
      lengths=LENGTHS, packages=['performer-pytorch'],
      source='performer-pytorch linear_attention, elu + 1 in torch', note=ALONE,
    )  # fmt: skip


def over_features(features, causal):
  """`mix(q, k, v)` from `features(q, k)`."""
  mix = performer_pytorch.linear_attention
  if causal:
    mix = functools.partial(
      performer_pytorch.causal_linear_attention_noncuda, eps=0.0, chunk_size=4
    )
  return lambda q, k, v: mix(*features(q, k), v)
