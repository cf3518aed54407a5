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

  Rows of weight 0 fill up the last batch and count nothing. A row weighs as
  many tokens as its `tokens` says, where it does.
  """

  def eval_step(params, batch):
    values = dict(measure(params, batch))
    row_B = weight_B = batch['weight_B']
    tokens_B = values.pop('tokens', None)
    if tokens_B is not None:
      weight_B = row_B * tokens_B
    sums = {
      name: jnp.sum(jnp.where(weight_B > 0, value_B * weight_B, 0.0))
      for name, value_B in values.items()
    }
    sums['count'] = jnp.sum(row_B)
    if tokens_B is not None:
      sums['tokens'] = jnp.sum(weight_B)
    return sums

  return eval_step


def evaluate(
  eval_step: Callable[[Any, Any], dict],
  params: Any,
  batches: Iterable[Any],
  after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float | int]:
  """Weighted means of all values, and `count`, the number of examples.

  With `tokens`, their number, where the means are over tokens.

  `after_batch` is called after each batch and may raise, to stop.
  """
  totals: dict[str, float] = {}
  for batch in batches:
    # float64 on the host: sums of many batches lose nothing more.
    for name, value in jax.device_get(eval_step(params, batch)).items():
      totals[name] = totals.get(name, 0.0) + float(np.float64(value))
    after_batch()
  counts = {
    name: round(totals.pop(name))
    for name in ('tokens', 'count')
    if name in totals
  } or {'count': 0}
  weight = next(iter(counts.values()))
  means = {name: total / max(weight, 1) for name, total in totals.items()}
  return {**means, **counts}
