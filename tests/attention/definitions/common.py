"""What dense definitions share. They know nothing of the code under test."""

import jax.numpy as jnp
import numpy as np

from tests.attention.sizes import K


def by_heads(weigh):
  """A definition on heads -> one on the whole mixer.

  `weigh(case, params, q, k, v, tokens)` gives o [B, T, H, V] from arrays
  [B, T, H, K].
  """

  def definition(case, variables, x_BTD, tokens):
    params = variables['params']
    q, k, v = (
      jnp.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
      for name in ('query', 'key', 'value')
    )
    o = weigh(case, params, q, k, v, tokens)
    return jnp.einsum('bthv,hvd->btd', o, params['out']['kernel'])

  return definition


def seen(case, tokens):
  """bool [B, T, T]: the admissible pairs of a call."""
  segment_BT = tokens.segment_BT
  length = segment_BT.shape[1]
  keep_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
  keep_BTT &= (segment_BT > 0)[:, None, :]
  if case.is_causal:
    keep_BTT &= jnp.tri(length, dtype=bool)[None]
  return keep_BTT


def softmax_weights(logits_BHTT, keep_BTT):
  weights = jnp.where(keep_BTT[:, None], jnp.exp(logits_BHTT), 0.0)
  total = weights.sum(-1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1.0)


def turn(case, x_BTHK, tokens):
  """Rotary positions as a product with complex numbers of size one."""
  if not case.settings.get('rotary'):
    return x_BTHK
  first, second = jnp.split(x_BTHK, 2, axis=-1)
  rate_K = 10_000.0 ** (-np.arange(K // 2) * 2.0 / K)
  angle = tokens.position_BT[:, :, None, None] * rate_K[None, None, None]
  turned = (first + 1j * second) * jnp.exp(1j * angle)
  return jnp.concatenate([turned.real, turned.imag], axis=-1)


def bias(case, params, num_heads, tokens):
  """The relative bias of the logits, [B, H, T, T], pair by pair."""
  kind = case.settings.get('relative_bias', 'none')
  length = tokens.position_BT.shape[1]
  if kind == 'none':
    return 0.0
  ahead_BTT = tokens.position_BT[:, None, :] - tokens.position_BT[:, :, None]
  if kind == 'alibi':
    slopes = {3: [2**-4, 2**-8, 2**-2]}[num_heads]
    slopes = np.array(slopes, 'f4')[None, :, None, None]
    return -slopes * jnp.abs(ahead_BTT)[:, None].astype('f4')
  # Below 8 tokens a bucket is a distance.
  assert length <= 8
  if case.is_causal:
    bucket_BTT = jnp.maximum(-ahead_BTT, 0)
  else:
    bucket_BTT = jnp.abs(ahead_BTT) + 16 * (ahead_BTT > 0)
  return params['relative_bias'][:, bucket_BTT].transpose(1, 0, 2, 3)


def scaled_logits(case, params, q, k, tokens):
  """<q, k> / sqrt(K) with rotary positions and biases, [B, H, T, T]."""
  q, k = turn(case, q, tokens), turn(case, k, tokens)
  logits = jnp.einsum('bthk,bshk->bhts', q, k) / q.shape[-1] ** 0.5
  return logits + bias(case, params, q.shape[2], tokens)
