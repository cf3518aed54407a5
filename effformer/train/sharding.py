"""Where arrays live: one mesh, rules for parameters, rows for batches.

The batch is split over all devices, on the axes `data` and `fsdp` together.
Parameters and optimiser state are whole on every device of the `data` axis
and split over the `fsdp` axis (Zhao et al. 2023), each on its longest axis
that divides; the compiler inserts the gathers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effformer import errors

AXES = ('data', 'fsdp')


def make_mesh(
  mesh: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of `mesh.data` x `mesh.fsdp`, one of which may be -1 (the rest).

  Raises:
    ConfigError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [mesh[axis] for axis in AXES]
  if -1 in sizes:
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = max(len(devices) // known, 1)
  if int(np.prod(sizes)) != len(devices):
    raise errors.ConfigError(
      f'mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp} does not fit the '
      f'{len(devices)} devices of this machine.\n'
      'Set mesh.data=-1 and mesh.fsdp=1, or sizes whose product is '
      f'{len(devices)}.'
    )
  return Mesh(np.asarray(devices).reshape(sizes), AXES)


def check_batch(name: str, batch_size: int, parts: int) -> None:
  """Refuses a global batch that cannot be split evenly."""
  if batch_size % parts:
    lower = batch_size - batch_size % parts
    near = f'{lower} or {lower + parts}' if lower else f'{parts}'
    raise errors.ConfigError(
      f'{name}={batch_size} does not divide into {parts} equal parts '
      '(devices x train.accumulate_steps).\n'
      f'Use a multiple of {parts}, for example {near}.'
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
  """Rows split over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def placed(arrays: Any, abstract: Any) -> Any:
  """Arrays of this host on the devices, as `abstract` has them."""
  return jax.tree.map(
    lambda x, like: jax.make_array_from_callback(
      like.shape, like.sharding, lambda index: np.asarray(x[index])
    ),
    arrays,
    abstract,
  )


def state(mesh: Mesh, abstract: Any) -> Any:
  """The sharding of each leaf of a tree of parameters or optimiser state."""
  parts = mesh.shape['fsdp']

  def spec(leaf):
    fitting = [a for a, size in enumerate(leaf.shape) if size % parts == 0]
    if parts == 1 or not fitting:
      return replicated(mesh)
    longest = max(fitting, key=lambda axis: leaf.shape[axis])
    axes = ['fsdp' if a == longest else None for a in range(leaf.ndim)]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(spec, abstract)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of the global batch that this host's devices hold, ascending."""
  indices = batch(mesh).addressable_devices_indices_map((batch_size,))
  rows = {
    row
    for (index,) in indices.values()
    for row in range(*index.indices(batch_size))
  }
  return np.asarray(sorted(rows))


def to_devices(mesh: Mesh, rows: dict[str, np.ndarray], batch_size: int) -> Any:
  """Global arrays from the rows that this host read."""
  sharding = batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(
      sharding, value, (batch_size, *value.shape[1:])
    )
    for name, value in rows.items()
  }
