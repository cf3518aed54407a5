"""Movement pruning: weights are kept that training moves away from 0.

Sanh et al. 2020, 2005.07683. Scores S are parameters beside the weights W of a
matrix, W' = W m(S) is what the model works with, and training changes both:

    hard   m = 1 for the share v of the highest scores of the matrix
    soft   m = 1 where sigmoid(S) > tau; lambda mean sigmoid(S) is added to the
           loss, and sets the sparsity
    dL/dS = dL/dW' W,    dL/dW = dL/dW' m

as if m were S. v falls from 1 to the share that is to stay, by
`schedule.cubic`. Pure functions, to be called within a loss; S of {path: array}
is optimised like params, with a learning rate of its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from effformer.compress import patterns, straight, tensors
from effformer.compress.prune import masks
from effformer.errors import ConfigError
from effformer.shapes import Array, ArrayLike

Scores = dict[str, Array]


def initial(params: Any, paths: Iterable[str]) -> Scores:
  """Scores of 0 of some parameters.

  Raises:
    ConfigError: there is no such parameter.
  """
  flat = tensors.flatten(params)
  paths = tuple(paths)
  for path in paths:
    if path not in flat:
      raise ConfigError(f'no parameter {path} that scores could be of.')
  return {path: jnp.zeros(flat[path].shape) for path in paths}


def hard_masks(scores: Mapping[str, Array], keep: ArrayLike) -> masks.Masks:
  """The share `keep`, v, of each matrix; it may be traced."""

  def one(x):
    count = jnp.round(jnp.asarray(keep) * x.size)
    return patterns.highest(x.ravel(), count).reshape(x.shape)

  return {path: one(x) for path, x in scores.items()}


def soft_masks(
  scores: Mapping[str, Array], threshold: ArrayLike
) -> masks.Masks:
  """Where sigmoid(S) is more than `threshold`, tau."""
  return {path: jax.nn.sigmoid(x) > threshold for path, x in scores.items()}


def hard(params: Any, scores: Mapping[str, Array], keep: ArrayLike) -> Any:
  """The parameters with W' for the W that there are scores of.

  Args:
    params: of the model.
    scores: S.
    keep: v, share of each matrix that stays.
  """
  return _masked(params, scores, hard_masks(scores, keep))


def soft(params: Any, scores: Mapping[str, Array], threshold: ArrayLike) -> Any:
  """As `hard`, with the masks of a threshold tau."""
  return _masked(params, scores, soft_masks(scores, threshold))


def penalty(scores: Mapping[str, Array]) -> Array:
  """Mean of sigmoid(S) over all weights; times lambda, a term of the loss."""
  total = sum(jax.nn.sigmoid(x).sum() for x in scores.values())
  return total / sum(x.size for x in scores.values())


def _masked(params, scores, keep):
  flat = dict(tensors.flatten(params))
  for path, x in scores.items():
    mask = keep[path].astype(flat[path].dtype)
    flat[path] = flat[path] * straight.through(x, mask, True)
  return flax.traverse_util.unflatten_dict(flat, sep='/')
