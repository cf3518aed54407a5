"""Units: which there are, and that each is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import tensors
from effformer.compress.prune import units as units_lib
from effformer.compress.prune.units import Part
from effformer.errors import ConfigError
from tests.compress.prune.models import VOCABULARY, classifier

ROWS = (('1', (('num_heads', 6), ('num_kv_heads', 2), ('mlp_width', 7))),)


def test_names_and_shapes():
  model = classifier(rows=ROWS, model__conv_width=3)
  found = units_lib.of(model.config, model.params, units_lib.KINDS)
  shapes = {name: own.shape for name, own in found.items() if ':' in name}
  assert shapes == {
    'encoder/layer_0:head': (3,),
    'encoder/layer_1:head': (6,),
    'encoder/layer_2:head': (3,),
    'encoder/layer_1:kv_group': (2,),
    'encoder/layer_0:mlp': (10,),
    'encoder/layer_1:mlp': (7,),
    'encoder/layer_2:mlp': (10,),
    **{f'encoder/layer_{i}:layer': (1,) for i in range(3)},
    'embedding:embedding': (VOCABULARY,),
  }
  flat = tensors.flatten(model.params)
  kernels = {path for path in flat if path.endswith('/kernel')}
  assert set(found) - set(shapes) == kernels
  assert found['head_out/kernel'].shape == (12, 3)
  for name, own in found.items():
    assert units_lib.kind_of(name) == own.kind


def test_heads_have_their_own_keys_unless_they_share_them():
  model = classifier(rows=ROWS)
  found = units_lib.of(model.config, model.params, ('head', 'kv_group'))

  def parts(name):
    return {
      (part.path.partition('/mixer/')[2], part.axis, part.width)
      for part in found[name].parts
    }

  queries = {('query/kernel', 1), ('query/bias', 0), ('out/kernel', 0)}
  sources = {
    (f'{name}/{part}', axis)
    for name in ('key', 'value')
    for part, axis in (('kernel', 1), ('bias', 0))
  }
  one = {(*x, 1) for x in queries}
  assert parts('encoder/layer_1:head') == one
  assert parts('encoder/layer_0:head') == one | {(*x, 1) for x in sources}
  assert parts('encoder/layer_1:kv_group') == {
    *((*x, 3) for x in queries), *((*x, 1) for x in sources),
  }  # fmt: skip


@pytest.mark.parametrize(
  ('part', 'shape', 'expected'),
  [
    (Part('', 1), (2, 3, 4), [[[0] * 4, [1] * 4, [2] * 4]] * 2),
    (Part('', 0, 2), (6, 2), [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]]),
  ],
)
def test_spreading_a_number_of_each_unit(part, shape, expected):
  spread = units_lib.spread(np.arange(3), part, shape)
  np.testing.assert_array_equal(np.broadcast_to(spread, shape), expected)
  x = np.random.default_rng(0).normal(size=shape)
  by_hand = [x[np.array(expected) == u].sum() for u in range(3)]
  np.testing.assert_allclose(units_lib.total(x, part), by_hand, rtol=1e-5)


@pytest.mark.parametrize('index', [[2, 0], [0, 1]])
@pytest.mark.parametrize('array', [np.asarray, jnp.asarray])
def test_what_units_have_is_taken_in_their_order(array, index):
  flat = {
    'a': array(np.arange(24).reshape(2, 6, 2)), 'b': array(np.arange(3)),
    'c': array(np.arange(3)),
  }  # fmt: skip
  before = dict(flat)
  units_lib.take(flat, (Part('a', 1, 2), Part('b', 0)), np.array(index))
  rows = [2 * unit + place for unit in index for place in (0, 1)]
  np.testing.assert_array_equal(flat['a'], before['a'][:, np.array(rows)])
  np.testing.assert_array_equal(flat['b'], index)
  assert flat['c'] is before['c']


def test_all_of_an_array_is_of_the_only_unit():
  x = np.arange(6.0).reshape(2, 3)
  assert units_lib.total(x, Part('', None)).tolist() == [15.0]
  spread = units_lib.spread(np.array([4]), Part('', None), (2, 3))
  np.testing.assert_array_equal(np.broadcast_to(spread, (2, 3)), 4)


def test_blocks_that_zeros_do_not_switch_off():
  for keys in ({'model__norm_order': 'post'}, {'mechanism': 's5'}):
    model = classifier(**keys)
    found = units_lib.of(model.config, model.params, ('layer',))
    assert all(own.exits == () for own in found.values())
    numbers = sum(np.size(x) for x in jax.tree.leaves(model.params['encoder']))
    norm = 0 if 'model__norm_order' in keys else 2 * 12
    flat = tensors.flatten(model.params)
    parts = [part for own in found.values() for part in own.parts]
    assert sum(flat[part.path].size for part in parts) == numbers - norm


def test_kinds_that_there_are_not():
  model = classifier(model__front_end='continuous')
  for kind in ('kv_group', 'embedding'):
    with pytest.raises(ConfigError, match=f'of kind {kind!r}'):
      units_lib.of(model.config, model.params, (kind,))
  with pytest.raises(ConfigError, match="no kind of unit 'neuron'"):
    units_lib.of(model.config, model.params, ('head', 'neuron'))
