"""Nystromformer, row by row, with only the landmarks that have tokens."""

import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common

SMALL = [
  {'rank': 3, 'conv_width': 3, 'iterations': 4},
  {'rank': 5, 'conv_width': 0, 'iterations': 2},
  {'rank': 9, 'conv_width': 9, 'iterations': 3},
]


@common.by_heads
def definition(case, params, q, k, v, tokens):
  keep_BT = np.asarray(tokens.segment_BT) > 0
  rows = []
  for b, keep_T in enumerate(keep_BT):
    heads = []
    for h in range(q.shape[2]):
      taps = params['conv'][h] if 'conv' in params else None
      heads.append(
        _head(case.settings, q[b, :, h], k[b, :, h], v[b, :, h], keep_T, taps)
      )
    rows.append(jnp.stack(heads, axis=1))
  return jnp.stack(rows)


def _head(settings, q, k, v, keep_T, taps):
  real = np.flatnonzero(keep_T)
  group = np.arange(len(real)) * settings['rank'] // len(real)

  def means(x):
    return jnp.stack([x[real[group == m]].mean(0) for m in np.unique(group)])

  def weights(q, k):
    scores = jnp.exp(q @ k.T / q.shape[-1] ** 0.5)
    return scores / scores.sum(-1, keepdims=True)

  q_means, k_means = means(q), means(k)
  a = weights(q_means, k_means)
  eye = jnp.eye(len(a))
  z = a.T / jnp.abs(a).sum(0).max() / jnp.abs(a).sum(1).max()
  for _ in range(settings['iterations']):
    az = a @ z
    z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
  o = weights(q, k_means) @ z @ weights(q_means, k[real]) @ v[real]
  if taps is None:
    return o
  v = v * keep_T[:, None]
  half = len(taps) // 2
  for w, tap in enumerate(taps):
    moved = [
      v[t + w - half] if 0 <= t + w - half < len(v) else jnp.zeros(v.shape[1])
      for t in range(len(v))
    ]
    o += tap * jnp.stack(moved)
  return o
