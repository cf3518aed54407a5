"""Sparse Sinkhorn attention with sums and products of probabilities."""

import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common
from tests.attention.sizes import LONGER, K

FIXED = {'gumbel': False, 'max_length': LONGER}
SMALL = [
  {'block': 2, **FIXED},
  {'block': 3, 'iterations': 1, 'temperature': 0.2, **FIXED},
]


def divide(x, total):
  return jnp.where(total > 0, x / jnp.where(total > 0, total, 1.0), 0.0)


def sort_matrix(case, params, k, keep):
  """S [B, H, N, N] from keys [B, N, C, H, K] and what is real [B, N, C]."""
  settings, num_blocks = case.settings, keep.shape[1]
  keys = k * keep[..., None, None]
  earlier = np.tri(num_blocks, k=-1)
  real = keep.any(2)
  allowed = real[:, None, :, None] & real[:, None, None]
  if case.is_causal:
    total = jnp.einsum('nm,bmchk->bnhk', earlier, keys)
    count = jnp.einsum('nm,bmc->bn', earlier, keep)
    allowed = allowed & (earlier > 0)[None, None]
  else:
    total, count = keys.sum(2), keep.sum(2)
  mean = total / jnp.maximum(count, 1)[:, :, None, None]
  logits = jnp.einsum('bnhk,hkm->bhnm', mean, params['sort'][..., :num_blocks])
  s = jnp.exp(logits / settings.get('temperature', 0.75)) * allowed
  for _ in range(settings.get('iterations', 8)):
    columns = jnp.cumsum(s, 2) if case.is_causal else s.sum(2, keepdims=True)
    s = divide(s, columns)
    s = divide(s, s.sum(3, keepdims=True))
  return s


def weigh(case, params, q, k, v, tokens):
  settings, length = case.settings, q.shape[1]
  block = settings['block']
  num_blocks = -(-length // block)

  def cut(x):
    rest = num_blocks * block - length
    x = jnp.pad(x, ((0, 0), (0, rest)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(x.shape[0], num_blocks, block, *x.shape[2:])

  keep = cut(tokens.keep_BT)
  s = sort_matrix(case, params, cut(k), keep)
  # Slot c of sorted block n: what it weighs, and the mean of what is in it.
  mass = jnp.einsum('bhnm,bmc->bnch', s, keep)
  k_slot, v_slot = (
    divide(
      jnp.einsum('bhnm,bmc,bmchk->bnchk', s, keep, cut(x)), mass[..., None]
    )
    for x in (k, v)
  )
  see = tokens.keep_BT[:, None, :, None]
  number_T = np.arange(length) // block
  if settings.get('sortcut'):
    first = settings['sortcut']
    k_slot, v_slot, mass = (
      x[:, :first].reshape(x.shape[0], -1, *x.shape[3:])
      for x in (k_slot, v_slot, mass)
    )
    of_slots = jnp.einsum('bthk,bshk->bhts', q, k_slot)
    mass = mass.transpose(0, 2, 1)[:, :, None]
  else:
    k_slot, v_here, mass = (x[:, number_T] for x in (k_slot, v_slot, mass))
    of_slots = jnp.einsum('bthk,btchk->bhtc', q, k_slot)
    mass = mass.transpose(0, 3, 1, 2)
  slots = jnp.exp(of_slots / K**0.5) * mass * see
  if settings.get('sortcut'):
    attn = divide(slots, slots.sum(-1, keepdims=True))
    return jnp.einsum('bhts,bshv->bthv', attn, v_slot)
  is_near_TT = number_T[:, None] == number_T[None]
  near = common.seen(case, tokens) & is_near_TT[None]
  logits = common.scaled_logits(case, params, q, k, tokens)
  own = jnp.exp(logits) * near[:, None] * see
  total = [x.sum(-1, keepdims=True) for x in (slots, own)]
  if settings.get('combine', 'concat') == 'concat':
    total = [sum(total)] * 2
  sorted_part = jnp.einsum('bhtc,btchv->bthv', divide(slots, total[0]), v_here)
  own_part = jnp.einsum('bhts,bshv->bthv', divide(own, total[1]), v)
  return sorted_part + own_part


definition = common.by_heads(weigh)
