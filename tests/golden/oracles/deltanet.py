"""DeltaNet, by fla-core; the layer around it in torch."""

import torch
import torch.nn.functional as F
from oracles import common
from oracles.record import ALONE, record, rows_alone
from oracles.sizes import LENGTHS, D, H, K


def files():
  recurrent = common.naive('delta_rule').delta_rule_recurrence
  taps = 3
  layers = common.projections(seed=47, bias=False)
  rate = torch.nn.Linear(D, H, bias=False)
  conv = torch.nn.Conv1d(3 * D, 3 * D, taps, groups=3 * D, bias=False)
  common.stir(torch.nn.ModuleList([rate, conv]), seed=48)
  scale = 1 + 0.3 * common.normal(K, seed=49)

  def oracle(x):
    qkv = torch.cat([layer(x) for layer in layers[:3]], dim=-1)
    qkv = F.silu(conv(F.pad(qkv.mT, (taps - 1, 0))).mT)
    q, k, v = (common.split(y) for y in qkv.split(D, dim=-1))
    q, k = (y * (y.square().sum(-1, True) + 1e-6).rsqrt() for y in (q, k))
    # Rates up to 2, as those of negative eigenvalues.
    o, _ = recurrent(q, k, v, 2 * rate(x).mT.sigmoid())
    return layers[3](common.merge(common.rms_norm(o, scale)))

  params = common.four(*layers, use_bias=False)
  params |= {
    'rate': common.dense(rate, use_bias=False),
    'norm': scale,
    'conv': common.taps_of(conv),
  }
  yield record(
    'gated_deltanet-plain', 'gated_deltanet', rows_alone(oracle), params,
    {'num_heads': H, 'causal': True, 'chunk': 5, 'delta': 'plain',
     'max_rate': 2.0, 'taps': taps},
    lengths=LENGTHS, packages=['fla-core'],
    source='fla-core delta_rule_recurrence, with the layer in torch',
    note=ALONE,
  )  # fmt: skip
