"""What a run remembers: parameters, optimiser state, step; nothing else.

Every random key is `fold_in(seed, step)` and every batch a function of
(seed, step), so three things make a run continue as if it had never stopped.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils


@flax.struct.dataclass
class TrainState:
  """Parameters, optimiser state, and the number of steps done (int32)."""

  params: Any
  opt_state: Any
  step: jax.Array


def initial(
  init_params: Callable[[jax.Array], Any],
  optimiser: optax.GradientTransformation,
  seed: int,
) -> TrainState:
  """The state before the first step, a pure function of the seed."""
  params = init_params(jax.random.key(seed))
  return TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32))


def num_params(params: Any) -> int:
  """Number of scalars in a tree of (abstract) arrays."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def digest(tree: Any) -> str:
  """SHA-256 over paths, types, shapes and bytes of all leaves, in order.

  Equal for equal states, however they are spread over devices. Collective
  where leaves are spread over processes.
  """
  total = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    is_apart = isinstance(leaf, jax.Array) and not (
      leaf.is_fully_addressable or leaf.is_fully_replicated
    )
    if is_apart:
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
    value = np.asarray(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    total.update(f'{name} {value.dtype} {value.shape} '.encode())
    total.update(value.tobytes())
  return total.hexdigest()


def table(params: Any) -> Iterator[str]:
  """One line a parameter: path, shape, count; then the total."""
  rows = [
    ('/'.join(key.key for key in path), str(leaf.shape), num_params(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
  width = max(len(path) for path, _, _ in rows)
  for path, shape, count in rows:
    yield f'  {path:<{width}}  {shape:<16} {count:>10,}'
  total = num_params(params)
  yield f'  {"total":<{width}}  {"":<16} {total:>10,}'
