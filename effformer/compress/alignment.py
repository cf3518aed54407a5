"""The same layer with its units in another order, that of another layer.

The units of a layer have no order: with a permutation p of the columns of the
feed-forward part, and one of the heads, in all that belongs to them,

    W_in[:, p], b_in[p], W_out[p, :]

the layer is the same function. The order that is nearest to another layer
(Ainsworth et al. 2022, 2209.04836, section 3.2) is

    p = argmax_p sum_i <unit p(i), unit i of the other>

and the Hungarian algorithm finds it. All that belongs to a unit counts
together, biases too. What does not move has the same product in any order: so
this is the order with the greatest cosine of all parameters.

Units are those of `prune.units`. Where heads share keys and values, groups are
matched, each pair of groups with the best match of its heads. Heads that differ
by their number (random features, decays, ALiBi) and all that mixers without
heads have stay as they are, and so do norms, the convolution, and the order
within a head.
"""

import functools
from collections.abc import Mapping

import numpy as np
import scipy.optimize

from effformer.compress.prune.units import Units
from effformer.shapes import Array


def aligned(
  own: Mapping[str, Array],
  other: Mapping[str, Array],
  units: Mapping[str, Units | None],
) -> dict[str, np.ndarray]:
  """The parameters of a block, in the order nearest to those of another.

  Time F^2 D + F^3.

  Args:
    own: parameters by path.
    other: those of the other block, of the same shapes at the same paths.
    units: of `own`, see `units.in_block`.
  """
  flat = dict(own)
  for parts, order_U in _orders(own, other, units):
    for part in parts:
      flat[part.path] = np.take(flat[part.path], order_U, axis=part.axis)
  return flat


def _orders(own, other, units):
  """Parts, and which unit of them comes first, second ..."""
  gain = functools.partial(_products, own, other)
  columns, heads, groups = (units[kind] for kind in ('mlp', 'head', 'kv_group'))
  found = [(columns.parts, _best(gain(columns.parts)))]
  if heads is None:
    return found
  if groups is None:
    return [*found, (heads.parts, _best(gain(heads.parts)))]
  paths = {part.path for part in heads.parts}
  sources = [part for part in groups.parts if part.path not in paths]
  order_H, order_G = _best_grouped(gain(heads.parts), gain(sources))
  return [*found, (heads.parts, order_H), (sources, order_G)]


def _products(own, other, parts):
  """<unit u of the other, unit v>, float64 [U, U]."""

  def rows(x, part):
    x = np.moveaxis(x, part.axis, 0).astype(np.float64)
    return x.reshape(len(x), -1)

  return sum(
    rows(other[part.path], part) @ rows(own[part.path], part).T
    for part in parts
  )


def _best(gain_UU):
  return scipy.optimize.linear_sum_assignment(gain_UU, maximize=True)[1]


def _best_grouped(gain_HH, gain_GG):
  """Orders of heads and of their groups, heads staying with their groups."""
  number, width = len(gain_GG), len(gain_HH) // len(gain_GG)
  gain_GWGW = gain_HH.reshape(number, width, number, width)
  best_GGW = np.array(
    [[_best(gain_GWGW[a, :, b]) for b in range(number)] for a in range(number)]
  )
  gain_GGW = np.take_along_axis(
    gain_GWGW.transpose(0, 2, 1, 3), best_GGW[..., None], axis=3
  )[..., 0]
  order_G = _best(gain_GG + gain_GGW.sum(axis=2))
  within_GW = best_GGW[np.arange(number), order_G]
  return (order_G[:, None] * width + within_GW).ravel(), order_G
