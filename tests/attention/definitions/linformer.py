"""Linformer, written out."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common
from tests.attention.sizes import LONGER, H, T

LEARNED = {'rank': 5, 'max_length': LONGER}
# 9 tokens in 4 mixtures: 3 taps.
CONV = {'rank': 4, 'max_length': LONGER, 'mixing': 'conv'}
SMALL = [
  LEARNED,
  {**LEARNED, 'sharing': 'none'},
  {**LEARNED, 'sharing': 'headwise'},
  {'rank': 3, 'mixing': 'pool'},
  CONV,
  {**CONV, 'sharing': 'none'},
  {**CONV, 'sharing': 'headwise'},
  {'rank': 5, 'mixing': 'dynamic'},
]


def definition(case, variables, x_BTD, tokens):
  """All mixtures as matrices [B, H, M, T], for each channel [..., K]."""

  @common.by_heads
  def attend(case, params, q, k, v, tokens):
    keep_BT11 = tokens.keep_BT[:, :, None, None]
    kind = case.settings.get('mixing', 'learned')
    e, f, seen_BM = MATRICES[kind](case.settings, params, x_BTD, tokens)
    k, v = (
      jnp.einsum('bhmsk,bshk->bhmk', matrix, keep_BT11 * x)
      for matrix, x in ((e, k), (f, v))
    )
    logits = jnp.einsum('bthk,bhmk->bhtm', q, k) / q.shape[-1] ** 0.5
    logits = jnp.where(seen_BM[:, None, None], logits, -jnp.inf)
    attn = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum('bhtm,bhmv->bthv', attn, v) * keep_BT11

  return attend(case, variables, x_BTD, tokens)


def _shared(params):
  pair = params['mix_keys'], params.get('mix_values', params['mix_keys'])
  return [jnp.broadcast_to(x, (H, *x.shape[-2:])) for x in pair]


def _learned(settings, params, x_BTD, tokens):
  e, f = (x[None, :, :, :T, None] for x in _shared(params))
  return e, f, np.ones((len(x_BTD), settings['rank']), bool)


def _pool(settings, params, x_BTD, tokens):
  rank = settings['rank']
  matrix = np.zeros((len(x_BTD), 1, rank, T, 1), 'f4')
  for b, segment_T in enumerate(np.asarray(tokens.segment_BT)):
    real = np.flatnonzero(segment_T)
    group = np.arange(len(real)) * rank // len(real)
    for m in range(rank):
      matrix[b, 0, m, real[group == m]] = 1 / max((group == m).sum(), 1)
  return matrix, matrix, matrix.any((1, 3, 4))


def _conv(settings, params, x_BTD, tokens):
  taps = params['mix_keys'].shape[-2]
  assert taps == 3

  def matrix(filter_HWK):
    rows = [
      [
        filter_HWK[:, t - m * taps] * (0 <= t - m * taps < taps)
        for t in range(T)
      ]
      for m in range(3)
    ]
    return jnp.array(rows).transpose(2, 0, 1, 3)[None]

  keep_BT = np.asarray(tokens.segment_BT) > 0
  seen_BM = [keep_BT[:, m * taps : (m + 1) * taps].any(-1) for m in range(3)]
  return *map(matrix, _shared(params)), np.stack(seen_BM, axis=1)


def _dynamic(settings, params, x_BTD, tokens):
  logits = jnp.einsum('btd,dhm->bhmt', x_BTD, params['shares']['kernel'])
  share = jnp.exp(logits) * tokens.keep_BT[:, None, None]
  share = (share / share.sum(-1, keepdims=True))[..., None]
  return share, share, np.ones((len(x_BTD), settings['rank']), bool)


MATRICES = {
  'learned': _learned, 'pool': _pool, 'conv': _conv, 'dynamic': _dynamic,
}  # fmt: skip
