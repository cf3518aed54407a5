"""How many bits for what: groups of a model, their bytes, and their losses.

A group is rounded as a whole: a table of vectors, the mixer of a layer, its
feed-forward part, or what stands outside of the encoder. The loss of an option
is measured with that group alone rounded, the rest as it was; `policy` makes
plans of these.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util

from effformer.compress import tensors
from effformer.compress.grid import Grid
from effformer.compress.policy import Option
from effformer.compress.tensors import QTensor

Groups = Mapping[str, tuple[str, ...]]


def groups(params: Any) -> dict[str, tuple[str, ...]]:
  """The paths of each group, of all that can be rounded.

  'encoder/layer_0/mixer' has the projections of layer 0; a table or a matrix
  outside of the encoder is its own group.
  """
  found: dict[str, tuple[str, ...]] = {}
  for path, x in flax.traverse_util.flatten_dict(params, sep='/').items():
    if not tensors.is_rounded(path, x):
      continue
    parts = path.split('/')
    name = '/'.join(parts[:3]) if parts[0] == 'encoder' else path
    found[name] = (*found.get(name, ()), path)
  return found


def plan_of(
  groups: Groups, chosen: Mapping[str, str], grids: Mapping[str, Grid]
) -> dict[str, Grid]:
  """The plan of parameters that a plan of groups stands for.

  Args:
    groups: from `groups`.
    chosen: group -> name of its grid; groups that are missing are not rounded.
    grids: by name.
  """
  return {
    path: grids[name]
    for group, name in chosen.items()
    for path in groups[group]
  }


def num_bytes(params: Any) -> int:
  """Bytes of all that is rounded, as it is stored."""
  leaves = flax.traverse_util.flatten_dict(params, sep='/').values()
  return sum(x.packed_bytes for x in leaves if isinstance(x, QTensor))


def options(
  params: Any,
  groups: Groups,
  grids: Mapping[str, Grid],
  loss: Callable[[Any], float],
  *,
  quantise: Callable[[Any, tensors.Plan], Any] = tensors.quantise,
) -> dict[str, list[Option]]:
  """The options of every group, for `policy.search`.

  Args:
    params: numbers.
    groups: from `groups`.
    grids: what a group may be rounded to, by name.
    loss: parameters, some of them `QTensor`, -> what it costs, 0 being nothing.
    quantise: (params, plan) -> parameters; another way than to the nearest, for
      example `gptq.quantise` with its moments.
  """
  found = {}
  for group in groups:
    found[group] = []
    for name in grids:
      rounded = quantise(params, plan_of(groups, {group: name}, grids))
      found[group].append(Option(name, num_bytes(rounded), loss(rounded)))
  return found
