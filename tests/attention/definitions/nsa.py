"""Native sparse attention, with a mask of all pairs for each branch."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common
from tests.attention.sizes import T

# Blocks of one token leave a choice among those that are not always selected.
SMALL = [
  {
    'compress_block': 2, 'compress_stride': 1, 'block': 1, 'num_selected': 5,
    'window': 2,
  },
  {
    'compress_block': 3, 'compress_stride': 2, 'block': 2, 'num_selected': 4,
    'window': 3, 'num_kv_heads': 1,
  },
  {
    'compress_block': 3, 'compress_stride': 2, 'block': 1, 'num_selected': 4,
    'window': 1, 'num_kv_heads': 1,
  },
]  # fmt: skip

# Compressed keys are T / stride, of which little is seen at 16 tokens a block.
COST = {
  'compress_block': 4, 'compress_stride': 2, 'block': 16, 'num_selected': 4,
  'window': 16,
}  # fmt: skip


def starts(case):
  size, stride = (case.settings[f'compress_{x}'] for x in ('block', 'stride'))
  return [b for b in range(0, T, stride) if b + size <= T], size


def network(params, name, x_BTHK, case):
  """One row for each block of tokens."""
  rows, (firsts, size) = [], starts(case)
  for first in firsts:
    place_CK = params[f'{name}_place']
    x_BHCK = x_BTHK[:, first : first + size].swapaxes(1, 2) + place_CK
    hidden = jnp.einsum('bhck,ckm->bhm', x_BHCK, params[f'{name}_hidden'])
    rows.append(jax.nn.gelu(hidden) @ params[f'{name}_out'])
  return jnp.stack(rows, axis=1)


def share(first, size, block, width):
  """The share of `size` tokens from `first` that lies in a block."""
  tokens = set(range(first, first + size))
  return len(tokens & set(range(block * width, (block + 1) * width))) / size


def selected(case, attn_BHTM, keep_BT):
  """bool [B, H, T, T], pairs of the branch select; heads of a group alike."""
  width, firsts = case.settings['block'], starts(case)[0]
  num_blocks = -(-T // width)
  share_MN = np.array(
    [
      [share(first, starts(case)[1], n, width) for n in range(num_blocks)]
      for first in firsts
    ]
  )
  groups = case.settings.get('num_kv_heads', attn_BHTM.shape[1])
  B, H = attn_BHTM.shape[:2]
  weight_BGTM = attn_BHTM.reshape(B, groups, H // groups, T, -1).sum(2)
  score_BGTN = weight_BGTM @ share_MN
  own_T1, block_1N = np.arange(T)[:, None] // width, np.arange(num_blocks)[None]
  forced_TN = (block_1N == 0) | (abs(block_1N - own_T1) <= 1)
  score_BGTN = jnp.where(forced_TN, 1e6, score_BGTN)
  real_BN = jnp.stack(
    [keep_BT[:, n * width : (n + 1) * width].any(1) for n in range(num_blocks)],
    axis=1,
  )
  score_BGTN = jnp.where(real_BN[:, None, None], score_BGTN, -1)
  if case.is_causal:
    score_BGTN = jnp.where(block_1N <= own_T1, score_BGTN, -1)
  # rank[n]: how many blocks come before n.
  rank_BGTN = jnp.argsort(jnp.argsort(-score_BGTN, axis=-1), axis=-1)
  chosen_BGTN = (rank_BGTN < case.settings['num_selected']) & (score_BGTN >= 0)
  chosen_BGTT = chosen_BGTN[..., np.arange(T) // width]
  return jnp.repeat(chosen_BGTT, H // groups, axis=1)


def branch(q, k, v, keep_BHTT):
  k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  logits = jnp.einsum('bthk,bshk->bhts', q, k) / q.shape[-1] ** 0.5
  weights = jnp.where(keep_BHTT, jnp.exp(logits), 0.0)
  total = weights.sum(-1, keepdims=True)
  attn = weights / jnp.where(total > 0, total, 1.0)
  return jnp.einsum('bhts,bshv->bthv', attn, v), attn


def definition(case, variables, x_BTD, tokens):
  with jax.numpy_rank_promotion('allow'):
    return _definition(case, variables['params'], x_BTD, tokens)


def _definition(case, params, x_BTD, tokens):
  def project(name):
    return jnp.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])

  q, keep_BT = project('query'), tokens.keep_BT
  keep_BTT = common.seen(case, tokens)
  # A compressed block can be seen once its last token can.
  firsts, size = starts(case)
  ends_M = np.array(firsts) + size - 1
  whole_BM = jnp.stack(
    [keep_BT[:, first : first + size].all(1) for first in firsts], axis=1
  )
  rough_BTM = keep_BTT[:, :, ends_M] & whole_BM[:, None]
  rough, attn = branch(
    q,
    network(params, 'phi_key', project('compress_key'), case),
    network(params, 'phi_value', project('compress_value'), case),
    rough_BTM[:, None],
  )
  chosen_BHTT = selected(case, jax.lax.stop_gradient(attn), keep_BT)
  q = common.turn(case, q, tokens)
  k = common.turn(case, project('key'), tokens)
  fine, _ = branch(q, k, project('value'), keep_BTT[:, None] & chosen_BHTT)
  distance_TT = np.abs(np.arange(T)[:, None] - np.arange(T)[None])
  near_BTT = keep_BTT & (distance_TT < case.settings['window'])[None]
  k = common.turn(case, project('window_key'), tokens)
  near, _ = branch(q, k, project('window_value'), near_BTT[:, None])
  gate = jax.nn.sigmoid(project('gate'))
  o = sum(gate[..., c, None] * x for c, x in enumerate((rough, fine, near)))
  return jnp.einsum('bthv,hvd->btd', o, params['out']['kernel'])
