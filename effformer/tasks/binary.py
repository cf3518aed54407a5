"""Measures of two classes that are no means over examples.

Of class 1 let p be the share of examples that are guessed to be of it, a the
share that are, and h the share that are both. Then

    Matthews correlation = (h - p a) / sqrt(p (1 - p) a (1 - a)),  0 where that
      is 0 / 0 (Matthews 1975); that of CoLA
    F1 = 2 h / (p + a), 0 likewise; that of MRPC
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from effformer.tasks.task import Task

# Means that `summarise` turns into measures.
_GUESSED, _ACTUAL, _BOTH = '_guessed', '_actual', '_both'


def with_measures(task: Task) -> Task:
  """A classification of two classes, with `matthews` and `f1`."""

  def measure(params, batch):
    probability_BC = task.predict(params, batch)
    guessed_B = (jnp.argmax(probability_BC, -1) == 1).astype(jnp.float32)
    actual_B = (batch['label_B'] == 1).astype(jnp.float32)
    return {
      **task.measure(params, batch),
      _GUESSED: guessed_B,
      _ACTUAL: actual_B,
      _BOTH: guessed_B * actual_B,
    }

  return dataclasses.replace(task, measure=measure, summarise=summarise)


def summarise(means: dict[str, Any]) -> dict[str, Any]:
  """Means over a split, with the measures in place of what they are made of."""
  found = dict(means)
  p, a, h = (found.pop(name) for name in (_GUESSED, _ACTUAL, _BOTH))
  spread = math.sqrt(max(p * (1 - p) * a * (1 - a), 0.0))
  return {
    **found,
    'matthews': (h - p * a) / spread if spread else 0.0,
    'f1': 2 * h / (p + a) if p + a else 0.0,
  }
