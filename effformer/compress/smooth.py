"""Inputs with outliers made as easy to round as the weights.

SmoothQuant (Xiao et al. 2022, 2211.10438, equation 4). An input whose greatest
values are far above those of the others takes the range of 8 bits for itself.
Its range is shared between it and its weights,

    s_j = max |X_j|^a / max |W_j|^(1 - a)

for each input j, X over the tokens of calibration texts, W over all matrices
that read it. With a = 1/2 both have the same greatest values,
sqrt(max |X_j| max |W_j|); more a leaves more to the weights. Factors and
weights are 1e-5 at least. An input that was always 0 keeps the factor 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections

from effformer.compress import fold, tensors
from effformer.compress.calibrate import Moments
from effformer.shapes import Array

ALPHA = 0.5
LEAST = 1e-5


def scales(
  matrices: Sequence[Array], largest_K: Array, alpha: float = ALPHA
) -> Array:
  """s_K of the matrices that share an input.

  Args:
    matrices: w_KN.
    largest_K: max |X_j|.
    alpha: a, from 0 to 1.

  Raises:
    ValueError: `alpha` is no such share.
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f'alpha has to be from 0 to 1, got {alpha}')
  weights_K = jnp.max(
    jnp.stack([jnp.max(jnp.abs(w_KN), axis=1) for w_KN in matrices]), axis=0
  )
  s_K = largest_K**alpha / jnp.maximum(weights_K, LEAST) ** (1 - alpha)
  return jnp.where(largest_K > 0, jnp.maximum(s_K, LEAST), 1.0)


def factors(
  config: ml_collections.ConfigDict,
  params: Any,
  moments: Mapping[str, Moments],
  alpha: float = ALPHA,
) -> dict[str, Array]:
  """s_K of all kernels of the encoder that there are moments of.

  `fold.fold` hides those that can be, `tensors.quantise` takes the others.

  Args:
    config: describes the model.
    params: numbers.
    moments: of `calibrate.collect`.
    alpha: see `scales`.
  """
  flat = tensors.flatten(params)
  found = {}
  for place in fold.places(config, params):
    own = [path for path in place.kernels if path in moments]
    if not own:
      continue
    largest_K = fold.tied(moments[own[0]].largest_K, place, jnp.max)
    # Of a row only its greatest weight counts.
    columns = [
      jnp.max(jnp.abs(tensors.matrix(path, flat[path])), axis=1)
      for path in place.kernels
    ]
    columns = [fold.tied(x_K, place, jnp.max)[:, None] for x_K in columns]
    found |= dict.fromkeys(own, scales(columns, largest_K, alpha))
  return found
