"""RetNet, by yet-another-retnet; its rotary form, by fla-core."""

import torch
import torch.nn.functional as F
from oracles import common
from oracles.record import ALONE, record, rows_alone
from oracles.sizes import LENGTHS, B, D, H, K
from yet_another_retnet.retention import MultiScaleRetention


def files():
  yield plain()
  yield rotary()


def plain():
  # Its decays are those of the paper for 5 heads.
  heads, width = 5, 40
  module = MultiScaleRetention(
    width, heads, relative_position=False, group_norm_eps=1e-5
  )
  common.stir(module, seed=22)
  return record(
    'retnet', 'retnet',
    rows_alone(lambda x: module.forward_parallel(x, x, x)[0]),
    common.four(
      module.q_proj, module.k_proj, module.v_proj, module.out_proj, heads
    )
    | {'gate': common.heads_in(module.g_proj, heads)},
    {'num_heads': heads, 'use_bias': True, 'causal': True, 'chunk': 5,
     'value_width': width // heads},
    shape=(B, 14, width), lengths=(14, 9), packages=['yet-another-retnet'],
    source='yet-another-retnet MultiScaleRetention', note=ALONE,
  )  # fmt: skip


def rotary():
  retention = common.naive('retention').naive_retention
  turn = common.rotation(K)
  query, key, _, _ = common.projections(seed=23, bias=False)
  value, gate = (torch.nn.Linear(D, 2 * D, bias=False) for _ in range(2))
  out = torch.nn.Linear(2 * D, D, bias=False)
  common.stir(torch.nn.ModuleList([value, gate, out]), seed=24)

  def oracle(x):
    q, k, v = (common.split(layer(x)) for layer in (query, key, value))
    o = common.merge(F.layer_norm(retention(turn(q), turn(k), v), (2 * K,)))
    return out(o * F.silu(gate(x)))

  return record(
    'retnet-rotary', 'retnet', rows_alone(oracle),
    common.four(query, key, value, out, use_bias=False)
    | {'gate': common.heads_in(gate, use_bias=False)},
    {'num_heads': H, 'causal': True, 'rotary': True, 'chunk': 5},
    lengths=LENGTHS, packages=['fla-core', 'transformers'],
    source='fla-core naive_retention, Llama rotary positions', note=ALONE,
  )  # fmt: skip
