"""Reformer by counting: how often each pair shares a window."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common
from tests.attention.sizes import H, K, T

# Chunks that straddle the border of two hashes, chunks of whole hashes (for 7
# and for 4 tokens), and buckets that are pairs of two hashes.
SMALL = [
  {'block': 3, 'num_hashes': 2, 'num_buckets': 4},
  {'block': 2, 'num_hashes': 3, 'num_buckets': 4, 'count_once': True},
  {'block': 3, 'num_hashes': 2, 'num_buckets': 2, 'same_bucket': True,
   'count_once': True, 'scaled': True},
  {'block': 4, 'num_hashes': 1, 'num_buckets': 132, 'seed': 3},
]  # fmt: skip


def buckets(settings, q_BTHK):
  """h(i) of each hash, [R, B, H, T]."""
  num_buckets, num_hashes = settings['num_buckets'], settings['num_hashes']
  sizes = {132: (6, 22)}.get(num_buckets, (num_buckets,))
  shape = (H, num_hashes, K, sum(sizes) // 2)
  seed = jax.random.key(settings.get('seed', 0))
  directions_HRKM = jax.random.normal(seed, shape)
  score = jnp.einsum('bthk,hrkm->rbhtm', q_BTHK, directions_HRKM)
  first, second = score[..., : sizes[0] // 2], score[..., sizes[0] // 2 :]

  def largest(score):
    return jnp.where(
      score.max(-1) > -score.min(-1),
      score.argmax(-1),
      score.argmin(-1) + score.shape[-1],
    )

  if len(sizes) == 1:
    return largest(first)
  return largest(first) + sizes[0] * largest(second)


def counts(settings, bucket_RT, keep_T):
  """How many pairs of copies of i and j share a window, [T, T]."""
  num_hashes, block = settings['num_hashes'], settings['block']
  hash_S = jnp.repeat(jnp.arange(num_hashes), T)
  token_S = jnp.tile(jnp.arange(T), num_hashes)
  bucket_S = hash_S * 1000 + bucket_RT.reshape(-1)
  keep_S = keep_T[token_S]

  def pairs(compare, x_S, y_S):
    return compare(x_S[:, None], y_S[None])

  is_same_SS = pairs(jnp.equal, bucket_S, bucket_S)
  is_before_SS = pairs(jnp.less, bucket_S, bucket_S)
  is_before_SS |= is_same_SS & pairs(jnp.less, token_S, token_S)
  rank_S = (is_before_SS & keep_S[:, None]).sum(0)
  chunk_S = rank_S // block
  last = (num_hashes * keep_T.sum() - 1) // block
  before_S = jnp.where(chunk_S > 0, chunk_S - 1, last)
  shares_SS = pairs(jnp.equal, chunk_S, chunk_S)
  shares_SS |= pairs(jnp.equal, before_S, chunk_S)
  shares_SS &= pairs(jnp.logical_and, keep_S, keep_S)
  if settings.get('same_bucket'):
    shares_SS &= is_same_SS
  shape = (num_hashes, T, num_hashes, T)
  return shares_SS.reshape(shape).sum((0, 2))


def definition(case, variables, x_BTD, tokens):
  params = variables['params']
  shared = {'query': params['query_key'], 'key': params['query_key']}
  return weigh(case, {'params': {**params, **shared}}, x_BTD, tokens)


@common.by_heads
def weigh(case, params, q, k, v, tokens):
  settings = case.settings
  keep_BT = tokens.keep_BT
  bucket_RBHT = buckets(settings, q)
  over_heads = jax.vmap(
    lambda *arrays: counts(settings, *arrays), in_axes=(1, None)
  )
  count_BHTT = jax.vmap(over_heads, in_axes=(1, 0))(bucket_RBHT, keep_BT)
  if settings.get('count_once'):
    count_BHTT = jnp.minimum(count_BHTT, 1)
  count_BHTT = count_BHTT * common.seen(case, tokens)[:, None]
  k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
  k *= 1 if settings.get('scaled') else K**0.5
  logits = common.scaled_logits(case, params, q, k, tokens)
  others_BHTT = jnp.exp(logits) * count_BHTT * (1 - np.eye(T))[None, None]
  others_BHTT = jnp.where(count_BHTT > 0, others_BHTT, 0.0)
  total_BHT1 = others_BHTT.sum(-1, keepdims=True)
  alone_BHTT = np.eye(T)[None, None] * keep_BT[:, None, :, None]
  attn = jnp.where(
    total_BHT1 > 0,
    others_BHTT / jnp.where(total_BHT1 > 0, total_BHT1, 1.0),
    alone_BHTT,
  )
  return jnp.einsum('bhts,bshv->bthv', attn, v)
