"""How good a compressed model is beside its parent, and how sure that is."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from effformer.compress import agreement
from effformer.tasks import binary

# Texts whose nearest neighbours are looked for: all pairs of them are compared.
MOST_TEXTS = 2000


def beside(
  before: np.ndarray, after: np.ndarray, label_N: np.ndarray
) -> dict[str, Any]:
  """The score of a model, its change, and its agreement with the parent.

  Args:
    before, after: probabilities [N, C] of parent and child, or unit vectors of
      both texts of each example [N, 2, D].
    label_N: classes, or scores of the pairs.

  Returns:
    name: 'accuracy', or 'spearman', the rank correlation of cosines and scores.
    score, low, high: of the child, with a 95 % interval over examples.
    change, change_low, change_high: to the parent, over the same examples.
    others: see `agreement.classes` and `agreement.vectors`; of two classes
      matthews and f1 as well.
  """
  if before.ndim == 3:
    return _of_vectors(before, after, label_N)
  found = agreement.classes(before, after, label_N)
  right = [_right(x_NC, label_N) for x_NC in (before, after)]
  if after.shape[1] == 2:
    shares = binary.shares(jnp.asarray(after), jnp.asarray(label_N))
    means = {name: float(np.mean(x)) for name, x in shares.items()}
    found |= binary.summarise(means)
  return {'name': 'accuracy', **_changed(np.mean, *right), **found}


def _right(probability_NC, label_N):
  return (probability_NC.argmax(axis=1) == label_N).astype(float)


def _of_vectors(before_N2D, after_N2D, label_N):
  cosine = [(x[:, 0] * x[:, 1]).sum(axis=-1) for x in (before_N2D, after_N2D)]
  texts = [
    x.reshape(-1, x.shape[-1])[:MOST_TEXTS] for x in (before_N2D, after_N2D)
  ]
  return {
    'name': 'spearman',
    **_changed(agreement.spearman, *cosine, label_N),
    **agreement.vectors(*texts),
  }


def _changed(
  statistic: Callable[..., float],
  before_N: np.ndarray,
  after_N: np.ndarray,
  *others_N: np.ndarray,
) -> dict[str, float]:
  """A statistic of the child, its change, and intervals of both."""

  def change(own_N, other_N, *rest):
    return float(statistic(other_N, *rest) - statistic(own_N, *rest))

  low, high = agreement.interval(statistic, after_N, *others_N)
  change_low, change_high = agreement.interval(
    change, before_N, after_N, *others_N
  )
  return {
    'score': float(statistic(after_N, *others_N)),
    'low': low,
    'high': high,
    'change': change(before_N, after_N, *others_N),
    'change_low': change_low,
    'change_high': change_high,
  }
