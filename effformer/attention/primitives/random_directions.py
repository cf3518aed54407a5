"""Random directions: Omega in R^{M x K} with rows from N(0, I), for each head.

Rows are orthogonal in blocks of K: Q of a QR decomposition whose R has a
positive diagonal (with the signs that LAPACK leaves, rows are not uniform on
the sphere), times norms that are drawn independently from chi(K) (Choromanski
et al. 2021, 2009.14794).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from effformer.shapes import Array, ArrayLike


@functools.cache
def first(seed, num_heads, num_features, width):
  """Draw 0, a constant of the program: neither compiled nor run again."""
  with jax.ensure_compile_time_eval():
    return np.asarray(draw(seed, 0, num_heads, num_features, width))


def draw(
  seed: int, number: ArrayLike, num_heads: int, num_features: int, width: int
) -> Array:
  """Omega [H, M, K], float32."""
  rng = jax.random.fold_in(jax.random.key(seed), number)

  def of_head(head):
    return directions(jax.random.fold_in(rng, head), num_features, width)

  return jax.vmap(of_head)(jnp.arange(num_heads))


def directions(rng: Array, num_features: int, width: int) -> Array:
  """Omega [M, K]: each row N(0, I), rows of a block of K orthogonal."""
  num_blocks = -(-num_features // width)
  # One for the directions and one, independent of it, for the norms.
  gauss_NKK, other_NKK = jax.random.normal(rng, (2, num_blocks, width, width))
  q_NKK, r_NKK = jnp.linalg.qr(gauss_NKK)
  sign_NK = jnp.sign(jnp.diagonal(r_NKK, axis1=-2, axis2=-1))
  norm_NK1 = jnp.linalg.norm(other_NKK, axis=-1, keepdims=True)
  rows_NKK = q_NKK * sign_NK[:, None, :] * norm_NK1
  return rows_NKK.reshape(-1, width)[:num_features]
