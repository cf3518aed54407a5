"""Performer, as a matrix of weights from features without any stabiliser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.definitions import common
from tests.attention.sizes import H, K

SMALL = [
  {'num_features': 10, 'chunk': 3, 'seed': 1},
  {'num_features': 3, 'chunk': 3, 'features': 'hyperbolic'},
  {'num_features': 5, 'chunk': 2, 'features': 'relu'},
]


@common.by_heads
def definition(case, params, q, k, v, tokens):
  q, k = (common.turn(case, x, tokens) / K**0.25 for x in (q, k))
  with jax.ensure_compile_time_eval():
    omega_HMK = omega(
      case.settings.get('seed', 0), case.settings['num_features']
    )
  kind = case.settings.get('features')

  def features(x_BTHK):
    scores = jnp.einsum('bthk,hmk->bthm', x_BTHK, omega_HMK)
    if kind == 'relu':
      return jnp.where(scores > 0, scores, 0.0) + 1e-3
    size = jnp.exp(-0.5 * (x_BTHK * x_BTHK).sum(-1, keepdims=True))
    phi = jnp.exp(scores) * size
    if kind == 'hyperbolic':
      phi = jnp.stack([phi, jnp.exp(-scores) * size], -1)
      phi = phi.reshape(*scores.shape[:-1], -1)
    return phi

  weights = jnp.einsum('bthm,bshm->bhts', features(q), features(k))
  weights = jnp.where(common.seen(case, tokens)[:, None], weights, 0.0)
  total = weights.sum(-1, keepdims=True)
  attn = weights / jnp.where(total > 0, total, 1.0)
  return jnp.einsum('bhts,bshv->bthv', attn, v)


@functools.cache
def omega(seed, num_features):
  """Rows that Gram and Schmidt make, in float64."""
  rng = jax.random.fold_in(jax.random.key(seed), 0)
  return np.stack(
    [_omega(jax.random.fold_in(rng, h), num_features) for h in range(H)]
  ).astype('f4')


def _omega(rng, num_features):
  num_blocks = -(-num_features // K)
  gauss = np.asarray(jax.random.normal(rng, (2, num_blocks, K, K)), 'f8')
  rows = []
  for block, other in zip(*gauss, strict=True):
    columns = []
    for column in block.T:
      for before in columns:
        column = column - before * (before @ column)
      columns.append(column / np.sqrt(column @ column))
    norms = np.sqrt((other * other).sum(1))
    rows.extend(np.stack(columns, axis=1) * norms[:, None])
  return np.stack(rows)[:num_features]
