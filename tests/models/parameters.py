"""Parameters without the seconds that compiling an initialiser takes."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np


def random_variables(module: nn.Module, *arguments: Any, **keys: Any) -> Any:
  """Variables of the shapes of `module.init`, drawn on the host.

  Norms are the identity; all else is normal, at the variance of its fan-in.
  """
  shapes = jax.eval_shape(
    lambda *given: module.init(jax.random.key(0), *given, **keys), *arguments
  )
  generator = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return np.ones(leaf.shape, leaf.dtype)
    fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 10
    values = generator.normal(size=leaf.shape) * fan_in**-0.5
    return values.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)
