"""Synthesizer: all logits, pair by pair where they come from positions."""

import jax
import jax.numpy as jnp

from tests.attention.definitions import common
from tests.attention.sizes import LONGER, H

SHARED = {'block': 3, 'max_length': LONGER}
SMALL = [
  {'factor_width': 4, **SHARED},
  {'factor_width': 4, 'mix_dot_product': True, **SHARED},
  {'variant': 'dense', **SHARED},
  {'variant': 'dense', 'mix_dot_product': True, **SHARED},
  {'variant': 'random', **SHARED},
  {'variant': 'random_fixed', 'seed': 3, **SHARED},
  {'variant': 'factorized_dense', **SHARED},
]


def definition(case, variables, x_BTD, tokens):
  params = variables['params']
  keep_BTT = common.seen(case, tokens)
  rows = []
  for b in range(x_BTD.shape[0]):
    heads = []
    for h in range(H):
      logits = _logits(case, params, h, x_BTD[b], tokens.position_BT[b])
      attn = common.softmax_weights(logits[None, None], keep_BTT[b : b + 1])[
        0, 0
      ]
      o = attn @ (x_BTD[b] @ params['value']['kernel'][:, h])
      heads.append(o @ params['out']['kernel'][h])
    rows.append(sum(heads))
  return jnp.stack(rows)


def _logits(case, params, h, x_TD, position_T):
  variant = case.settings.get('variant', 'factorized_random')
  pairs = position_T[:, None], position_T[None, :]
  mine = {
    name.removeprefix('logits_'): param[h]
    for name, param in params.items()
    if name.startswith('logits_')
  }
  if 'dense' in variant:
    hidden = jnp.maximum(x_TD @ params['hidden']['kernel'][:, h], 0)
  if variant == 'dense':
    own = (hidden @ mine['columns'])[:, position_T]
  elif variant == 'random':
    own = mine['rows'][pairs]
  elif variant == 'random_fixed':
    rng = jax.random.fold_in(jax.random.key(case.settings['seed']), h)
    table = jnp.stack(
      [
        jax.random.normal(jax.random.fold_in(rng, i), (LONGER,))
        for i in range(LONGER)
      ]
    )
    own = table[pairs]
  elif variant == 'factorized_random':
    own = (mine['rows'] @ mine['columns'])[pairs]
  else:
    # 9 = 3 times 3.
    a, b = hidden @ mine['rows'], hidden @ mine['columns']
    assert a.shape[1] == b.shape[1] == 3
    own = a[:, position_T // 3] * b[:, position_T % 3]
  if 'share' not in mine:
    return own
  q, k = (x_TD @ params[name]['kernel'][:, h] for name in ('query', 'key'))
  weight = jnp.exp(mine['share'])
  weight /= weight.sum()
  return weight[0] * own + weight[1] * (q @ k.T) / q.shape[-1] ** 0.5
