"""Narrower blocks in a trained model: what stays, what begins anew."""

import json

import jax
import numpy as np
import pytest

from configs import common
from effformer import config as config_lib
from effformer import config_check, errors, tasks
from effformer.compress import bottleneck, pipeline, recipe, tensors
from effformer.compress.artefact import Compressed
from effformer.compress.places import Parent
from effformer.errors import ConfigError
from effformer.models import build
from effformer.train import preemption
from tests import slow
from tests.compress.prune.models import (
  CLASSES,
  IDS_BT,
  LENGTHS_B,
  VOCABULARY,
  classifier,
)
from tests.train.tiny_run import quiet_screen, tiny_config, write_examples

D, N = 12, 6


def initial(config):
  module = build.sequence_classifier(config, VOCABULARY, CLASSES)
  return lambda key: module.init(key, IDS_BT, LENGTHS_B)['params']


def narrow(model, width=N, layers=None, **keywords):
  config, params = bottleneck.narrow(
    model.config, model.params, width, initial, layers, **keywords
  )
  config_check.check(config, common)
  return config, tensors.flatten(params)


def of_block(flat, name):
  return {path: x for path, x in flat.items() if f'encoder/{name}/' in path}


@pytest.mark.parametrize('order', slow.after(1, ['post', 'pre']))
def test_what_stands_outside_of_blocks_stays(order):
  model = classifier(model__norm_order=order)
  config, flat = narrow(model)
  before = tensors.flatten(model.params)
  outside = {path for path in before if '/layer_' not in path}
  assert outside == {path for path in flat if '/layer_' not in path}
  assert len(outside) > 2
  for path in outside:
    assert flat[path] is before[path]
  found = build.layer_configs(config)
  assert [(own.bottleneck, own.mlp_width) for own in found] == [(N, 5)] * 3
  assert dict(found[0].settings)['num_heads'] == 3
  made = tensors.flatten(jax.jit(initial(config))(jax.random.key(0)))
  for index in range(3):
    block = of_block(flat, f'layer_{index}')
    assert block[f'encoder/layer_{index}/mlp/in/kernel'].shape == (N, 5)
    for path, x in block.items():
      if '/norm_widen/' in path:
        # The norm that makes the stream.
        x_before = before[path.replace('bottleneck/norm_widen', 'norm_mlp')]
        np.testing.assert_array_equal(x, x_before)
        assert np.any(x != made[path]) == path.endswith('bias')
      else:
        np.testing.assert_array_equal(x, made[path])
  assert any('/norm_widen/' in path for path in flat) == (order == 'post')


@pytest.mark.slow
def test_new_arrays_are_those_of_the_seed():
  model = classifier()
  first, again, other = (narrow(model, seed=seed)[1] for seed in (3, 3, 4))
  path = 'encoder/layer_1/mixer/query/kernel'
  np.testing.assert_array_equal(first[path], again[path])
  assert np.any(first[path] != other[path])


@pytest.mark.slow
def test_some_layers_and_columns_of_their_own():
  rows = (('1', (('mlp_width', 7), ('activation', 'relu'))),)
  model = classifier(rows=rows)
  config, flat = narrow(model, layers=(1,))
  assert config.model.layers.to_dict() == {
    # round(7 * 6 / 12), to even.
    '1': {'mlp_width': 4, 'activation': 'relu', 'bottleneck': N},
  }
  before = tensors.flatten(model.params)
  for index in (0, 2):
    block = of_block(flat, f'layer_{index}')
    assert block
    for path, x in block.items():
      assert x is before[path]
  _, flat = narrow(model, layers=(1,), mlp_width=8)
  assert flat['encoder/layer_1/mlp/in/kernel'].shape == (N, 8)
  # Also an array of the shape that it had begins anew.
  _, flat = narrow(model, layers=(1,), mlp_width=7)
  path = 'encoder/layer_1/mlp/in/bias'
  assert flat[path].shape == before[path].shape
  assert np.any(flat[path] != before[path])


@pytest.mark.slow
def test_narrower_again():
  model = classifier(model__norm_order='post')
  config, params = bottleneck.narrow(
    model.config, model.params, 9, initial, (0,)
  )
  assert config.model.layers['0'].mlp_width == round(10 * 9 / D)
  again, small = bottleneck.narrow(config, params, 3, initial, (0,))
  assert again.model.layers['0'].to_dict() == {
    'bottleneck': 3, 'mlp_width': round(8 * 3 / 9),
  }  # fmt: skip
  outer = 'encoder/layer_0/bottleneck/norm_widen/bias'
  wanted = tensors.flatten(model.params)['encoder/layer_0/norm_mlp/bias']
  np.testing.assert_array_equal(tensors.flatten(small)[outer], wanted)


@pytest.mark.slow
def test_layers_of_a_group_become_narrower_together():
  rows = tuple((index, (('share', 'a'),)) for index in '02')
  model = classifier(rows=rows)
  config, flat = narrow(model, layers=(0, 2))
  row = {'share': 'a', 'bottleneck': N, 'mlp_width': 5}
  assert config.model.layers.to_dict() == {'0': row, '2': row}
  assert flat['encoder/shared_a/bottleneck/widen/kernel'].shape == (N, D)
  with pytest.raises(ConfigError, match=r'layer 0 shares .* \[0, 2\]'):
    narrow(model, layers=(0, 1))


HEADS = (('0', (('num_heads', 5), ('head_width', 2))),)


@pytest.mark.slow
def test_heads_of_a_width_of_their_own_keep_it():
  """Of any number: none has to divide the width."""
  model = classifier(rows=HEADS)
  _, flat = narrow(model, 9)
  assert flat['encoder/layer_0/mixer/query/kernel'].shape == (9, 5, 2)
  assert flat['encoder/layer_1/mixer/query/kernel'].shape == (9, 3, 3)
  wide = classifier(model__qkv_width=24)
  _, flat = narrow(wide, 5)
  assert flat['encoder/layer_1/mixer/query/kernel'].shape == (5, 3, 8)


@pytest.mark.parametrize(
  ('keys', 'width', 'layers', 'words'),
  [
    ({}, 12, None, 'from 1 to 11 wide in a model of width 12, not 12'),
    ({}, 0, None, 'from 1 to 11 wide'),
    ({}, 6, (3,), 'no layer 3: the model has layers 0 to 2'),
    ({}, 6, (-1,), 'no layer -1'),
    ({}, 7, None, r'width 7 .* the 3 heads of layer 0.\n.* example 6 or 9'),
    ({}, 11, (1,), r'heads of layer 1.\n.* example 9\.'),
    ({'model__num_heads': 12}, 7, None, 'Prune heads first'),
    ({'model__position': 'rotary', 'model__num_heads': 2}, 6, None,
     'the 2 heads of even width of layer 0.\n.* example 4 or 8'),
    ({'model__reversible': True}, 6, None, 'reversible'),
  ],
)  # fmt: skip
def test_what_cannot_be(keys, width, layers, words):
  model = classifier(**keys)
  with pytest.raises(ConfigError, match=words):
    bottleneck.narrow(model.config, model.params, width, initial, layers)


def test_what_mechanisms_say_is_passed_on():
  def refused(config):
    raise ValueError('blocks of 6 do not fit\nmore words')

  model = classifier()
  with pytest.raises(ConfigError, match=r'6 wide: blocks of 6 do not fit$'):
    bottleneck.narrow(model.config, model.params, N, refused)


# As a step of a recipe.


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
  config = tiny_config(
    'full',
    **write_examples(
      tmp_path_factory.mktemp('data'), train=40, validation=9, test=7
    ),
    model__num_layers=2,
    model__norm_order='post',
    train__batch_size=8,
    train__eval_batch_size=8,
  )
  task = tasks.make(config)
  params = jax.device_get(jax.jit(task.init)(jax.random.key(1)))
  model = Compressed(config, 'classifier', 257, 2, False, params, '0' * 64)
  return Parent(model, task)


@pytest.mark.slow
def test_a_narrow_model_learns_the_states_of_its_parent(parent, tmp_path):
  steps = recipe.read([
    {'do': 'bottleneck', 'width': 6, 'layers': [1], 'mlp_width': 4},
    {'do': 'train', 'steps': 3, 'learning_rate': 1e-2,
     'lesson': {'hard': 0.5, 'soft': 1, 'states': 1}},
    {'do': 'round', 'bits': 8, 'method': 'gptq', 'batches': 1},
  ])  # fmt: skip
  model = pipeline.run(
    parent, steps, tmp_path, preemption.Stop(), quiet_screen()
  )
  assert model.config.model.layers.to_dict() == {
    '1': {'bottleneck': 6, 'mlp_width': 4},
  }
  rows = (tmp_path / 'step_1_train/run/metrics.jsonl').read_text().splitlines()
  assert json.loads(rows[0])['loss_states'] > 0
  outer = model.params['encoder']['layer_1']['bottleneck']
  for name in ('narrow', 'widen'):
    assert isinstance(outer[name]['kernel'], tensors.QTensor)
  y_BC = model.module.apply(
    {'params': model.numbers}, np.arange(1, 17)[None], np.array([16])
  )
  assert np.isfinite(y_BC).all()


@pytest.mark.slow
def test_a_lesson_of_mixers_is_refused(parent, tmp_path):
  steps = recipe.read([
    {'do': 'bottleneck', 'width': 6},
    {'do': 'train', 'steps': 3, 'learning_rate': 1e-2,
     'lesson': {'mixers': 1}},
  ])  # fmt: skip
  with pytest.raises(errors.ConfigError, match='leave mixers out'):
    pipeline.run(parent, steps, tmp_path, preemption.Stop(), quiet_screen())


def test_the_step_is_in_order():
  row = {'do': 'bottleneck', 'width': 6}
  prune = {'do': 'prune', 'units': ['mlp'], 'ratio': 0.5}
  assert recipe.read([row, prune])[0] == recipe.Bottleneck(6)
  with pytest.raises(ConfigError, match='bottleneck comes after prune'):
    recipe.read([prune, row])
  for wrong, words in (
    ({}, 'bottleneck needs width'),
    ({'width': 0}, 'width=0 has to be at least 1'),
    ({'width': 4, 'mlp_width': -1}, 'mlp_width=-1 has to be at least 0'),
  ):
    with pytest.raises(ConfigError, match=words):
      recipe.read([{'do': 'bottleneck', **wrong}])


@pytest.mark.slow
def test_a_config_of_the_narrow_model_is_read_again(tmp_path):
  config, _ = narrow(classifier(), layers=(2,))
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(config_lib.to_json_dict(config)))
  assert build.layer_configs(config_lib.load(str(path))[0]) == (
    build.layer_configs(config)
  )
