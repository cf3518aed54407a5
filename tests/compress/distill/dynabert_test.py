"""Sub-networks: the same function sorted, a mask where they are narrow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import config as config_lib
from effformer.compress.distill import dynabert, hidden, losses, maps
from effformer.compress.distill.capture import Captured, capture
from effformer.errors import ConfigError
from effformer.models import build
from tests import slow
from tests.compress.networks import (
  BATCH,
  B,
  C,
  D,
  F,
  K,
  T,
  batch_of,
  layer,
  network,
)

# Many models are compiled.
pytestmark = pytest.mark.slow

HEADS = 4
LAYERS = (
  layer(num_heads=HEADS, relative_bias='t5', use_bias=True, mlp_width=12),
  layer('linear', num_heads=HEADS, mlp_width=20),
  layer('local', num_heads=HEADS, window=3, mlp_width=12, share='a'),
  layer('local', num_heads=HEADS, window=3, mlp_width=12, share='a'),
)  # fmt: skip

NAMES = ('layer_0', 'layer_1', 'shared_a')
MODULE, PARAMS = network(LAYERS)


@jax.jit
def logits(params):
  return MODULE.apply({'params': params}, *BATCH)


def random_importance():
  rng = np.random.default_rng(0)
  return {
    name: dynabert.Importance(
      rng.permutation([3.0, 1.0, 0.0, 2.0]), rng.random(columns)
    )
    for name, columns in zip(NAMES, (12, 20, 12), strict=True)
  }


def test_sorting_changes_no_function():
  found = random_importance()
  params = dynabert.sort(MODULE, PARAMS, found)
  np.testing.assert_allclose(logits(params), logits(PARAMS), atol=1e-5)
  for name in NAMES:
    order_H, order_F = (np.argsort(-x) for x in found[name])
    before, after = PARAMS['encoder'][name], params['encoder'][name]
    for part in ('query', 'key', 'value'):
      np.testing.assert_array_equal(
        after['mixer'][part]['kernel'],
        before['mixer'][part]['kernel'][:, order_H],
      )
    np.testing.assert_array_equal(
      after['mlp']['out']['kernel'], before['mlp']['out']['kernel'][order_F]
    )
    assert (order_H != np.arange(HEADS)).any()
  # What is not of heads and columns is the same.
  assert params['head_out'] is PARAMS['head_out']
  assert jax.tree.structure(params) == jax.tree.structure(PARAMS)


def test_equals_keep_their_order():
  found = {
    name: dynabert.Importance(np.zeros(HEADS), np.arange(columns) % 2)
    for name, columns in zip(NAMES, (12, 20, 12), strict=True)
  }
  params = dynabert.sort(MODULE, PARAMS, found)
  for name in NAMES:
    before, after = PARAMS['encoder'][name], params['encoder'][name]
    jax.tree.map(np.testing.assert_array_equal, after['mixer'], before['mixer'])
    bias_F = before['mlp']['in']['bias']
    np.testing.assert_array_equal(
      after['mlp']['in']['bias'], np.concatenate([bias_F[1::2], bias_F[::2]])
    )


def masked(params, num_heads):
  """The whole network, of which later heads and columns say nothing."""
  blocks = {}
  for name, block in params['encoder'].items():
    if name != 'norm_out':
      block = jax.tree.map(np.array, block)
      columns = block['mlp']['out']['kernel'].shape[0] * num_heads // HEADS
      block['mixer']['out']['kernel'][num_heads:] = 0
      block['mlp']['out']['kernel'][columns:] = 0
    blocks[name] = block
  return {**params, 'encoder': blocks}


@pytest.mark.parametrize(
  ('width', 'num_heads'),
  slow.after(1, zip(dynabert.WIDTHS, (1, 2, 3, 4), strict=True)),
)
def test_a_sub_network_is_the_whole_one_under_a_mask(width, num_heads):
  module = dynabert.narrow_module(MODULE, width)
  params = dynabert.narrow(MODULE, PARAMS, width)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *BATCH)['params']
  )
  jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params,
               shapes)  # fmt: skip
  kernel = params['encoder']['layer_1']['mixer']['query']['kernel']
  assert kernel.shape == (D, num_heads, K)
  assert params['encoder']['layer_1']['mlp']['in']['bias'].shape == (
    20 * num_heads // HEADS,
  )
  actual_BC = module.apply({'params': params}, *BATCH)
  np.testing.assert_allclose(
    actual_BC, logits(masked(PARAMS, num_heads)), atol=1e-5
  )


def test_gradients_reach_the_whole():
  module = dynabert.narrow_module(MODULE, 0.5)

  def of_slice(params):
    own = dynabert.narrow(MODULE, params, 0.5)
    return jnp.square(module.apply({'params': own}, *BATCH)).sum()

  def of_mask(params):
    keep = jax.tree.map(lambda a, b: (a == b) * 1.0, masked(PARAMS, 2), PARAMS)
    own = jax.tree.map(jnp.multiply, params, keep)
    return jnp.square(MODULE.apply({'params': own}, *BATCH)).sum()

  actual, expected = (jax.jit(jax.grad(f))(PARAMS) for f in (of_slice, of_mask))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    actual,
    expected,
  )
  first = actual['encoder']['layer_0']['mixer']['query']['kernel']
  assert np.abs(first[:, 2:]).max() == 0
  assert np.abs(first[:, :2]).max() > 0.01


def loss_of(params):
  return jnp.square(MODULE.apply({'params': params}, *BATCH)).sum()


def test_importance_is_the_slope_of_a_mask():
  """Of a head as a factor of its output, of a column of its two halves."""
  grads = jax.jit(jax.grad(loss_of))(PARAMS)
  found = dynabert.importance(MODULE, PARAMS, grads)
  assert list(found) == list(NAMES)

  def scaled(masks):
    blocks = dict(PARAMS['encoder'])
    for name, (heads_H, first_F, second_F) in masks.items():
      block = dict(blocks[name])
      out = block['mixer']['out']
      block['mixer'] = {
        **block['mixer'],
        'out': {**out, 'kernel': out['kernel'] * heads_H[:, None, None]},
      }
      first, second = block['mlp']['in'], block['mlp']['out']
      block['mlp'] = {
        'in': {
          'kernel': first['kernel'] * first_F[None],
          'bias': first['bias'] * first_F,
        },
        'out': {**second, 'kernel': second['kernel'] * second_F[:, None]},
      }
      blocks[name] = block
    return loss_of({**PARAMS, 'encoder': blocks})

  masks = {
    name: (np.ones(HEADS, 'f4'), *(np.ones(len(x.columns_F), 'f4'),) * 2)
    for name, x in found.items()
  }
  slopes = jax.jit(jax.grad(scaled))(masks)
  for name, (heads_H, first_F, second_F) in slopes.items():
    np.testing.assert_allclose(
      found[name].heads_H, np.abs(heads_H), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
      found[name].columns_F,
      np.abs(first_F) + np.abs(second_F),
      rtol=1e-3,
      atol=1e-5,
    )
    assert found[name].heads_H.max() > 1e-3


def test_sorted_by_importance_the_narrow_network_is_nearer():
  """Heads that say nothing are found, wherever they are."""
  params = masked(PARAMS, 2)
  turned = {
    name: dynabert.Importance(np.arange(HEADS), np.arange(columns))
    for name, columns in zip(NAMES, (12, 20, 12), strict=True)
  }
  # Those that speak come last.
  params = dynabert.sort(MODULE, params, turned)
  grads = jax.jit(jax.grad(loss_of))(params)
  found = dynabert.importance(MODULE, params, grads)
  again = dynabert.sort(MODULE, params, found)
  module = dynabert.narrow_module(MODULE, 0.5)
  own, other = (
    module.apply({'params': dynabert.narrow(MODULE, p, 0.5)}, *BATCH)
    for p in (again, params)
  )
  whole_BC = logits(params)
  np.testing.assert_allclose(own, whole_BC, atol=1e-5)
  assert np.abs(other - whole_BC).max() > 0.01


def test_the_config_of_a_sub_network():
  values = {
    'model.width': 12, 'model.num_heads': HEADS, 'model.mlp_width': F,
    'model.num_layers': 2,
    'model.layers': {'1': {'mlp_width': 20, 'mixer': 'local', 'window': 3}},
  }  # fmt: skip
  config = config_lib.neutral(values)
  module = build.sequence_classifier(config, 11, C)
  narrow = dynabert.narrow_config(config, module, 0.5)
  assert narrow.model.layers.to_dict() == {
    '0': {'num_heads': 2, 'head_width': 3, 'mlp_width': 5},
    '1': {
      'num_heads': 2, 'head_width': 3, 'mlp_width': 10,
      'mixer': 'local', 'window': 3,
    },
  }  # fmt: skip
  assert config.model.layers.to_dict() == values['model.layers']
  # The same as the network has that is made of the network.
  for row, kind in zip(
    narrow.model.layers.values(),
    dynabert.narrow_module(module, 0.5).layers,
    strict=True,
  ):
    settings = {
      **dict(kind.settings),
      'mlp_width': kind.mlp_width,
      'mixer': kind.mixer,
    }
    assert {name: settings[name] for name in row} == row.to_dict()


def test_widths_of_few_heads_are_rounded_and_never_none():
  # Heads have their share of the width, unless it is said.
  kind = layer(num_heads=3, head_width=None, mlp_width=10)
  module, params = network([kind])
  for width, num_heads, columns in (
    (0.1, 1, 3), (0.5, 2, 6), (0.75, 2, 6), (1.0, 3, 10)
  ):  # fmt: skip
    own = dynabert.narrow_module(module, width).layers[0]
    assert dict(own.settings)['num_heads'] == num_heads
    assert dict(own.settings)['head_width'] == 4
    assert own.mlp_width == columns
    block = dynabert.narrow(module, params, width)['encoder']['layer_0']
    assert block['mlp']['in']['kernel'].shape == (D, columns)


@pytest.mark.parametrize('kind', ['classifier', 'pair_classifier'])
def test_the_loss(kind):
  module, params = network(LAYERS[:2], kind)
  batch = batch_of(kind)
  teacher = capture(module, params, *batch)
  student = capture(
    dynabert.narrow_module(module, 0.5),
    dynabert.narrow(module, params, 0.5),
    *batch,
  )
  layers = maps.layer_map('first', 2, 2)
  value_B = dynabert.loss(student, teacher, layers, lambda1=2.0, lambda2=0.3)
  expected_B = 2.0 * losses.soft_cross_entropy(student.output, teacher.output)
  rows = len(student.keep_BT)
  for own, other in zip(student.states, teacher.states, strict=True):
    square_R = [
      np.square(own[r] - other[r])[np.asarray(teacher.keep_BT[r])].mean()
      for r in range(rows)
    ]
    expected_B += 0.3 * np.reshape(square_R, (-1, B)).mean(axis=0)
  assert value_B.shape == (B,)
  np.testing.assert_allclose(value_B, expected_B, rtol=1e-5)
  # Of a shallower student by its map.
  short = student._replace(states=student.states[:2])
  last = maps.layer_map('last', 1, 2)
  value_B = dynabert.loss(short, teacher, last, lambda1=0.0, lambda2=1.0)
  per_row = hidden.state_mse(
    student.states[1], teacher.states[2], teacher.keep_BT
  )
  np.testing.assert_allclose(value_B, hidden.over_texts(per_row, B), rtol=1e-5)


def test_what_the_loss_cannot_take():
  seen = Captured(np.zeros((B, C)), np.ones((B, T), bool), (), *({},) * 5)
  layers = maps.layer_map('first', 1, 1)
  with pytest.raises(ValueError, match="captured with 'states'"):
    dynabert.loss(seen, seen, layers)
  with pytest.raises(ValueError, match=r'logits of classes are \[B, C\]'):
    dynabert.loss(seen._replace(output=np.zeros((B, T, C))), seen, layers)


@pytest.mark.parametrize(
  ('kind', 'message'),
  [
    (layer('performer'), 'layer 1 .* performer may have heads that differ'),
    (layer('fnet'), 'fnet may have heads'),
    (layer(relative_bias='alibi'), 'slopes of alibi'),
    (layer(num_heads=4, num_kv_heads=2), 'keys and values have a number'),
    (
      dataclasses.replace(layer(), mlp_rank=3),
      'feed-forward part is of low rank',
    ),
  ],
)
def test_networks_without_sub_networks(kind, message):
  module = dataclasses.replace(MODULE, layers=(LAYERS[0], kind))
  for call in (
    lambda: dynabert.importance(module, {}, {}),
    lambda: dynabert.sort(module, {}, {}),
    lambda: dynabert.narrow(module, {}, 0.5),
    lambda: dynabert.narrow_module(module, 0.5),
  ):
    with pytest.raises(ConfigError, match=message):
      call()


@pytest.mark.parametrize('width', [0.0, 1.5, -1.0])
def test_what_is_no_width(width):
  with pytest.raises(ConfigError, match=f'at most 1, not {width}'):
    dynabert.narrow(MODULE, PARAMS, width)
