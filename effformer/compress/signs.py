"""Gradients of one bit: signs, and what they leave out.

signSGD (Bernstein et al. 2018, 1802.04434) is `optax.scale_by_sign`: a step
knows of each gradient its sign. It may stand still far from the minimum; with
what was left out added to the next gradient, it does not (Karimireddy et al.
2019, 1901.09847).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from effformer.shapes import Array


class ErrorFeedbackState(NamedTuple):
  """What the updates have left out so far.

  Attributes:
    error: float32, in the shape of the parameters.
  """

  error: optax.Updates


def scale_by_sign_with_error_feedback(
  block_size: int = 0,
) -> optax.GradientTransformation:
  """Signs with one size a tensor or block, and the memory of their errors.

  With gradient g and error e, which starts at 0 (Algorithm 1 of the paper):

      p = g + e,    u = mean|p| sign(p),    e <- p - u

  So the sum of the updates and the last error are the sum of the gradients. The
  learning rate comes after this. Where it is constant, that is the algorithm of
  the paper; where not, an error counts with the rate of the step that makes up
  for it.

  Args:
    block_size: elements that share a mean, in C order; 0 for those of a tensor.
      The last block of a tensor may be shorter.

  Raises:
    ValueError: a negative size.
  """
  if block_size < 0:
    raise ValueError(f'block_size has to be 0 or more, got {block_size}')

  def init(params):
    return ErrorFeedbackState(
      jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    )

  def update(updates, state, params=None):
    del params
    wanted = jax.tree.map(
      lambda g, e: g.astype(jnp.float32) + e, updates, state.error
    )
    # Rounded to the type of the gradient, so that errors have this error too.
    given = jax.tree.map(
      lambda g, p: _signs(p, block_size).astype(g.dtype), updates, wanted
    )
    error = jax.tree.map(lambda p, u: p - u.astype(jnp.float32), wanted, given)
    return given, ErrorFeedbackState(error)

  return optax.GradientTransformation(init, update)


def _signs(x: Array, block_size: int) -> Array:
  """mean|x| sign(x), the mean of each block."""
  size = block_size or max(x.size, 1)
  rest = -x.size % size
  flat_BS = jnp.pad(x.ravel(), (0, rest)).reshape(-1, size)
  number_B = jnp.full(len(flat_BS), size).at[-1:].add(-rest)
  mean_B = jnp.sum(jnp.abs(flat_BS), axis=1) / number_B
  signed_BS = mean_B[:, None] * jnp.sign(flat_BS)
  return signed_BS.ravel()[: x.size].reshape(x.shape)
