"""Gated linear attention, by fla-core; the layer around it in torch."""

import torch
import torch.nn.functional as F
from oracles import common
from oracles.record import ALONE, record, rows_alone
from oracles.sizes import LENGTHS, D, H


def files():
  recurrent = common.naive('gla').naive_recurrent_gla
  key_width, value_width, rank = 2, 4, 3
  layers = common.without_bias({
    'query': H * key_width, 'key': H * key_width, 'value': H * value_width,
    'gate': H * value_width, 'decay_low': rank,
  })  # fmt: skip
  layers['decay'] = torch.nn.Linear(rank, H * key_width)
  layers['out'] = torch.nn.Linear(H * value_width, D, bias=False)
  common.stir(layers, seed=25)
  scale = 1 + 0.3 * common.normal(value_width, seed=26)

  def oracle(x):
    decay = F.logsigmoid(layers['decay'](layers['decay_low'](x))) / 16
    streams = (layers[name](x) for name in ('query', 'key', 'value'))
    q, k, v, decay = (y.unflatten(-1, (H, -1)) for y in (*streams, decay))
    o = common.rms_norm(recurrent(q, k, v, decay)[0], scale).flatten(-2)
    return layers['out'](o * F.silu(layers['gate'](x)))

  params = common.four(*(layers[name] for name in common.FOUR), use_bias=False)
  params |= {
    'gate': common.heads_in(layers['gate'], use_bias=False),
    'decay_low': common.dense(layers['decay_low'], use_bias=False),
    'decay': common.heads_in(layers['decay']),
    'norm': scale,
  }
  yield record(
    'gla', 'gla', rows_alone(oracle), params,
    {'num_heads': H, 'causal': True, 'chunk': 5, 'gate_rank': rank},
    lengths=LENGTHS, packages=['fla-core'],
    source='fla-core naive_recurrent_gla, with the layer of the paper in torch',
    note=ALONE,
  )  # fmt: skip
