"""BigBird: a mask of pairs from sets of blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common

SMALL = [
  {'block': 1, 'num_random': 1},
  {'block': 2, 'num_random': 2, 'seed': 3},
  {'block': 1, 'num_random': 1, 'global_tokens': 2},
]


@functools.cache
def random_numbers(seed, head, block, count):
  with jax.ensure_compile_time_eval():
    key = jax.random.fold_in(jax.random.key(seed), head)
    bits = jax.random.bits(jax.random.fold_in(key, block), (count,), 'uint32')
    return [int(number) for number in bits]


def sees(seed, head, block, last, count, ends):
  """The set of blocks that a block sees; `ends` are global."""
  everything = set(range(last + 1))
  if block in ends:
    return everything
  sure = everything & {block - 1, block, block + 1, *ends}
  rest = sorted(everything - sure)
  numbers = random_numbers(seed, head, block, count)
  drawn = set()
  # Floyd's way of drawing without repetition.
  for number, most in zip(
    numbers, range(len(rest) - count, len(rest)), strict=True
  ):
    if most >= 0:
      new = number % (most + 1)
      drawn.add(most if new in drawn else new)
  return sure | {rest[rank] for rank in drawn}


@common.by_heads
def definition(case, params, q, k, v, tokens):
  size, count = case.settings['block'], case.settings['num_random']
  seed = case.settings.get('seed', 0)
  num_global = case.settings.get('global_tokens', 0)
  segment_BT = np.asarray(tokens.segment_BT)
  length, num_heads = segment_BT.shape[1], q.shape[2]
  count = min(count, -(-(length - num_global) // size))
  keep_BHTT = np.zeros((len(segment_BT), num_heads, length, length), bool)
  for b, segment_T in enumerate(segment_BT):
    last = (np.flatnonzero(segment_T).max(initial=0) - num_global) // size
    ends = () if num_global else (0, last)
    for h in range(num_heads):
      for i in np.flatnonzero(segment_T):
        own, is_global = (i - num_global) // size, i < num_global
        seen = () if is_global else sees(seed, h, own, last, count, ends)
        for j in np.flatnonzero(segment_T):
          is_seen = (j - num_global) // size in seen
          keep_BHTT[b, h, i, j] = is_global or j < num_global or is_seen
  logits = common.scaled_logits(case, params, q, k, tokens)
  weights = jnp.where(keep_BHTT, jnp.exp(logits), 0.0)
  total = weights.sum(-1, keepdims=True)
  attn = weights / jnp.where(total > 0, total, 1.0)
  return jnp.einsum('bhts,bshv->bthv', attn, v)
