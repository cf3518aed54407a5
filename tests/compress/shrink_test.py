"""Smaller models: they give what the masked ones give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from effformer import config_check, pretrained
from effformer.compress import artefact, shrink, tensors
from effformer.compress.prune import masks as masks_lib
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.models import build
from tests.compress.prune.models import (
  CLASSES,
  IDS_BT,
  VOCABULARY,
  classifier,
  published,
  some,
)
from tests.pretrained.golden_test import folder_of, golden, outputs

# Many models are compiled.
pytestmark = pytest.mark.slow

KINDS = ('head', 'mlp')
TOLERANCE = 1e-5
NAMES = ('bert-classifier', 'gpt2-predictor', 'vit-classifier')


def units_of(model, kinds=KINDS):
  return units_lib.of(model.config, model.params, kinds)


def some_of(units, seed=0):
  return {
    name: some(own.shape, seed + index)
    for index, (name, own) in enumerate(units.items())
  }


def check_equal(model, masks, kinds=KINDS):
  """Masked = shrunk; the shrunk config and parameters."""
  units = units_of(model, kinds)
  masked = model.outputs(params=masks_lib.apply(model.params, masks, units))
  config, params = shrink.shrink(model.config, model.params, masks)
  np.testing.assert_allclose(
    model.outputs(config, params), masked, atol=TOLERANCE, rtol=0
  )
  return config, params


def num_params(params):
  return sum(np.size(x) for x in jax.tree.leaves(params))


@pytest.mark.parametrize('name', NAMES)
def test_shrunk_published_models_give_what_masked_ones_give(name, tmp_path):
  model = published(name, tmp_path / 'model')
  units = units_of(model)
  masks = some_of(units)
  config, params = check_equal(model, masks)
  whole = model.outputs()
  assert np.abs(model.outputs(config, params) - whole).max() > 1e-3
  # All that is masked is gone, and nothing else.
  facts = masks_lib.sparsity(model.params, masks, units)
  assert facts.num_removed > 0
  assert num_params(params) == num_params(model.params) - facts.num_removed


def test_a_shrunk_model_is_stored_and_read(tmp_path):
  model = pretrained.load(folder_of('bert-classifier', tmp_path / 'bert'))
  units = units_lib.of(model.config, model.params, KINDS)
  config, params = shrink.shrink(model.config, model.params, some_of(units))
  small = model._replace(config=config, params=params)
  sizes = [
    artefact.save(artefact.make(own, own.params), tmp_path / name)
    for name, own in (('whole', model), ('small', small))
  ]
  assert sizes[1] < sizes[0] - 4 * 100
  again = artefact.load(tmp_path / 'small')
  assert again.config.to_dict() == config.to_dict()
  arrays = golden('bert-classifier')[2]
  np.testing.assert_array_equal(
    outputs(again._replace(params=again.numbers), arrays),
    outputs(small, arrays),
  )


# What its heads have to themselves differs; the others are like `full`.
MECHANISMS = [
  ('full', {}),
  ('longformer', {'mixer__attention_window': 4, 'mixer__global_tokens': 2}),
  ('linformer', {'mixer__rank': 4, 'mixer__sharing': 'none'}),
  ('linformer', {'mixer__rank': 4, 'mixer__mixing': 'dynamic'}),
  ('nystromformer', {'mixer__rank': 4, 'mixer__conv_width': 3}),
]
ALIKE = [
  ('linear', {}), ('local', {'mixer__window': 3}),
  ('sparse', {'mixer__stride': 4, 'mixer__columns': 2}),
  ('linformer', {'mixer__rank': 4, 'mixer__sharing': 'headwise'}),
  ('linformer',
   {'mixer__rank': 4, 'mixer__mixing': 'conv', 'mixer__sharing': 'none'}),
]  # fmt: skip
# Two heads of three stay, and other numbers of columns.
HEADS = {
  'encoder/layer_0:head': np.array([True, False, True]),
  'encoder/layer_1:head': np.array([False, True, True]),
  'encoder/layer_2:head': np.array([True, True, True]),
  'encoder/layer_0:mlp': np.arange(10) % 3 > 0,
  'encoder/layer_2:mlp': np.arange(10) == 7,
}


@pytest.mark.parametrize(
  ('mechanism', 'keys'),
  [
    *MECHANISMS,
    *(pytest.param(*row, marks=pytest.mark.slow) for row in ALIKE),
  ],
  ids=str,
)
def test_shrunk_classifiers_of_each_mechanism(mechanism, keys):
  model = classifier(mechanism, model__conv_width=3, **keys)
  config, params = check_equal(model, HEADS)
  # A run would obey it.
  config_check.check(config, common)
  rows = config.model.layers.to_dict()
  assert rows == {
    '0': {'num_heads': 2, 'head_width': 4, 'mlp_width': 6},
    '1': {'num_heads': 2, 'head_width': 4},
    '2': {'mlp_width': 1},
  }
  mixer = params['encoder']['layer_1']['mixer']
  assert mixer['query']['kernel'].shape == (12, 2, 4)
  assert mixer['out']['kernel'].shape == (2, 4, 12)


@pytest.mark.parametrize('norm', ['layer', 'rms', 'affine'])
def test_columns_of_products_leave(norm):
  """They stand between `in` and `out_low`; the ranks stay."""
  model = classifier(model__mlp_rank=4, model__norm=norm)
  config, params = check_equal(model, HEADS)
  config_check.check(config, common)
  mlp = params['encoder']['layer_0']['mlp']
  shapes = {name: x['kernel'].shape for name, x in mlp.items()}
  assert shapes == {
    'in_low': (12, 4), 'in': (4, 6), 'out_low': (6, 4), 'out': (4, 12),
  }  # fmt: skip
  masks = {'encoder/layer_1:layer': np.array([False])}
  check_equal(model, masks, ('layer',))


GROUPED = (('0', (('num_heads', 6), ('num_kv_heads', 2), ('head_width', 3))),)


@pytest.mark.parametrize(
  ('mechanism', 'keys'),
  [('full', {}), ('longformer', {}), ('nystromformer', {'mixer__rank': 4})],
)
def test_groups_leave_with_their_heads(mechanism, keys):
  model = classifier(mechanism, rows=GROUPED, **keys)
  masks = {'encoder/layer_0:kv_group': np.array([False, True])}
  config, params = check_equal(model, masks, ('kv_group',))
  config_check.check(config, common)
  assert config.model.layers['0'].to_dict() == {
    'num_heads': 3, 'num_kv_heads': 1, 'head_width': 3,
  }  # fmt: skip
  mixer = params['encoder']['layer_0']['mixer']
  assert mixer['query']['kernel'].shape == (12, 3, 3)
  assert mixer['key']['kernel'].shape == (12, 1, 3)


def test_heads_that_share_keys_leave_in_equal_numbers():
  model = classifier(rows=GROUPED)
  units = units_of(model, ('head', 'kv_group'))
  assert set(units) == {
    'encoder/layer_0:kv_group', *(f'encoder/layer_{i}:head' for i in range(3)),
  }  # fmt: skip
  name = 'encoder/layer_0:head'
  even = np.array([True, False, True, False, True, True])
  config, params = check_equal(model, {name: even}, ('head',))
  mixer = params['encoder']['layer_0']['mixer']
  assert mixer['query']['kernel'].shape == (12, 4, 3)
  assert mixer['key']['kernel'].shape == (12, 2, 3)
  assert config.model.layers['0'].num_kv_heads == 2
  # A group of which all heads leave, and a mask of its own beside it.
  one = np.array([False] * 3 + [True, False, True])
  config, _ = check_equal(model, {name: one}, ('head',))
  assert config.model.layers['0'].num_kv_heads == 1
  both = {name: even, 'encoder/layer_0:kv_group': np.array([True, False])}
  config, _ = check_equal(model, both, ('head', 'kv_group'))
  assert config.model.layers['0'].num_heads == 2
  uneven = np.array([True, False, False, False, True, True])
  with pytest.raises(ConfigError, match=r'\[1, 2\] would stay'):
    shrink.shrink(model.config, model.params, {name: uneven})


def test_a_share_group_is_shrunk_once():
  rows = tuple((index, (('share', 'a'),)) for index in ('0', '2'))
  model = classifier(rows=rows)
  masks = {
    'encoder/shared_a:head': np.array([False, True, False]),
    'encoder/shared_a:mlp': np.arange(10) < 4,
    'encoder/layer_1:mlp': np.arange(10) < 7,
  }
  assert set(units_of(model)) == {
    f'encoder/{place}:{kind}'
    for place in ('shared_a', 'layer_1')
    for kind in KINDS
  }
  config, params = check_equal(model, masks)
  shrunk = {'share': 'a', 'num_heads': 1, 'head_width': 4, 'mlp_width': 4}
  assert config.model.layers.to_dict() == {
    '0': shrunk, '1': {'mlp_width': 7}, '2': shrunk,
  }  # fmt: skip
  assert set(params['encoder']) == {'shared_a', 'layer_1', 'norm_out'}
  # The layers of the group leave together.
  masks = {'encoder/shared_a:layer': np.array([False])}
  config, params = check_equal(model, masks, ('layer',))
  assert config.model.num_layers == 1
  assert set(params['encoder']) == {'layer_0', 'norm_out'}


def test_layers_leave_with_what_leaves_the_others():
  model = classifier(model__conv_width=3)
  masks = {
    'encoder/layer_1:layer': np.array([False]),
    'encoder/layer_2:layer': np.array([True]),
    'encoder/layer_1:mlp': np.arange(10) < 5,
    'encoder/layer_2:mlp': np.arange(10) < 3,
  }
  config, _ = check_equal(model, masks, ('layer', 'mlp'))
  assert config.model.num_layers == 2
  assert config.model.layers.to_dict() == {'1': {'mlp_width': 3}}


def test_masks_that_keep_all_change_nothing():
  model = classifier()
  units = units_of(model, (*KINDS, 'layer'))
  masks = {name: np.ones(own.shape, bool) for name, own in units.items()}
  for given in (masks, {}):
    config, params = shrink.shrink(model.config, model.params, given)
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_what_is_shrunk_can_be_shrunk_again():
  """At once and in two steps are the same."""
  model = classifier()
  first = {
    'encoder/layer_0:head': np.array([True, False, True]),
    'encoder/layer_0:mlp': np.arange(10) != 4,
  }
  second = {
    'encoder/layer_0:head': np.array([False, True]),
    'encoder/layer_0:mlp': np.arange(9) != 8,
  }
  steps = shrink.shrink(
    *shrink.shrink(model.config, model.params, first), second
  )
  once = shrink.shrink(
    model.config,
    model.params,
    {
      'encoder/layer_0:head': np.array([False, False, True]),
      'encoder/layer_0:mlp': ~np.isin(np.arange(10), [4, 9]),
    },
  )
  assert steps[0] == once[0]
  jax.tree.map(np.testing.assert_array_equal, steps[1], once[1])


def permuted(params, units, orders):
  """The same model with its units in another order."""
  flat = dict(tensors.flatten(params))
  for name, own in units.items():
    for part in own.parts:
      flat[part.path] = np.take(flat[part.path], orders[name], part.axis)
  tree = {}
  for path, x in flat.items():
    *places, last = path.split('/')
    node = tree
    for place in places:
      node = node.setdefault(place, {})
    node[last] = x
  return tree


@pytest.mark.parametrize('seed', range(3))
def test_shrinking_commutes_with_the_order_of_units(seed):
  model = classifier()
  units, rng = units_of(model), np.random.default_rng(seed)
  orders = {name: rng.permutation(own.shape[0]) for name, own in units.items()}
  other = permuted(model.params, units, orders)
  np.testing.assert_allclose(
    model.outputs(params=other), model.outputs(), atol=TOLERANCE
  )
  masks = some_of(units, seed)
  turned = {name: mask[orders[name]] for name, mask in masks.items()}
  config, params = shrink.shrink(model.config, model.params, masks)
  other_config, other_params = shrink.shrink(model.config, other, turned)
  assert config == other_config
  np.testing.assert_allclose(
    model.outputs(config, params),
    model.outputs(other_config, other_params),
    atol=TOLERANCE,
  )
  # The order of those that stay is what it was.
  name = 'encoder/layer_1:mlp'
  kept = orders[name][turned[name]]
  np.testing.assert_array_equal(
    other_params['encoder']['layer_1']['mlp']['in']['kernel'],
    model.params['encoder']['layer_1']['mlp']['in']['kernel'][:, kept],
  )


@pytest.mark.parametrize(
  'mechanism', ['performer', 'bigbird', 'retnet', 'fnet', 'nsa', 'synthesizer']
)
def test_heads_that_know_of_each_other_cannot_leave(mechanism):
  keys = {'mixer__block': 2} if mechanism == 'nsa' else {}
  model = classifier(mechanism, model__attention_bias=False, **keys)
  with pytest.raises(ConfigError, match="nothing to prune of kind 'head'"):
    units_of(model, ('head',))
  check_equal(model, {'encoder/layer_1:mlp': np.arange(10) < 6}, ('mlp',))


def test_alternate_patterns_and_slopes_are_no_separate_heads():
  split = classifier('sparse', mixer__stride=4, mixer__columns=2,
                     mixer__split_heads=True)  # fmt: skip
  slopes = classifier(rows=(('1', (('relative_bias', 'alibi'),)),))
  with pytest.raises(ConfigError, match='nothing to prune'):
    units_of(split, ('head',))
  assert set(units_of(slopes, ('head',))) == {
    'encoder/layer_0:head', 'encoder/layer_2:head',
  }  # fmt: skip
  biases = classifier(rows=(('0', (('relative_bias', 't5'),)),))
  check_equal(biases, HEADS)


@pytest.mark.parametrize(
  ('masks', 'words'),
  [
    ({'encoder/layer_3:mlp': np.ones(10, bool)}, 'layer_3:mlp, which is not'),
    ({'encoder/layer_0:mlp': np.ones(9, bool)}, r'\(9,\).*\(10,\)'),
    ({'encoder/layer_0:mlp': np.zeros(10, bool)}, 'nothing would be left'),
    ({'encoder/layer_1:head': np.zeros(3, bool)}, 'nothing would be left'),
    ({'encoder/layer_0:colour': np.ones(3, bool)}, "kind 'colour'"),
    ({'embedding:embedding': np.ones(VOCABULARY, bool)}, 'shrink_vocabulary'),
    ({'encoder/layer_0/mlp/in/kernel': np.ones((12, 10), bool)}, 'stay zeros'),
    (
      {f'encoder/layer_{i}:layer': np.zeros(1, bool) for i in range(3)},
      'at least one of them',
    ),
    ({'encoder/layer_0:kv_group': np.ones(3, bool)}, "of kind 'kv_group'"),
  ],
)
def test_masks_that_do_not_fit(masks, words):
  model = classifier()
  with pytest.raises(ConfigError, match=words) as caught:
    shrink.shrink(model.config, model.params, masks)
  assert len(str(caught.value).splitlines()) <= 5


# Vocabularies.


@pytest.mark.parametrize(
  'name', ['bert-predictor', 'gpt2-predictor', 'bert-classifier']
)
def test_a_smaller_vocabulary_gives_the_same_of_ids_that_stay(name, tmp_path):
  model = published(name, tmp_path / 'model')
  ids_BT, lengths_B = model.inputs
  rng = np.random.default_rng(0)
  more = rng.choice(model.vocabulary_size, 5, replace=False)
  keep_ids = np.union1d(np.unique(ids_BT), more)
  assert len(keep_ids) < model.vocabulary_size
  params, new_id_Y = shrink.shrink_vocabulary(
    model.params, rng.permutation(keep_ids)
  )
  assert new_id_Y.shape == (model.vocabulary_size,)
  np.testing.assert_array_equal(np.flatnonzero(new_id_Y >= 0), keep_ids)
  np.testing.assert_array_equal(new_id_Y[keep_ids], np.arange(len(keep_ids)))
  y = model.outputs(
    params=params,
    vocabulary_size=len(keep_ids),
    inputs=(new_id_Y[ids_BT], lengths_B),
  )
  before = model.outputs()
  expected = before[..., keep_ids] if 'predictor' in name else before
  np.testing.assert_allclose(y, expected, atol=TOLERANCE, rtol=0)


def test_a_dense_head_of_tokens_loses_their_columns():
  model = classifier()
  module = build.token_predictor(model.config, VOCABULARY, causal=False)
  inputs = model.inputs
  params = jax.jit(module.init)(jax.random.key(0), *inputs)['params']
  keep_ids = np.unique(IDS_BT)[1:]
  smaller, new_id_Y = shrink.shrink_vocabulary(params, keep_ids)
  ids_BT = np.where(new_id_Y[IDS_BT] < 0, keep_ids[0], IDS_BT)
  module_after = build.token_predictor(
    model.config, len(keep_ids), causal=False
  )
  np.testing.assert_allclose(
    module_after.apply({'params': smaller}, new_id_Y[ids_BT], inputs[1]),
    module.apply({'params': params}, ids_BT, inputs[1])[..., keep_ids],
    atol=TOLERANCE,
  )


@pytest.mark.parametrize(
  ('ids', 'words'),
  [
    ([0, VOCABULARY], f'0 to {VOCABULARY - 1}'), ([-1, 2], 'got -1 to 2'),
    ([1, 2, 2], '1 of them again'), ([], 'at least one'),
    (np.zeros(0, np.int32), 'at least one of them'),
    ([0.5], 'whole numbers'), ([[1, 2]], 'a row'),
  ],
)  # fmt: skip
def test_ids_that_cannot_be_kept(ids, words):
  with pytest.raises(ConfigError, match=words):
    shrink.shrink_vocabulary(classifier().params, ids)


def test_quantities_have_no_vocabulary():
  model = classifier(model__front_end='continuous')
  with pytest.raises(ConfigError, match='looks no ids up'):
    shrink.shrink_vocabulary(model.params, [1])
  assert jnp.isfinite(model.outputs()).all()
  assert model.outputs().shape == (2, CLASSES)
