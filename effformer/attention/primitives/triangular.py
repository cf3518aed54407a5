"""Unit lower triangular systems, by products of blocks.

    (I + A) X = B,  A strictly lower triangular

The inverse is made by doubling: from the inverses of two neighbouring blocks of
the diagonal, P and Q, and what stands beside them, R,

    [[P, 0], [R, Q]]^-1 = [[P^-1, 0], [-Q^-1 R P^-1, Q^-1]],

log2 C rounds of products. Errors grow with the entries of the inverse, as by
substitution, and not with the powers of A, as in I - A + A^2 - ..., which reach
10^18 for 64 equal tokens, whose inverse has entries of 0 and 1.

Accelerators like products better than substitution row by row, and on CPUs two
batches of triangular solves at a time may wait for each other for ever: each
holds a thread of the pool that it waits for (jaxlib 0.10, two cores).

Time C^2 (C + V), memory C^2.
"""

import jax
import jax.numpy as jnp

from effformer.shapes import Array


@jax.custom_jvp
def solve(a_CC: Array, b_CV: Array) -> Array:
  """X of (I + A) X = B; what is not below the diagonal of A is not read."""
  return inverse(a_CC) @ b_CV


@solve.defjvp
def _solve_jvp(primals, tangents):
  a_CC, b_CV = primals
  da_CC, db_CV = tangents
  inverse_CC = inverse(a_CC)
  x_CV = inverse_CC @ b_CV
  # (I + A) dX = dB - dA X.
  return x_CV, inverse_CC @ (db_CV - jnp.tril(da_CC, -1) @ x_CV)


def inverse(a_CC: Array) -> Array:
  """(I + A)^-1; what is not below the diagonal of A is not read."""
  length = a_CC.shape[0]
  levels = (length - 1).bit_length()
  rest = (1 << levels) - length
  a_CC = jnp.pad(a_CC, ((0, rest), (0, rest)))
  inverse_NSS = jnp.ones((1 << levels, 1, 1), a_CC.dtype)
  for level in range(levels):
    size = 1 << level
    pairs_NSS = inverse_NSS.reshape(-1, 2, size, size)
    number = jnp.arange(pairs_NSS.shape[0])
    blocks_MSMS = a_CC.reshape(-1, size, 2 * len(number), size)
    beside_NSS = blocks_MSMS[2 * number + 1, :, 2 * number, :]
    first_NSS, second_NSS = pairs_NSS[:, 0], pairs_NSS[:, 1]
    below_NSS = -(second_NSS @ beside_NSS @ first_NSS)
    upper_NSC = jnp.pad(first_NSS, ((0, 0), (0, 0), (0, size)))
    lower_NSC = jnp.concatenate([below_NSS, second_NSS], axis=-1)
    inverse_NSS = jnp.concatenate([upper_NSC, lower_NSC], axis=-2)
  return inverse_NSS[0, :length, :length]
