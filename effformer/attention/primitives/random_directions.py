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
  """Omega [H, M, K], float32; number: 0, 1, ... for other rows of a seed."""
  rng = jax.random.fold_in(jax.random.key(seed), number)
  num_blocks = -(-num_features // width)

  def of_head(head):
    # One for the directions and one, independent of it, for the norms.
    shape = 2, num_blocks, width, width
    return jax.random.normal(jax.random.fold_in(rng, head), shape)

  gauss_HNKK, other_HNKK = jax.vmap(of_head, out_axes=1)(jnp.arange(num_heads))
  q_LKK = _orthogonal(gauss_HNKK.reshape(-1, width, width))
  norm_HNK1 = jnp.linalg.norm(other_HNKK, axis=-1, keepdims=True)
  rows_HNKK = q_LKK.reshape(gauss_HNKK.shape) * norm_HNK1
  return rows_HNKK.reshape(num_heads, -1, width)[:, :num_features]


def _orthogonal(x_LKK: Array) -> Array:
  """Q of each X = Q R with a positive diagonal of R."""

  def factor(x_KK):
    q_KK, r_KK = jnp.linalg.qr(x_KK)
    return q_KK * jnp.sign(jnp.diagonal(r_KK))[None, :]

  # A batch of LAPACK calls holds the threads of the CPU's pool that it waits
  # for; two at once, of two layers, wait for ever (jaxlib 0.10, two cores).
  return jax.lax.platform_dependent(
    x_LKK,
    cpu=functools.partial(jax.lax.map, factor),
    default=jax.vmap(factor),
  )
