"""The state: its digest, its table, its beginning."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from effformer.train import sharding, state

TREE = {
  'a': np.arange(32, dtype=np.float32).reshape(4, 8) / 3,
  'b': {'c': np.arange(8, dtype=np.int32), 'd': np.float32(2.5)},
}


def on_devices(tree, device=0):
  return jax.device_put(tree, jax.devices()[device])


@pytest.mark.parametrize(('data', 'fsdp'), [(8, 1), (2, 4), (1, 8)])
def test_digest_does_not_depend_on_where_the_leaves_are(data, fsdp):
  mesh = sharding.make_mesh(
    ml_collections.ConfigDict({'data': data, 'fsdp': fsdp})
  )
  spread = jax.device_put(TREE, sharding.state(mesh, TREE))
  assert len(spread['a'].devices()) == 8
  expected = state.digest(on_devices(TREE))
  assert state.digest(spread) == expected
  assert state.digest(on_devices(TREE, 3)) == expected


def one_bit(tree):
  bits = tree['a'].view(np.int32).copy()
  bits[2, 5] ^= 1
  return {**tree, 'a': bits.view(np.float32)}


CHANGES = {
  'bit': one_bit,
  'dtype': lambda tree: {**tree, 'a': tree['a'].view(np.int32)},
  'shape': lambda tree: {**tree, 'a': tree['a'].reshape(8, 4)},
  'name': lambda tree: {'A': tree['a'], 'b': tree['b']},
  'depth': lambda tree: {'a': tree['a'], 'b': {'c': tree['b']}},
  'missing': lambda tree: {'a': tree['a']},
  'order': lambda tree: {
    'a': tree['a'],
    'b': {'c': tree['b']['c'][::-1].copy(), 'd': tree['b']['d']},
  },
  'minus zero': lambda tree: {**tree, 'a': tree['a'] * np.float32(-1)},
}


@pytest.mark.parametrize('change', CHANGES)
def test_digest_sees_every_change(change):
  before = state.digest(on_devices(TREE))
  changed = CHANGES[change](TREE)
  assert state.digest(on_devices(changed)) != before
  assert state.digest(on_devices(TREE)) == before


def test_digest_keeps_values_and_names_apart():
  """Bytes that move from one leaf into the next make another digest."""
  first = {'a': np.zeros(2, np.int32), 'b': np.zeros(1, np.int32)}
  second = {'a': np.zeros(1, np.int32), 'b': np.zeros(2, np.int32)}
  assert state.digest(on_devices(first)) != state.digest(on_devices(second))


def test_digest_sees_each_part_of_the_state():
  def digest(**changes):
    whole = state.TrainState(
      params=jnp.zeros(2), opt_state=jnp.zeros(2), step=jnp.zeros((), jnp.int32)
    )
    return state.digest(whole.replace(**changes))

  digests = {
    digest(),
    digest(params=jnp.ones(2)),
    digest(opt_state=jnp.ones(2)),
    digest(step=jnp.ones((), jnp.int32)),
  }
  assert len(digests) == 4


def test_the_first_state_is_a_function_of_the_seed():
  optimiser = optax.scale_by_adam()

  def init(key):
    return {'kernel': jax.random.normal(key, (3, 2))}

  first = state.initial(init, optimiser, 1)
  assert first.step.dtype == jnp.int32
  assert int(first.step) == 0
  assert jax.tree.structure(first.opt_state) == jax.tree.structure(
    optimiser.init(first.params)
  )
  assert not np.any(first.opt_state.mu['kernel'])
  assert state.digest(first) == state.digest(state.initial(init, optimiser, 1))
  other = state.initial(init, optimiser, 2)
  assert np.all(other.params['kernel'] != first.params['kernel'])


def test_table_has_a_line_for_each_parameter_and_the_total():
  params = {
    'encoder': {'kernel': jax.ShapeDtypeStruct((300, 8), jnp.float32)},
    'cls': jax.ShapeDtypeStruct((8,), jnp.float32),
  }
  lines = list(state.table(params))
  words = [line.split() for line in lines]
  assert words == [
    ['cls', '(8,)', '8'],
    ['encoder/kernel', '(300,', '8)', '2,400'],
    ['total', '2,408'],
  ]
  assert len({len(line) for line in lines}) == 1
  assert state.num_params(params) == 2408
