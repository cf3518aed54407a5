"""BigBird: a mask of pairs from sets of blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common

SMALL = [
  {'block': 1, 'num_random': 1},
  {'block': 2, 'num_random': 2, 'seed': 3},
]


@functools.cache
def random_numbers(seed, head, block, count):
  with jax.ensure_compile_time_eval():
    key = jax.random.fold_in(jax.random.key(seed), head)
    bits = jax.random.bits(jax.random.fold_in(key, block), (count,), 'uint32')
    return [int(number) for number in bits]


def sees(seed, head, block, last, count):
  """The set of blocks that a block sees."""
  if block in (0, last):
    return set(range(last + 1))
  sure = {0, last, block - 1, block, block + 1}
  rest = sorted(set(range(last + 1)) - sure)
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
  segment_BT = np.asarray(tokens.segment_BT)
  length, num_heads = segment_BT.shape[1], q.shape[2]
  count = min(count, -(-length // size))
  keep_BHTT = np.zeros((len(segment_BT), num_heads, length, length), bool)
  for b, segment_T in enumerate(segment_BT):
    last = np.flatnonzero(segment_T).max(initial=0) // size
    for h in range(num_heads):
      for i in np.flatnonzero(segment_T):
        seen = sees(seed, h, i // size, last, count)
        for j in np.flatnonzero(segment_T):
          keep_BHTT[b, h, i, j] = j // size in seen
  logits = common.scaled_logits(case, params, q, k, tokens)
  weights = jnp.where(keep_BHTT, jnp.exp(logits), 0.0)
  total = weights.sum(-1, keepdims=True)
  attn = weights / jnp.where(total > 0, total, 1.0)
  return jnp.einsum('bhts,bshv->bthv', attn, v)
