"""Sub-networks: the same function sorted, a mask where they are narrow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import config as config_lib
from effformer.compress.distill import dynabert, hidden, losses, maps
from effformer.compress.distill.capture import Captured, capture
from effformer.compress.prune import scores
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.models import build
from tests import slow
from tests.compress.networks import BATCH, B, C, D, K, T, Y, batch_of
from tests.models.parameters import random_variables

# Many models are compiled.
pytestmark = pytest.mark.slow

HEADS, COLUMNS = 4, (12, 20, 12)
CONFIG = config_lib.neutral({
  'model.width': D, 'model.num_heads': HEADS, 'model.num_layers': 4,
  'model.attention_bias': True, 'mixer.form': 'dense', 'data.max_length': 9,
  'model.layers': {
    '0': {'relative_bias': 't5', 'mlp_width': 12, 'head_width': K},
    '1': {'mixer': 'linear', 'mlp_width': 20},
    **{
      index: {'mixer': 'local', 'window': 3, 'mlp_width': 12, 'share': 'a'}
      for index in '23'
    },
  },
})  # fmt: skip
NAMES = ('layer_0', 'layer_1', 'shared_a')


def module_of(config):
  return build.sequence_classifier(config, Y, C)


MODULE = module_of(CONFIG)
PARAMS = random_variables(MODULE, *BATCH)['params']


@jax.jit
def logits(params):
  return MODULE.apply({'params': params}, *BATCH)


def scores_of(heads, columns):
  """Scores from those of heads, and from numbers of columns."""
  return {
    f'encoder/{name}:{kind}': x
    for name, count in zip(NAMES, COLUMNS, strict=True)
    for kind, x in (('head', heads()), ('mlp', columns(count)))
  }


def test_sorting_changes_no_function():
  rng = np.random.default_rng(0)
  found = scores_of(lambda: rng.permutation([3.0, 1.0, 0.0, 2.0]), rng.random)
  params = dynabert.sort(CONFIG, PARAMS, found)
  np.testing.assert_allclose(logits(params), logits(PARAMS), atol=1e-5)
  for name in NAMES:
    order_H, order_F = (
      np.argsort(-found[f'encoder/{name}:{kind}']) for kind in dynabert.KINDS
    )
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
  assert params['head_out']['kernel'] is PARAMS['head_out']['kernel']
  assert jax.tree.structure(params) == jax.tree.structure(PARAMS)


def test_equals_keep_their_order():
  found = scores_of(lambda: np.zeros(HEADS), lambda count: np.arange(count) % 2)
  params = dynabert.sort(CONFIG, PARAMS, found)
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
  config, params = dynabert.narrow(CONFIG, PARAMS, width)
  module = module_of(config)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *BATCH)['params']
  )
  jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params,
               shapes)  # fmt: skip
  kernel = params['encoder']['layer_1']['mixer']['query']['kernel']
  assert kernel.shape == (D, num_heads, D // HEADS)
  assert params['encoder']['layer_1']['mlp']['in']['bias'].shape == (
    20 * num_heads // HEADS,
  )
  actual_BC = module.apply({'params': params}, *BATCH)
  np.testing.assert_allclose(
    actual_BC, logits(masked(PARAMS, num_heads)), atol=1e-5
  )


def test_gradients_reach_the_whole():
  """And the network is built where the parameters are traced."""

  def of_slice(params):
    config, own = dynabert.narrow(CONFIG, params, 0.5)
    output = module_of(config).apply({'params': own}, *BATCH)
    return jnp.square(output).sum()

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


def test_sorted_by_importance_the_narrow_network_is_nearer():
  """Heads that say nothing are found, wherever they are."""
  # Those that speak come last.
  turned = scores_of(lambda: np.arange(HEADS), np.arange)
  params = dynabert.sort(CONFIG, masked(PARAMS, 2), turned)

  def loss(params, batch):
    return jnp.square(MODULE.apply({'params': params}, *batch)).sum()

  units = units_lib.of(CONFIG, params, dynabert.KINDS)
  found = scores.taylor(loss, params, [BATCH], units)
  again = dynabert.sort(CONFIG, params, found)
  config, own = dynabert.narrow(CONFIG, again, 0.5)
  _, other = dynabert.narrow(CONFIG, params, 0.5)
  apply = jax.jit(lambda p: module_of(config).apply({'params': p}, *BATCH))
  whole_BC = logits(params)
  np.testing.assert_allclose(apply(own), whole_BC, atol=1e-5)
  assert np.abs(apply(other) - whole_BC).max() > 0.01


def test_the_config_of_a_sub_network():
  config, _ = dynabert.narrow(CONFIG, PARAMS, 0.5)
  own = {'num_heads': 2, 'head_width': 3}
  shared = {'mixer': 'local', 'window': 3, 'share': 'a', **own, 'mlp_width': 6}
  assert config.model.layers.to_dict() == {
    '0': {'relative_bias': 't5', **own, 'head_width': K, 'mlp_width': 6},
    '1': {'mixer': 'linear', **own, 'mlp_width': 10},
    '2': shared, '3': shared,
  }  # fmt: skip
  assert dynabert.narrow(CONFIG, PARAMS, 1.0)[0] == CONFIG


@pytest.mark.parametrize(
  ('width', 'num_heads', 'columns'),
  [(0.1, 1, 3), (0.5, 2, 6), (0.75, 2, 6), (1.0, 3, 10)],
)
def test_widths_of_few_heads_are_rounded_and_never_none(
  width, num_heads, columns
):
  config = config_lib.neutral({
    'model.width': D, 'model.num_heads': 3, 'model.mlp_width': 10,
    'model.num_layers': 1,
  })  # fmt: skip
  params = random_variables(module_of(config), *BATCH)['params']
  block = dynabert.narrow(config, params, width)[1]['encoder']['layer_0']
  assert block['mlp']['in']['kernel'].shape == (D, columns)
  assert block['mixer']['query']['kernel'].shape == (D, num_heads, 4)


@pytest.mark.parametrize(
  ('number', 'depth', 'kept'),
  [
    (12, 0.5, (0, 2, 4, 6, 8, 10)),
    (12, 0.75, (0, 1, 2, 4, 5, 6, 8, 9, 10)),
    (6, 0.5, (0, 2, 4)), (3, 1.0, (0, 1, 2)), (3, 0.1, (0,)),
  ],
)  # fmt: skip
def test_layers_of_a_depth(number, depth, kept):
  assert dynabert.kept_layers(number, depth) == kept


def test_a_sub_network_of_fewer_layers():
  config, params = dynabert.narrow(CONFIG, PARAMS, 0.5, 0.75)
  _, whole = dynabert.narrow(CONFIG, PARAMS, 0.5)
  assert dynabert.kept_layers(4, 0.75) == (0, 1, 2)
  assert config.model.num_layers == 3
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  short = dataclasses.replace(module_of(config), layers=MODULE.layers[:3])
  y_BC = module_of(config).apply({'params': params}, *BATCH)
  np.testing.assert_allclose(
    y_BC, short.apply({'params': masked(PARAMS, 2)}, *BATCH), atol=1e-5
  )


@pytest.mark.parametrize('kind', ['classifier', 'pair_classifier'])
def test_the_loss(kind):
  config = config_lib.changed(
    CONFIG,
    {
      'model.num_layers': 2,
      'model.layers': {'1': {'mixer': 'linear', 'mlp_width': 20}},
    },
  )
  batch = batch_of(kind)
  module = build.of_kind(kind, config, Y, C)
  params = random_variables(module, *batch)['params']
  teacher = capture(module, params, *batch)
  config, params = dynabert.narrow(config, params, 0.5)
  student = capture(build.of_kind(kind, config, Y, C), params, *batch)
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
  'row',
  [
    {'mixer': 'performer'}, {'mixer': 'fnet'}, {'relative_bias': 'alibi'},
    {'num_kv_heads': 2},
  ],
  ids=str,
)  # fmt: skip
def test_networks_without_sub_networks(row):
  config = config_lib.changed(
    CONFIG, {'model.num_layers': 2, 'model.layers': {'1': row}}
  )
  params = random_variables(module_of(config), *BATCH)['params']
  for call in (
    lambda: dynabert.sort(config, params, {}),
    lambda: dynabert.narrow(config, params, 0.5),
  ):
    with pytest.raises(ConfigError, match='encoder/layer_1 has no sub-netw'):
      call()


@pytest.mark.parametrize('share', [0.0, 1.5, -1.0])
def test_what_is_no_width_or_depth(share):
  for name, shares in (('width', (share,)), ('depth', (1.0, share))):
    with pytest.raises(
      ConfigError, match=f'a {name} .* at most 1, not {share}'
    ):
      dynabert.narrow(CONFIG, PARAMS, *shares)


def test_scores_of_another_network():
  with pytest.raises(ConfigError, match='layer_7:head, which is not among'):
    dynabert.sort(CONFIG, PARAMS, {'encoder/layer_7:head': np.ones(HEADS)})
