"""Structure, sizes and costs of models with narrower blocks."""

import functools

import numpy as np
import pytest

from configs import common
from effformer import config as config_lib
from effformer import config_check, cost, pretrained
from effformer.compress import (
  affine,
  latency_table,
  low_rank,
  measuring,
  share,
  simplify,
  sizes,
  structure,
  tensors,
)
from effformer.compress.distill.capture import capture
from effformer.compress.grid import Grid
from effformer.errors import ConfigError
from effformer.models import build
from effformer.models.block import Block
from effformer.shapes import Tokens
from tests.compress.narrow_models import (
  ALIKE,
  BATCH,
  CLASSES,
  KEEP_BT,
  NARROW,
  ORDERS,
  VOCABULARY,
  WIDEN,
  D,
  F,
  N,
  check_same,
  compressed,
  model_of,
  module_of,
  moments_of,
)
from tests.compress.prune.models import classifier
from tests.pretrained.golden_test import folder_of

# Structure.


@pytest.mark.slow
def test_layers_of_one_width_share():
  model = model_of(rows=ALIKE)
  for index in (0, 2):
    params = share.align(model.config, model.params, 1, index)
    check_same(model, model.config, params)
  config, params = share.tie(model.config, model.params, {'a': (0, 1)})
  config_check.check(config, common)
  own, first, second = (
    np.asarray(params['encoder'][name]['bottleneck']['narrow']['kernel'])
    if name == 'shared_a'
    else np.asarray(
      model.params['encoder'][name]['bottleneck']['narrow']['kernel']
    )
    for name in ('shared_a', 'layer_0', 'layer_1')
  )
  np.testing.assert_allclose(own, (first + second) / 2, atol=1e-6)
  assert np.isfinite(model.outputs(config, params)).all()


def test_layers_of_two_widths_do_not_share():
  model = model_of()
  alike_LL = share.similarity(model.config, model.params)
  assert np.isnan(alike_LL[np.triu_indices(3, 1)]).all()
  with pytest.raises(ConfigError, match=r'they differ in .*bottleneck'):
    share.tie(model.config, model.params, {'a': (0, 1)})


@pytest.mark.slow
def test_rms_norms_are_another_function():
  """What enters a narrow block has a mean that no norm takes off."""
  model = model_of(model__position='none')
  assert simplify.inexact(model.config, model.params) == [
    'bottlenecks read the stream as it is, its mean with it'
  ]
  config, params = simplify.swap_norm(model.config, model.params, 'rms')
  assert np.isfinite(model.outputs(config, params)).all()
  plain = classifier(model__position='none')
  assert simplify.inexact(plain.config, plain.params) == []
  post = model_of('post')
  config, params = simplify.swap_norm(post.config, post.params, 'rms')
  assert np.isfinite(post.outputs(config, params)).all()
  outer = params['encoder']['layer_0']['bottleneck']
  assert set(outer['norm_narrow']) == set(outer['norm_widen']) == {'scale'}


@pytest.mark.slow
def test_every_norm_has_a_line():
  model = model_of('post')
  lines = affine.fit(module_of(model), model.params, [BATCH])
  outer = 'encoder/layer_0/bottleneck'
  assert {f'{outer}/norm_narrow', f'{outer}/norm_widen'} < {*lines}
  # Of the first block, whose input is known, by hand.
  kernel, bias = (
    np.asarray(tensors.flatten(model.params)[f'{outer}/narrow/{name}'], 'f8')
    for name in ('kernel', 'bias')
  )
  states = capture(module_of(model), model.params, *BATCH).states
  x_LN = np.asarray(states[0], 'f8')[KEEP_BT] @ kernel + bias
  off_LN = x_LN - x_LN.mean(axis=1, keepdims=True)
  y_LN = off_LN / np.sqrt((off_LN**2).mean(axis=1, keepdims=True) + 1e-6)
  line = lines[f'{outer}/norm_narrow']
  for channel in range(N):
    slope, start = np.polyfit(x_LN[:, channel], y_LN[:, channel], 1)
    np.testing.assert_allclose(line.scale_D[channel], slope, atol=1e-4)
    shift = tensors.flatten(model.params)[f'{outer}/norm_narrow/bias'][channel]
    np.testing.assert_allclose(line.bias_D[channel], start + shift, atol=1e-4)
  config, params = simplify.swap_norm(
    model.config, model.params, 'affine', lines
  )
  own = params['encoder']['layer_0']['bottleneck']['norm_widen']
  np.testing.assert_array_equal(
    own['scale'], lines[f'{outer}/norm_widen'].scale_D
  )
  assert np.isfinite(model.outputs(config, params)).all()


@pytest.mark.slow
def test_feed_forward_parts_become_products():
  model = model_of()
  place = 'encoder/layer_1/mlp'
  config, params = low_rank.factorise(
    model.config, model.params, {place: 3}, moments=moments_of(model)
  )
  assert config.model.layers['1'].to_dict() == {'bottleneck': 9, 'mlp_rank': 3}
  mlp = params['encoder']['layer_1']['mlp']
  assert mlp['in_low']['kernel'].shape == (9, 3)
  assert np.isfinite(model.outputs(config, params)).all()


@pytest.mark.slow
def test_another_attention_or_activation_keeps_the_width():
  model = model_of(
    rows=(('0', (('bottleneck', 9), ('mlp_rank', 2))),), model__dropout=0.0
  )

  def initial(config):
    module = build.sequence_classifier(config, VOCABULARY, CLASSES)
    return lambda key: module.init(key, *BATCH)['params']

  found = pretrained.swap_mixers(
    model.config, model.params, initial, 'local', settings={'window': 64}
  )
  assert found.made == found.left == ()
  assert found.config.model.layers['0'].to_dict() == {
    'bottleneck': 9, 'mlp_rank': 2, 'mixer': 'local', 'window': 64,
  }  # fmt: skip
  check_same(model, found.config, found.params, 1e-4)
  config, params = simplify.swap_activation(
    model.config, model.params, 'relu', [0]
  )
  assert config.model.layers['0'].bottleneck == 9
  assert np.abs(model.outputs(config, params) - model.outputs()).max() > 1e-5


def test_no_published_family_has_bottlenecks(tmp_path):
  model = pretrained.load(folder_of('bert-classifier', tmp_path / 'a'))
  config = config_lib.changed(model.config, {'model.bottleneck': 4})
  with pytest.raises(ConfigError, match=r'model\.bottleneck of this model is'):
    pretrained.save(model._replace(config=config), tmp_path / 'b')


# Costs, sizes, and words.


def test_a_layer_has_a_part_more():
  model = model_of()
  first, second, third = latency_table.parts(model.config, 2, 5)
  assert [[(p.branch, p.width) for p in own] for own in (first, second)] == [
    [('mixer', N), ('mlp', N), ('bottleneck', D)],
    [('mixer', 9), ('mlp', 9), ('bottleneck', D)],
  ]
  assert [(p.branch, p.width) for p in third] == [('mixer', D), ('mlp', D)]
  # Those within are the parts of a block that is as wide without one.
  plain = classifier(model__width=N)
  narrow = latency_table.parts(plain.config, 2, 5)[0]
  assert [p.key for p in first[:2]] == [p.key for p in narrow]
  assert first[2].key != second[2].key
  assert first[2].facts['layers'] == [{'bottleneck': N}]


@pytest.mark.slow
@pytest.mark.parametrize('order', ORDERS)
def test_programs_of_the_parts_run(order):
  """Of a width each; all together is a program of its own."""
  model = model_of(order)
  parts = latency_table.parts(model.config, 2, 5)[0]
  layers = build.layer_configs(model.config)
  whole = parts[2]._replace(layers=layers, branch='')
  for part in (*parts, whole):
    found = np.asarray(latency_table.program(part)())
    assert found.shape == (2, 5, part.width)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
  assert {'bottleneck', 'mlp_width'} < {*whole.facts['layers'][0]}


def test_costs_of_candidates_have_all_parts(tmp_path):
  model = model_of()
  found = structure.candidates(model.config, model.params, {'mlp': (0.5,)})
  price = {'mixer': 100.0, 'mlp': 10.0, 'bottleneck': 1.0}

  def measure(parts):
    return [p.width * price[p.branch] for p in parts]

  costs = structure.costs(
    model.config, model.params, found, 2, 5, tmp_path / 't', measure=measure
  )
  assert costs['encoder/layer_0']['mlp 5'] == 110 * N + D
  assert costs['encoder/layer_2']['mlp 10'] == 110 * D


def test_numbers_are_counted_and_shown():
  model = model_of()
  found = sizes.sizes(model.params, 0)['components']
  plain = classifier()
  before = sizes.sizes(plain.params, 0)['components']
  for name in ('embedding', 'head'):
    assert found[name] == before[name]
  dense = sum(
    2 * D * own + own + D + 2 * own * F + F + own for own in (N, 9)
  ) + (2 * D * F + F + D)
  assert found['feed_forward']['parameters'] == dense
  rounded = tensors.quantise(
    model.params, {NARROW[1]: Grid(3), WIDEN[1]: Grid(5)}
  )
  rows = {
    row['part']: row for row in measuring.plan(compressed(model, rounded))
  }
  assert rows['layer 1 bottleneck']['shape'] == '12 to 9 and back'
  assert rows['layer 1 bottleneck']['bits'] == '3 a channel and 5 a channel'
  assert rows['layer 0 bottleneck']['bits'] == 'float32'
  assert 'layer 2 bottleneck' not in rows


def test_operations_are_those_of_the_widths():
  layer = build.layer_configs(model_of().config)[0]
  block, length, heads = Block(layer), 5, 3 * 2
  x_BTD = np.zeros((2, length, D), 'f4')
  tokens = Tokens.from_lengths(np.array([length, length]), length)
  run = functools.partial(block.apply, tokens=tokens, deterministic=True)
  params = {'params': model_of().params['encoder']['layer_0']}
  by_token = 2 * D * N + 4 * N * heads + 2 * N * F + 2 * length * heads
  wanted = 2.0 * 2 * length * by_token
  assert cost.count(run, params, x_BTD).products == wanted
