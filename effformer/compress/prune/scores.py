"""How much units matter: higher is kept longer.

    magnitude   |w|, of a unit the norm of its weights
    saliency    |w g|, of a unit the sum over its weights
    taylor      |dL/dm| of a mask m = 1 on what leaves the unit, which is
                |sum w g| over its exits (Michel et al. 2019, 1905.10650, sec.
                4.1); of a column of the feed-forward part, that and |sum w g|
                over what enters it (DynaBERT, Hou et al. 2020, 2004.04037, sec.
                2.1, and its code)
    wanda       |w_kn| |X_k|, X_k being input k on calibration texts (Sun et al.
                2023, 2306.11695, eq. 1)
    random      the control

g is the gradient of the loss on one batch; what has bars is averaged over the
batches. Scores are those of `units`, {name: array}.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effformer.compress import tensors
from effformer.compress.calibrate import Moments
from effformer.compress.prune.units import Units, total
from effformer.errors import ConfigError
from effformer.shapes import Array

Scores = dict[str, Array]
# (params, batch) -> scalar.
Loss = Callable[[Any, Any], Array]


def magnitude(params: Any, units: Mapping[str, Units]) -> Scores:
  """|w| of weights; of other units the Euclidean norm of their weights."""
  flat = tensors.flatten(params)

  def norm(own):
    if own.kind == 'weight':
      return jnp.abs(jnp.asarray(flat[own.parts[0].path]))
    return jnp.sqrt(
      sum(total(jnp.square(jnp.asarray(flat[p.path])), p) for p in own.parts)
    )

  return {name: norm(own) for name, own in units.items()}


def saliency(
  loss: Loss, params: Any, batches: Iterable[Any], units: Mapping[str, Units]
) -> Scores:
  """|w g| of weights, and its sum over the weights of other units.

  Raises:
    ValueError: there are no batches.
  """

  def measure(own, products):
    if own.kind == 'weight':
      return jnp.abs(products[own.parts[0].path])
    return sum(total(jnp.abs(products[p.path]), p) for p in own.parts)

  return _average(measure, loss, params, batches, units)


def taylor(
  loss: Loss, params: Any, batches: Iterable[Any], units: Mapping[str, Units]
) -> Scores:
  """|dL/dm|, the first-order change of the loss without the unit.

  With batches of one example the mean is that of the paper.

  Raises:
    ConfigError: units that nothing can switch off, such as single weights.
    ValueError: there are no batches.
  """
  for name, own in units.items():
    if not own.exits:
      raise ConfigError(
        f'taylor is about units that a mask switches off, which {name} is not.'
        '\nTake saliency, or other units.'
      )

  def change(products, parts):
    return jnp.abs(sum(total(products[p.path], p) for p in parts))

  def measure(own, products):
    score = change(products, own.exits)
    return score + change(products, own.entries) if own.kind == 'mlp' else score

  return _average(measure, loss, params, batches, units)


def wanda(params: Any, moments: Mapping[str, Moments]) -> Scores:
  """|w_kn| |X_k| of the kernels of which there are moments.

  To be compared among the weights of one output, `masks.unstructured` with
  within='output'.

  Args:
    params: of the model.
    moments: see `calibrate.collect`.
  """
  flat = tensors.flatten(params)

  def score(path, own):
    w_KN = tensors.matrix(path, jnp.asarray(flat[path]))
    size_K = jnp.sqrt(jnp.diagonal(own.gram_KK))
    found_KN = jnp.abs(w_KN) * size_K[:, None]
    return tensors.from_matrix(found_KN, flat[path].shape, is_table=False)

  return {path: score(path, own) for path, own in moments.items()}


def random(key: Array, units: Mapping[str, Units]) -> Scores:
  """Uniform in [0, 1)."""
  names = sorted(units)
  keys = jax.random.split(key, len(names))
  return {
    name: jax.random.uniform(own, units[name].shape)
    for name, own in zip(names, keys, strict=True)
  }


def normalised(scores: Mapping[str, Array]) -> Scores:
  """Scores of each place divided by their Euclidean norm.

  So that places can be compared (Michel et al. 2019, section 4.1).
  """

  def divided(x):
    norm = jnp.sqrt(jnp.sum(jnp.square(x)))
    return x / jnp.where(norm > 0, norm, 1.0)

  return {name: divided(x) for name, x in scores.items()}


def _average(measure, loss, params, batches, units):
  @jax.jit
  def one(params, batch):
    flat, gradients = (
      tensors.flatten(params),
      tensors.flatten(jax.grad(loss)(params, batch)),
    )
    products = {path: flat[path] * gradients[path] for path in flat}
    return {name: measure(own, products) for name, own in units.items()}

  sums, count = None, 0
  for batch in batches:
    found = one(params, batch)
    sums = found if sums is None else jax.tree.map(np.add, sums, found)
    count += 1
  if sums is None:
    raise ValueError('scores from gradients need at least one batch')
  return {name: jnp.asarray(x) / count for name, x in sums.items()}
