"""Meshes, shards of the state, rows of the batch; one device or eight."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from effformer import errors
from effformer.train import setup, sharding, state
from tests.train.tiny_run import tiny_config, tiny_task

AXES = ('data', 'fsdp')
# Sums over the batch and over widths are split: another order of addition.
ATOL = 1e-5


def mesh_config(data, fsdp):
  return ml_collections.ConfigDict({'data': data, 'fsdp': fsdp})


def make_mesh(data, fsdp, num_devices=8):
  devices = jax.devices()[:num_devices]
  return sharding.make_mesh(mesh_config(data, fsdp), devices)


@pytest.mark.parametrize(
  ('data', 'fsdp', 'num_devices', 'shape'),
  [
    (-1, 1, 8, (8, 1)),
    (-1, 2, 8, (4, 2)),
    (2, -1, 8, (2, 4)),
    (1, 8, 8, (1, 8)),
    (-1, 1, 1, (1, 1)),
    (-1, 3, 6, (2, 3)),
  ],
)
def test_mesh_sizes(data, fsdp, num_devices, shape):
  mesh = make_mesh(data, fsdp, num_devices)
  assert mesh.axis_names == AXES
  assert mesh.devices.shape == shape
  assert set(mesh.devices.flat) == set(jax.devices()[:num_devices])


def test_a_mesh_is_of_all_devices_where_none_are_named():
  assert sharding.make_mesh(mesh_config(-1, 1)).size == 8


@pytest.mark.parametrize(
  ('data', 'fsdp', 'num_devices'),
  [(3, 1, 8), (-1, 3, 8), (8, 2, 8), (2, 2, 8), (-1, -1, 8), (-1, 2, 1)],
)
def test_a_mesh_that_does_not_fit_is_refused(data, fsdp, num_devices):
  with pytest.raises(errors.ConfigError) as caught:
    make_mesh(data, fsdp, num_devices)
  message = str(caught.value)
  assert f'mesh.data={data}' in message
  assert f'mesh.fsdp={fsdp}' in message
  assert f'{num_devices} devices' in message
  assert len(message.splitlines()) <= 5


@pytest.mark.parametrize('batch_size', [8, 16, 24])
def test_a_batch_that_divides_passes(batch_size):
  sharding.check_batch('train.batch_size', batch_size, 8)


@pytest.mark.parametrize(
  ('batch_size', 'remedy'), [(12, '8 or 16'), (3, '8'), (17, '16 or 24')]
)
def test_a_batch_that_does_not_divide_is_refused(batch_size, remedy):
  with pytest.raises(errors.ConfigError) as caught:
    sharding.check_batch('train.eval_batch_size', batch_size, 8)
  message = str(caught.value)
  assert f'train.eval_batch_size={batch_size} ' in message
  assert message.endswith(f'for example {remedy}.')
  assert len(message.splitlines()) <= 5


TREE = {
  'kernel': jnp.ones((16, 24)),
  'tall': jnp.ones((48, 24)),
  'bias': jnp.ones(24),
  # No axis divides by more than one device.
  'odd': jnp.ones((7, 5)),
  # Only the shorter axis divides by 2, 4 and 8.
  'table': jnp.ones((257, 8)),
  'count': jnp.zeros((), jnp.int32),
}


@pytest.mark.parametrize('fsdp', [1, 2, 4, 8])
def test_shards_of_the_state_are_parts_of_it(fsdp):
  mesh = make_mesh(-1, fsdp)
  placed = jax.device_put(TREE, sharding.state(mesh, TREE))
  expected = {
    'kernel': (16, 24 // fsdp),
    'tall': (48 // fsdp, 24),
    'bias': (24 // fsdp,),
    'odd': (7, 5),
    'table': (257, 8 // fsdp),
    'count': (),
  }
  per_device = dict.fromkeys(jax.devices(), 0)
  for name, leaf in placed.items():
    shards = leaf.addressable_shards
    assert {s.data.shape for s in shards} == {expected[name]}, name
    for shard in shards:
      per_device[shard.device] += shard.data.nbytes
  num_bytes = 4 * sum(math.prod(shape) for shape in expected.values())
  assert set(per_device.values()) == {num_bytes}


@pytest.mark.parametrize(('data', 'fsdp'), [(8, 1), (4, 2), (1, 8)])
def test_rows_of_a_batch_are_split_over_all_devices(data, fsdp):
  mesh = make_mesh(data, fsdp)
  rows_B = sharding.local_rows(mesh, 16)
  np.testing.assert_array_equal(rows_B, np.arange(16))
  ids_BT = np.arange(48, dtype=np.int32).reshape(16, 3)
  placed = sharding.to_devices(mesh, {'ids_BT': ids_BT, 'row_B': rows_B}, 16)
  assert placed['row_B'].shape == (16,)
  assert placed['ids_BT'].shape == (16, 3)
  for index, device in enumerate(mesh.devices.flat):
    (shard,) = (
      s for s in placed['ids_BT'].addressable_shards if s.device == device
    )
    np.testing.assert_array_equal(shard.data, ids_BT[2 * index : 2 * index + 2])


class OneOfTwoHosts:
  """A sharding of rows of which this process holds those of some devices."""

  def __init__(self, whole, devices):
    self._whole, self._devices = whole, devices

  def addressable_devices_indices_map(self, shape):
    indices = self._whole.devices_indices_map(shape)
    return {device: indices[device] for device in self._devices}


def test_a_host_reads_the_rows_of_its_own_devices(monkeypatch):
  mesh = make_mesh(4, 2)
  whole = sharding.batch(mesh)
  for host, devices in enumerate((jax.devices()[:4], jax.devices()[4:])):
    local = OneOfTwoHosts(whole, devices)
    monkeypatch.setattr(sharding, 'batch', lambda mesh, local=local: local)
    np.testing.assert_array_equal(
      sharding.local_rows(mesh, 16), np.arange(8) + 8 * host
    )


# In Adam's first direction, g / (|g| + epsilon), rounding shows where g is
# about epsilon: not in a float32 sum if that is large.
STEP_CONFIG = {
  'model__width': 16,
  'model__num_heads': 4,
  'model__mlp_width': 24,
  'train__batch_size': 8,
  'train__eval_batch_size': 8,
  'train__epsilon': 1e-3,
  # The first step of a warmup changes nothing.
  'train__warmup_steps': 0,
}


def rows():
  generator = np.random.default_rng(0)
  lengths_B = np.array([16, 3, 9, 1, 12, 16, 5, 8], np.int32)
  is_kept_BT = np.arange(16)[None] < lengths_B[:, None]
  ids_BT = generator.integers(1, 257, (8, 16)) * is_kept_BT
  return {
    'ids_BT': ids_BT.astype(np.int32),
    'lengths_B': lengths_B,
    'label_B': generator.integers(0, 2, 8).astype(np.int32),
    'weight_B': np.ones(8, np.float32),
    'index_B': np.arange(8),
  }


def program_on(data, fsdp, num_devices):
  config = tiny_config(mesh__data=data, mesh__fsdp=fsdp, **STEP_CONFIG)
  devices = jax.devices()[:num_devices]
  return setup.build(config, tiny_task(config), devices)


def one_step(program, first):
  """State and metrics, on the host, one step after `first`."""
  where = sharding.state(program.mesh, program.abstract)
  current = jax.device_put(first, where)
  batch = sharding.to_devices(program.mesh, rows(), 8)
  train_step = program.trace_train_step().lower().compile()
  return jax.device_get(train_step(current, batch))


@pytest.fixture(scope='module')
def alone():
  """On one device: the first state, and state and metrics a step later."""
  program = program_on(1, 1, 1)
  first = jax.device_get(program.first_state())
  return first, *one_step(program, first)


@pytest.mark.parametrize(('data', 'fsdp'), [(8, 1), (4, 2), (1, 8)])
def test_a_step_on_eight_devices_equals_one_on_one(alone, data, fsdp):
  first, expected, expected_metrics = alone
  after, metrics = one_step(program_on(data, fsdp, 8), first)
  assert metrics.keys() == expected_metrics.keys()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=ATOL),
    (after, metrics),
    (expected, expected_metrics),
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), after.params, first.params
  )
  assert min(jax.tree.leaves(moved)) > 10 * ATOL


def test_the_first_state_is_the_same_on_any_mesh(alone):
  program = program_on(2, 4, 8)
  assert state.digest(program.first_state()) == state.digest(
    jax.device_put(alone[0], jax.devices()[0])
  )
