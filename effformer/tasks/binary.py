"""Measures of two classes that are no means over examples.

Of class 1 let p be the share of examples that are guessed to be of it, a the
share that are, and h the share that are both. Then

    Matthews correlation = (h - p a) / sqrt(p (1 - p) a (1 - a)),  0 where that
      is 0 / 0 (Matthews 1975); that of CoLA
    F1 = 2 h / (p + a), 0 likewise; that of MRPC
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

# Means that `summarise` turns into measures.
_GUESSED, _ACTUAL, _BOTH = '_guessed', '_actual', '_both'


def shares(logits_BC: jax.Array, label_B: jax.Array) -> dict[str, jax.Array]:
  """1.0 of each example that counts to p, a and h, for `summarise`."""
  guessed_B = jnp.argmax(logits_BC, axis=-1) == 1
  actual_B = label_B == 1
  found = {
    _GUESSED: guessed_B, _ACTUAL: actual_B, _BOTH: guessed_B & actual_B,
  }  # fmt: skip
  return {name: x.astype(jnp.float32) for name, x in found.items()}


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
