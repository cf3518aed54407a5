"""From config to model: what layers inherit, and how large models are."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from configs import common, lra_listops, lra_text
from effformer import attention
from effformer.models import build
from effformer.shapes import Tokens


def make_config(mechanism='full', layers=None, **keys):
  config = common.base(common.Choice(mechanism))
  config.task = 'text'
  config.update_from_flattened_dict(
    {
      'model.num_layers': 3,
      'model.width': 12,
      'model.num_heads': 3,
      'model.mlp_width': 10,
      'data.max_length': 16,
      **{key.replace('__', '.'): value for key, value in keys.items()},
    }
  )
  with config.unlocked():
    for index, row in (layers or {}).items():
      config.model.layers[index] = row
  return config.lock()


def settings_of(layer):
  return dict(layer.settings)


def test_facts_of_the_model_are_those_of_each_layer():
  config = make_config(
    'local',
    mixer__window=5,
    model__activation='relu',
    model__conv_width=3,
    model__attention_dropout=0.25,
  )
  layers = build.layer_configs(config)
  assert len(layers) == 3
  assert len(set(layers)) == 1
  layer = layers[0]
  assert (layer.mixer, layer.mlp_width, layer.activation) == (
    'local',
    10,
    'relu',
  )
  assert (layer.conv_width, layer.share) == (3, '')
  assert settings_of(layer) == {
    'window': 5,
    'block': 0,
    'use_bias': False,
    'num_heads': 3,
    'head_width': 4,
    'dropout': 0.25,
    'rotary': False,
  }
  assert list(layer.settings) == sorted(layer.settings)


def test_a_hybrid_takes_over_no_setting_of_another_mechanism():
  config = make_config(
    'full',
    {'0': {'mixer': 'local', 'window': 3}, '1': {'mixer': 'local'}},
    mixer__form='dense',
    mixer__block=8,
  )
  layers = build.layer_configs(config)
  assert [layer.mixer for layer in layers] == ['local', 'local', 'full']
  first, second, third = map(settings_of, layers)
  assert first['window'] == 3
  assert 'window' not in second
  for local in (first, second):
    assert not {'form', 'block'} & set(local)
  assert third['form'] == 'dense'
  assert third['block'] == 8
  assert 'window' not in third


def test_a_layer_that_names_the_common_mechanism_inherits():
  config = make_config(
    'local', {'1': {'mixer': 'local', 'block': 4}}, mixer__window=5
  )
  settings = [settings_of(layer) for layer in build.layer_configs(config)]
  assert [s['window'] for s in settings] == [5, 5, 5]
  assert [s['block'] for s in settings] == [0, 4, 0]


def test_facts_differ_where_a_layer_says_so():
  config = make_config(
    layers={
      '0': {'mlp_width': 20, 'activation': 'relu'},
      '2': {'num_heads': 6},
    }
  )
  layers = build.layer_configs(config)
  assert [layer.mlp_width for layer in layers] == [20, 10, 10]
  assert [layer.activation for layer in layers] == ['relu', 'gelu', 'gelu']
  heads = [
    (settings['num_heads'], settings['head_width'])
    for settings in map(settings_of, layers)
  ]
  # The width of all heads together stays.
  assert heads == [(3, 4), (3, 4), (6, 2)]


def test_a_layer_has_fewer_heads_of_the_same_width():
  rows = {
    '0': {'num_heads': 2, 'head_width': 4},
    '1': {'num_heads': 6, 'num_kv_heads': 2},
    '2': {'mixer': 'linear', 'num_heads': 5, 'head_width': 2},
  }
  config = make_config(layers=rows)
  layers = [settings_of(layer) for layer in build.layer_configs(config)]
  heads = [(s['num_heads'], s['head_width']) for s in layers]
  assert heads == [(2, 4), (6, 2), (5, 2)]
  encoder = shapes_of(config)['encoder']
  shapes = [
    [
      encoder[f'layer_{i}']['mixer'][name]['kernel'].shape
      for name in ('query', 'key', 'out')
    ]
    for i in range(3)
  ]
  assert shapes == [
    [(12, 2, 4), (12, 2, 4), (2, 4, 12)],
    [(12, 6, 2), (12, 2, 2), (6, 2, 12)],
    [(12, 5, 2), (12, 5, 2), (5, 2, 12)],
  ]


def test_share_groups():
  group = {'share': 'outer'}
  config = make_config(layers={'0': group, '2': group})
  layers = build.layer_configs(config)
  assert [layer.share for layer in layers] == ['outer', '', 'outer']
  names = set(shapes_of(config)['encoder'])
  assert names == {'shared_outer', 'layer_1', 'norm_out'}


@pytest.mark.parametrize(
  ('pooling', 'extra', 'expected'),
  [('mean', 0, 16), ('cls', 0, 17), ('cls', 3, 20)],
)
def test_linformer_is_told_the_length(pooling, extra, expected):
  config = make_config(
    'linformer',
    mixer__rank=4,
    model__pooling=pooling,
    model__extra_tokens=extra,
  )
  for layer in build.layer_configs(config):
    assert settings_of(layer)['max_length'] == expected


def test_rotary_positions_are_a_matter_of_the_mixers():
  config = make_config(model__position='rotary')
  assert settings_of(build.layer_configs(config)[0])['rotary'] is True
  assert build.sequence_classifier(config, 257, 2).position == 'none'
  config = make_config(model__position='learned')
  assert settings_of(build.layer_configs(config)[0])['rotary'] is False
  assert build.sequence_classifier(config, 257, 2).position == 'learned'


def test_the_classifier_has_the_facts_of_the_config():
  config = make_config(
    model__pooling='cls',
    model__head_width=6,
    model__norm_order='post',
    model__dropout=0.5,
    model__dtype='bfloat16',
    model__remat=True,
    model__layer_drop=0.2,
    model__mlp_chunk=4,
    model__extra_tokens=3,
  )
  model = build.sequence_classifier(config, 257, 5)
  assert (model.vocabulary_size, model.num_classes) == (257, 5)
  assert (model.width, model.max_length) == (12, 16)
  assert (model.pooling, model.head_width) == ('cls', 6)
  assert (model.norm_order, model.dropout) == ('post', 0.5)
  assert model.dtype == jnp.bfloat16
  assert model.remat is True
  assert model.layer_drop == 0.2
  assert model.reversible is False
  assert model.extra_tokens == 3
  assert {layer.mlp_chunk for layer in model.layers} == {4}
  assert model.layers == build.layer_configs(config)


def test_patches_are_the_tokens_of_mixers_and_positions():
  config = make_config(
    mechanism='linformer',
    mixer__rank=4,
    model__front_end='patches',
    model__patch_size=2,
    model__channels=3,
    model__position='learned',
    model__pooling='cls',
    data__max_length=48,
  )
  model = build.sequence_classifier(config, 257, 2)
  ids_BT = jax.ShapeDtypeStruct((1, 48), jnp.int32)
  lengths_B = jax.ShapeDtypeStruct((1,), jnp.int32)
  init = jax.eval_shape(model.init, jax.random.key(0), ids_BT, lengths_B)
  params = init['params']
  # Four patches of 2 x 2 pixels of 3 values, and the vector in front.
  assert params['values']['kernel'].shape == (12, config.model.width)
  assert params['positions'].shape == (5, config.model.width)
  assert dict(model.layers[0].settings)['max_length'] == 5


def test_a_reversible_model_has_the_parameters_of_the_plain_one():
  plain, reversible = (
    make_config(model__reversible=is_it) for is_it in (False, True)
  )
  model = build.sequence_classifier(reversible, 257, 2)
  assert model.reversible is True
  assert jax.tree.map(jnp.shape, shapes_of(reversible)) == jax.tree.map(
    jnp.shape, shapes_of(plain)
  )


def shapes_of(config, vocabulary_size=257, num_classes=2):
  model = build.sequence_classifier(config, vocabulary_size, num_classes)
  ids_BT = jnp.ones((1, 8), jnp.int32)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), ids_BT, jnp.full((1,), 8, jnp.int32)
  )
  return variables['params']


def mixer_by_hand(config):
  """Parameters of one mixer."""
  model, mixer = config.model, config.mixer
  length = config.data.max_length + (model.pooling == 'cls')
  length += model.extra_tokens
  qkv_width, heads = model.qkv_width or model.width, model.num_heads
  square, head_width = model.width * qkv_width, qkv_width // heads
  if mixer.name in (
    'full',
    'linear',
    'local',
    'bigbird',
    'sparse',
    'performer',
  ):
    biases = 3 * qkv_width + model.width
    return 4 * square + biases * model.attention_bias
  if mixer.name == 'linformer':
    matrices = {'none': 2 * heads, 'headwise': 2, 'key_value': 1}
    return 4 * square + matrices[mixer.sharing] * mixer.rank * length
  if mixer.name == 'reformer':
    # Its queries are its keys.
    return 3 * square
  if mixer.name == 'longformer':
    return (4 + 3 * (mixer.global_tokens > 0)) * square
  if mixer.name == 'sinkhorn':
    return 4 * square + qkv_width * -(-length // (mixer.block or 64))
  if mixer.name == 'nystromformer':
    return 4 * square + heads * mixer.conv_width
  if mixer.name == 'fnet':
    return 0
  if mixer.name == 'retnet':
    # Values, gate and output are twice as wide.
    return 8 * square
  if mixer.name == 'nsa':
    phi = mixer.compress_block * head_width * (1 + head_width) + head_width**2
    return 8 * square + 3 * heads * model.width + 2 * phi
  # The others have no formula of one line; their own tests know their shapes.
  (layer, *_) = build.layer_configs(config)
  module = attention.build(layer.mixer, **dict(layer.settings))
  tokens = Tokens.from_lengths(jnp.full((1,), length), length)
  x_BTD = jax.ShapeDtypeStruct((1, length, model.width), jnp.float32)
  init = functools.partial(module.init, tokens=tokens)
  return count(jax.eval_shape(init, jax.random.key(0), x_BTD))


def count_by_hand(config, vocabulary_size, num_classes):
  """Parameters of a model all of whose layers are alike."""
  model = config.model
  width, length = model.width, config.data.max_length
  is_cls = model.pooling == 'cls'
  block = mixer_by_hand(config) + model.conv_width * width + 2 * 2 * width
  block += model.mlp_width * (2 * width + 1) + width
  total = vocabulary_size * width + model.num_layers * block
  total += width * (is_cls + model.extra_tokens)
  total += (length + is_cls) * width * (model.position == 'learned')
  total += 2 * width * (model.norm_order == 'pre')
  total += width * model.token_types + 2 * width * model.embedding_norm
  if model.head_width:
    total += (width + 1) * model.head_width
  return total + ((model.head_width or width) + 1) * num_classes


def count(shapes):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  'file', [lra_text, pytest.param(lra_listops, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
  'preset',
  [
    pytest.param(preset, marks=() if preset == 'modern' else pytest.mark.slow)
    for preset in common.PRESETS
  ],
)
@pytest.mark.parametrize('mechanism', attention.TABLE)
def test_every_config_builds_at_the_size_computed_by_hand(
  file, preset, mechanism
):
  sizes = (257, 2) if file is lra_text else (16, 10)
  config = file.get_config(f'{mechanism},preset={preset},quick')
  shapes = shapes_of(config, *sizes)
  assert count(shapes) == count_by_hand(config, *sizes)


@pytest.mark.parametrize(
  'keys',
  [
    {'model__pooling': 'cls', 'model__position': 'learned'},
    {'model__norm_order': 'post', 'model__head_width': 6},
    {'model__qkv_width': 6, 'model__conv_width': 5},
    {'mechanism': 'linformer', 'mixer__rank': 4, 'mixer__sharing': 'none'},
    {'mechanism': 'linformer', 'mixer__rank': 4, 'mixer__sharing': 'headwise'},
    {'model__extra_tokens': 3, 'model__position': 'learned'},
    {'mechanism': 'linformer', 'mixer__rank': 4, 'model__extra_tokens': 3},
    {'model__token_types': 3, 'model__embedding_norm': True},
    {'model__attention_bias': True, 'model__qkv_width': 6},
    {'model__pooling': 'first', 'model__head_width': 6},
  ],
  ids=lambda keys: '-'.join(map(str, keys.values())),
)
def test_options_have_the_size_computed_by_hand(keys):
  config = make_config(**keys)
  assert count(shapes_of(config)) == count_by_hand(config, 257, 2)
