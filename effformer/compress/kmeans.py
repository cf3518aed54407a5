"""Codebooks of a whole model: what weights count for them, and their training.

`tensors.quantise` with grids of rule 'kmeans' (see `lloyd`) minimises the error
of the weights. With calibration texts that of the outputs can be had in mind:
the input j of a layer y = x W enters its squared error by

    sum_j (sum_t x_tj^2) (w_jn - c_jn)^2

if inputs do not depend on each other, and so its weights count by the second
moment of the input (Choi et al. 2017, 1612.01543, have the curvature there).
`gptq.quantise` makes up for what they do depend.

Afterwards codes stay, and codebooks are trained (Han et al. 2016, 1510.00149,
section 3.3): each value by the sum of the gradients of its weights,

    loss(tensors.dequantise(with_centroids(params, c)))        for c
"""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax.numpy as jnp

from effformer.compress import grid as grids
from effformer.compress import lloyd, tensors
from effformer.compress.calibrate import Moments
from effformer.compress.grid import Grid, Scales
from effformer.compress.tensors import Plan, QTensor
from effformer.shapes import Array


def weighted(w_KN: Array, second_K: Array, grid: Grid) -> Scales:
  """Codebooks of a matrix whose weights count by their inputs.

  They start with those of weights that count alike, and so their error, with
  what the weights count, is never greater.

  Args:
    w_KN: float32.
    second_K: what the weights of each input count, such as sum_t x_t^2.
    grid: of rule 'kmeans'.

  Raises:
    ValueError: the grid has another rule.
  """
  if grid.rule != 'kmeans':
    raise ValueError(f"only rule 'kmeans' has codebooks, got {grid.rule!r}")
  h_KN = jnp.broadcast_to(second_K[:, None], w_KN.shape)
  w_TN, h_TN = (grids.grouped(x, grid)[0] for x in (w_KN, h_KN))
  plain_VN = lloyd.codebook(w_TN, grid.bits)
  codebook_VN = lloyd.codebook(w_TN, grid.bits, h_TN, start_VN=plain_VN)
  return Scales(codebook_VN, jnp.zeros_like(codebook_VN))


def quantise(params: Any, plan: Plan, moments: Mapping[str, Moments]) -> Any:
  """`tensors.quantise`, with weighted codebooks where inputs are known.

  Args:
    params: of a model.
    plan: what is rounded; what is in it and not in `moments`, such as tables,
      or of other rules, is rounded as there.
    moments: from `calibrate.collect`.

  Raises:
    ConfigError: see `tensors.quantise`.
  """
  flat, found = tensors.flatten(params), {}
  for path, grid in plan.items():
    if grid.rule == 'kmeans' and path in moments and path in flat:
      w_KN = tensors.matrix(path, jnp.asarray(flat[path]))
      second_K = jnp.diagonal(moments[path].gram_KK)
      found[path] = weighted(w_KN, second_K, grid)
  return tensors.quantise(params, plan, found=found)


def centroids(params: Any) -> dict[str, Array]:
  """The codebooks of parameters by path, float32 [V, 1] or [V, n]."""
  return {
    path: x.scale
    for path, x in tensors.flatten(params).items()
    if isinstance(x, QTensor) and x.grid.rule == 'kmeans'
  }


def with_centroids(params: Any, centroids: Mapping[str, Array]) -> Any:
  """The parameters with other codebooks and the same codes.

  Args:
    params: some of them codes of rule 'kmeans'.
    centroids: of some of these or of all.

  Raises:
    ValueError: codebooks of what has none, or of another shape.
  """
  flat = dict(tensors.flatten(params))
  for path, codebook_VN in centroids.items():
    x = flat.get(path)
    if not isinstance(x, QTensor) or x.grid.rule != 'kmeans':
      raise ValueError(f'there is a codebook for {path}, which has none')
    if codebook_VN.shape != x.scale.shape:
      raise ValueError(
        f'the codebook of {path} has to be {x.scale.shape}, got '
        f'{codebook_VN.shape}'
      )
    flat[path] = x.replace(scale=codebook_VN)
  return flax.traverse_util.unflatten_dict(flat, sep='/')
