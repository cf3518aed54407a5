"""From scores to masks, and masks on parameters.

Masks are bool, true where something is kept. The number that leaves is exact:
the sparsity times the number of units, rounded to the nearest, halves to even.
Of equal scores the earlier unit is kept.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from effformer.compress import patterns, tensors
from effformer.compress.prune import units as units_lib
from effformer.compress.prune.units import Units, kind_of
from effformer.errors import ConfigError
from effformer.shapes import Array

Masks = dict[str, Array]
WITHIN = ('output', 'place', 'model')


class Sparsity(NamedTuple):
  """What masks take away.

  Attributes:
    num_params: numbers of the model.
    num_removed: those of them that leave.
    kept: name -> (units that stay, units).
  """

  num_params: int
  num_removed: int
  kept: dict[str, tuple[int, int]]

  @property
  def fraction(self) -> float:
    """The share that leaves."""
    return self.num_removed / self.num_params


def unstructured(
  scores: Mapping[str, Array], sparsity: float, within: str = 'place'
) -> Masks:
  """Masks of single weights.

  Args:
    scores: of weights.
    sparsity: share that leaves, 0 to 1.
    within: what weights compete with: those of the same 'output' (n of a
      matrix [k, n]), 'place' (parameter), or 'model'.

  Raises:
    ConfigError: sparsity is no share.
    ValueError: no such way to compete.
  """
  _check_share('sparsity', sparsity)
  if within not in WITHIN:
    raise ValueError(f'within has to be one of {WITHIN}, got {within!r}')
  if within == 'model':
    return _jointly(scores, _rest(sum(map(np.size, scores.values())), sparsity))

  def one(path, x):
    x = jnp.asarray(x)
    if within == 'place':
      return patterns.highest(x.ravel(), _rest(x.size, sparsity)).reshape(
        x.shape
      )
    s_KN = tensors.matrix(path, x)
    keep_NK = patterns.highest(s_KN.T, _rest(s_KN.shape[0], sparsity))
    return tensors.from_matrix(keep_NK.T, x.shape, is_table=False)

  return {path: one(path, x) for path, x in scores.items()}


def n_of_m(scores: Mapping[str, Array], n: int, m: int) -> Masks:
  """Masks that keep exactly n of every m weights of an output; see `patterns`.

  Raises:
    ConfigError: not 1 <= n <= m.
  """
  check_pattern(n, m)

  def one(path, x):
    keep_KN = patterns.stays(tensors.matrix(path, jnp.asarray(x)), n, m)
    return tensors.from_matrix(keep_KN, x.shape, is_table=False)

  return {path: one(path, x) for path, x in scores.items()}


def check_pattern(n: int, m: int) -> None:
  """Refuses what is no n of m with a ConfigError."""
  if not 1 <= n <= m:
    raise ConfigError(f'n of m needs 1 <= n <= m, got {n} of {m}.')


def structured(
  scores: Mapping[str, Array], ratio: float, within: str = 'place'
) -> Masks:
  """Masks of heads, groups, columns, layers or vectors.

  At least one unit of each place stays, and one layer of the model; the ratio
  is not reached where that stands in the way.

  Args:
    scores: of units; kinds do not compete with each other.
    ratio: share of the units that leaves, 0 to 1.
    within: 'place', or 'model' for all places of a kind together, for which
      scores have to be comparable (`scores.normalised`). Layers always compete
      in the model.

  Raises:
    ConfigError: ratio is no share, or scores are of single weights.
    ValueError: no such way to compete.
  """
  _check_share('ratio', ratio)
  if within not in WITHIN[1:]:
    raise ValueError(f'within has to be one of {WITHIN[1:]}, got {within!r}')
  if 'weight' in map(kind_of, scores):
    raise ConfigError('single weights are masked by unstructured or n_of_m.')
  groups = {}
  for name in scores:
    kind = kind_of(name)
    is_joint = within == 'model' or kind == 'layer'
    groups.setdefault(kind if is_joint else name, []).append(name)
  found = {}
  for names in groups.values():
    own = {name: jnp.asarray(scores[name]) for name in names}
    is_alone = kind_of(names[0]) == 'layer'
    number = sum(x.size for x in own.values())
    least = 1 if is_alone else len(own)
    # What stays anyway is ranked above all.
    if not is_alone:
      own = {
        name: jnp.where(patterns.highest(x, 1), jnp.inf, x)
        for name, x in own.items()
      }
    found |= _jointly(own, max(_rest(number, ratio), least))
  return {name: found[name] for name in scores}


def apply(
  params: Any, masks: Mapping[str, Array], units: Mapping[str, Units]
) -> Any:
  """The parameters, with zeros for what leaves; of layers, their exits.

  Raises:
    ConfigError: masks do not fit, or a layer cannot be switched off by zeros.
  """
  units_lib.check(masks, units)
  for name in masks:
    if kind_of(name) == 'layer' and not units[name].exits:
      raise ConfigError(
        f'{name} is no identity without its parameters, so it cannot be masked.'
        '\nLeave it out with depth.drop_layers.'
      )
  flat = dict(tensors.flatten(params))
  for path, keep in _kept(flat, masks, units, by_exits=True).items():
    flat[path] = jnp.where(keep, flat[path], 0)
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def sparsity(
  params: Any, masks: Mapping[str, Array], units: Mapping[str, Units]
) -> Sparsity:
  """How many numbers leave; what several masks remove counts once.

  Raises:
    ConfigError: masks do not fit.
  """
  units_lib.check(masks, units)
  flat = tensors.flatten(params)
  removed = 0
  for path, keep in _kept(flat, masks, units, by_exits=False).items():
    keep = np.broadcast_to(keep, np.shape(flat[path]))
    removed += keep.size - int(keep.sum())
  kept = {name: (int(np.sum(x)), np.size(x)) for name, x in masks.items()}
  return Sparsity(sum(map(np.size, flat.values())), removed, kept)


def _kept(flat, masks, units, *, by_exits):
  """path -> which of its numbers stay, of a shape that broadcasts to it."""
  found = {}
  for name, mask in masks.items():
    own = units[name]
    parts = own.exits if by_exits and own.kind == 'layer' else own.parts
    for part in parts:
      shape = np.shape(flat[part.path])
      keep = units_lib.spread(jnp.asarray(mask, bool), part, shape)
      before = found.get(part.path)
      found[part.path] = keep if before is None else before & keep
  return found


def _jointly(scores, count):
  """The `count` highest of all."""
  arrays = [jnp.asarray(x) for x in scores.values()]
  keep_N = patterns.highest(jnp.concatenate([x.ravel() for x in arrays]), count)
  ends = np.cumsum([x.size for x in arrays])
  parts = jnp.split(keep_N, ends[:-1])
  return {
    name: part.reshape(x.shape)
    for name, part, x in zip(scores, parts, arrays, strict=True)
  }


def _rest(number, share):
  return number - round(share * number)


def _check_share(what, value):
  if not (math.isfinite(value) and 0 <= value <= 1):
    raise ConfigError(f'{what} has to be 0 to 1, got {value}.')
