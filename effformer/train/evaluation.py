"""Exact means over a split, whatever the batch size and the devices."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# (params, batch) -> per-example values [B], 'loss' and 'accuracy' among them.
Measure = Callable[[Any, Any], dict[str, jax.Array]]


def make_eval_step(measure: Measure) -> Callable[[Any, Any], dict]:
  """A function (params, batch) -> weighted sums over the batch, to be jitted.

  Rows of weight 0 fill up the last batch and count nothing.
  """

  def eval_step(params, batch):
    values = measure(params, batch)
    weight_B = batch['weight_B']
    sums = {
      name: jnp.sum(jnp.where(weight_B > 0, value_B * weight_B, 0.0))
      for name, value_B in values.items()
    }
    return {**sums, 'count': jnp.sum(weight_B)}

  return eval_step


def evaluate(
  eval_step: Callable[[Any, Any], dict],
  params: Any,
  batches: Iterable[Any],
  after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float | int]:
  """Weighted means of all values, and `count`, the number of examples.

  `after_batch` is called after each batch and may raise, to stop.
  """
  totals: dict[str, float] = {}
  for batch in batches:
    # float64 on the host: sums of many batches lose nothing more.
    for name, value in jax.device_get(eval_step(params, batch)).items():
      totals[name] = totals.get(name, 0.0) + float(np.float64(value))
    after_batch()
  count = round(totals.pop('count', 0))
  means = {name: total / max(count, 1) for name, total in totals.items()}
  return {**means, 'count': count}
