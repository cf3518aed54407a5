"""Native sparse attention, by fla-core; window, gates and network in torch."""

import torch
import torch.nn.functional as F
from oracles import common
from oracles.record import record, rows_alone
from oracles.sizes import B, D, T

HEADS, SOURCES, WIDTH = 4, 2, 4
BLOCK, NUM_SELECTED, WINDOW = 3, 4, 4
SIDES = (
  'key', 'value', 'compress_key', 'compress_value', 'window_key',
  'window_value',
)  # fmt: skip


def files():
  modeling = common.naive('nsa')
  layers = common.without_bias({
    **dict.fromkeys(SIDES, SOURCES * WIDTH),
    'query': HEADS * WIDTH, 'gate': HEADS * 3,
  })  # fmt: skip
  layers['out'] = torch.nn.Linear(HEADS * WIDTH, D, bias=False)
  common.stir(layers, seed=40)
  networks = {
    name: {
      'place': common.normal(BLOCK, WIDTH, seed=41 + number),
      'hidden': common.normal(BLOCK, WIDTH, WIDTH, seed=43 + number) * 0.5,
      'out': common.normal(WIDTH, WIDTH, seed=45 + number),
    }
    for number, name in enumerate(('key', 'value'))
  }
  yield by_branches('nsa', modeling, layers, networks, rotary=False)
  yield by_branches('nsa-rotary', modeling, layers, networks, rotary=True)


def by_branches(file, modeling, layers, networks, rotary):
  rotate = common.rotation(WIDTH)
  scale = WIDTH**-0.5

  def turn(x):
    return rotate(x.transpose(1, 2)).transpose(1, 2) if rotary else x

  def oracle(x):
    q, gate, *sides = (
      layers[name](x).unflatten(-1, (-1, n))
      for name, n in (
        ('query', WIDTH), ('gate', 3), *((name, WIDTH) for name in SIDES)
      )
    )  # fmt: skip
    k, v, k_rough, v_rough, k_near, v_near = sides
    k_rough = compress(k_rough, networks['key'])
    v_rough = compress(v_rough, networks['value'])
    rough, _ = modeling.naive_nsa_compression(q, k_rough, v_rough, BLOCK, scale)
    choice = modeling.naive_nsa_topk(q, k_rough, NUM_SELECTED, BLOCK, scale)
    q, k, k_near = turn(q), turn(k), turn(k_near)
    fine = modeling.naive_nsa_selection(q, k, v, choice, BLOCK, scale)
    branches = torch.stack([rough, fine, in_window(q, k_near, v_near)], dim=-2)
    o = (gate.sigmoid()[..., None] * branches).sum(-2)
    return layers['out'](o.flatten(-2))

  return record(
    file, 'nsa', rows_alone(oracle), params_of(layers, networks),
    {'num_heads': HEADS, 'num_kv_heads': SOURCES, 'head_width': WIDTH,
     'causal': True, 'rotary': rotary, 'compress_block': BLOCK,
     'compress_stride': BLOCK, 'block': BLOCK, 'window': WINDOW,
     'num_selected': NUM_SELECTED},
    shape=(B, T + 2, D), lengths=(T + 2, T - 5),
    packages=['fla-core', 'transformers'],
    source='fla-core naive_nsa_compression, naive_nsa_topk and '
    'naive_nsa_selection; window, gates and the network in torch',
    note='Its blocks are all of one size, without overlap. No mask: each row '
    'alone, at its length.',
  )  # fmt: skip


def compress(x, network):
  """[B, T, H', K] -> one key or value for each block, [B, N, H', K]."""
  x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % BLOCK))
  x = x.unflatten(1, (-1, BLOCK)) + network['place'][:, None]
  hidden = torch.einsum('bnchk,ckm->bnhm', x, network['hidden'])
  return F.gelu(hidden, approximate='tanh') @ network['out']


def in_window(q, k, v):
  """Arrays [B, T, H, K], with fewer heads of keys and values."""
  index = torch.arange(q.shape[1])
  past = index[:, None] - index[None]
  return F.scaled_dot_product_attention(
    *(x.transpose(1, 2) for x in (q, k, v)),
    attn_mask=(past >= 0) & (past < WINDOW), enable_gqa=True,
  ).transpose(1, 2)  # fmt: skip


def params_of(layers, networks):
  params = common.four(
    *(layers[name] for name in common.FOUR), HEADS, SOURCES, use_bias=False
  )
  for name in SIDES[2:]:
    params[name] = common.heads_in(layers[name], SOURCES, use_bias=False)
  params['gate'] = common.heads_in(layers['gate'], HEADS, use_bias=False)
  for name, network in networks.items():
    params |= {f'phi_{name}_{part}': x for part, x in network.items()}
  return params
