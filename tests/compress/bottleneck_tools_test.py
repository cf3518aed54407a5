"""What the tools make of models whose blocks are narrower than the stream."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import common
from effformer import config as config_lib
from effformer import config_check, cost, pretrained
from effformer.compress import (
  affine,
  artefact,
  awq,
  calibrate,
  depth,
  fold,
  gptq,
  latency_table,
  low_rank,
  measuring,
  running,
  share,
  shrink,
  simplify,
  sizes,
  smooth,
  structure,
  tensors,
)
from effformer.compress.artefact import Compressed
from effformer.compress.distill import dynabert, maps, teaching
from effformer.compress.distill.capture import capture
from effformer.compress.distill.teaching import Lesson
from effformer.compress.grid import Grid
from effformer.compress.prune import masks as masks_lib
from effformer.compress.prune import scores as scores_lib
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.models import build
from effformer.models.block import Block
from effformer.shapes import Tokens
from tests.compress.prune.models import (
  CLASSES,
  IDS_BT,
  LENGTHS_B,
  VOCABULARY,
  classifier,
)
from tests.pretrained.golden_test import folder_of

D, N, F = 12, 6, 10
KEEP_BT = np.arange(IDS_BT.shape[1])[None] < LENGTHS_B[:, None]
BATCH = (IDS_BT, LENGTHS_B)
ORDERS = ['pre', 'post']
# Of three layers one has another bottleneck and one none.
ROWS = (('1', (('bottleneck', 9),)), ('2', (('bottleneck', 0),)))
NARROW = [f'encoder/layer_{i}/bottleneck/narrow/kernel' for i in (0, 1)]
WIDEN = [f'encoder/layer_{i}/bottleneck/widen/kernel' for i in (0, 1)]
ALIKE = (('1', (('bottleneck', N),)),)


def model_of(order='pre', rows=ROWS, **keys):
  return classifier(
    rows=rows, model__bottleneck=N, model__norm_order=order, **keys
  )


def module_of(model):
  return build.sequence_classifier(model.config, VOCABULARY, CLASSES)


def compressed(model, params):
  return Compressed(
    model.config, 'classifier', VOCABULARY, CLASSES, False, params, '0' * 64
  )


def moments_of(model):
  return calibrate.collect(module_of(model), model.params, [BATCH])


def plan_of(model, bits=4):
  return tensors.uniform_plan(model.params, Grid(bits))


def check_same(model, config, params, atol=1e-5):
  np.testing.assert_allclose(
    model.outputs(config, params), model.outputs(), atol=atol, rtol=0
  )


# Pruning.

MASKS = {
  'encoder/layer_0:head': np.array([True, False, True]),
  'encoder/layer_1:head': np.array([False, True, False]),
  'encoder/layer_0:mlp': np.arange(F) % 3 > 0,
  'encoder/layer_2:mlp': np.arange(F) == 7,
}


@pytest.mark.slow
@pytest.mark.parametrize('order', ORDERS)
def test_shrunk_blocks_give_what_masked_ones_give(order):
  model = model_of(order)
  units = units_lib.of(model.config, model.params, ('head', 'mlp'))
  masked = masks_lib.apply(model.params, MASKS, units)
  config, params = shrink.shrink(model.config, model.params, MASKS)
  config_check.check(config, common)
  wanted = model.outputs(params=masked)
  assert np.abs(wanted - model.outputs()).max() > 1e-3
  np.testing.assert_allclose(
    model.outputs(config, params), wanted, atol=1e-5, rtol=0
  )
  assert config.model.layers['1'].to_dict() == {
    'bottleneck': 9, 'num_heads': 1, 'head_width': 3,
  }  # fmt: skip
  mixer = params['encoder']['layer_0']['mixer']
  assert mixer['query']['kernel'].shape == (N, 2, 2)


@pytest.mark.slow
def test_a_block_is_switched_off_where_it_leads_back_to_the_stream():
  model = model_of()
  name = 'encoder/layer_0:layer'
  units = units_lib.of(model.config, model.params, ('layer',))
  ends = {part.path.split('/', 2)[2] for part in units[name].exits}
  assert ends == {'bottleneck/widen/kernel', 'bottleneck/widen/bias'}
  masks = {name: np.array([False])}
  masked = masks_lib.apply(model.params, masks, units)
  config, params = shrink.shrink(model.config, model.params, masks)
  assert config.model.layers['0'].bottleneck == 9
  np.testing.assert_allclose(
    model.outputs(config, params), model.outputs(params=masked), atol=1e-5
  )
  post = model_of('post')
  units = units_lib.of(post.config, post.params, ('layer',))
  with pytest.raises(ConfigError, match='no identity'):
    masks_lib.apply(post.params, masks, units)


@pytest.mark.slow
def test_sub_networks_within_one():
  model = model_of(rows=())
  units = units_lib.of(model.config, model.params, ('head', 'mlp'))
  scores = scores_lib.random(jax.random.key(0), units)
  params = dynabert.sort(model.config, model.params, scores)
  check_same(model, model.config, params)
  config, small = dynabert.narrow(model.config, params, 2 / 3, 2 / 3)
  assert config.model.num_layers == 2
  mixer = small['encoder']['layer_1']['mixer']
  assert mixer['out']['kernel'].shape == (2, 2, N)
  assert np.isfinite(model.outputs(config, small)).all()


@pytest.mark.slow
def test_layers_leave_with_their_bottlenecks():
  model = model_of()
  config, params = depth.drop_layers(model.config, model.params, (1, 2))
  found = [layer.bottleneck for layer in build.layer_configs(config)]
  assert found == [9, 0]
  assert params['encoder']['layer_0'] is model.params['encoder']['layer_1']
  assert np.isfinite(model.outputs(config, params)).all()


# Rounding.


@pytest.mark.slow
@pytest.mark.parametrize('order', ORDERS)
def test_all_matrices_become_codes_and_are_read_again(order, tmp_path):
  model = model_of(order)
  plan = plan_of(model, 8)
  assert {*NARROW, *WIDEN} < {*plan}
  small = compressed(model, tensors.quantise(model.params, plan))
  artefact.save(small, tmp_path)
  again = artefact.load(tmp_path)
  assert again.config == model.config
  flat = tensors.flatten(again.params)
  for path in plan:
    assert isinstance(flat[path], tensors.QTensor)
  assert flat[NARROW[0]].codes.shape == (D, N)
  assert flat[WIDEN[1]].codes.shape == (9, D)
  module = again.module
  run = jax.jit(
    lambda params, activations: running.apply(
      module, params, *BATCH, activations=activations
    ),
    static_argnums=1,
  )
  wanted = model.outputs(params=tensors.dequantise(small.params))
  np.testing.assert_allclose(run(again.params, None), wanted, atol=1e-5)
  difference = np.abs(run(again.params, 'dynamic') - wanted)
  assert 0 < difference.max() < 0.1


@pytest.mark.slow
def test_inputs_of_the_ways_in_and_back_are_seen():
  model = model_of()
  moments, flat = moments_of(model), tensors.flatten(model.params)
  states = [
    np.asarray(x, 'f8')[KEEP_BT]
    for x in capture(module_of(model), model.params, *BATCH).states
  ]
  for index, (narrow, widen) in enumerate(zip(NARROW, WIDEN, strict=True)):
    x_LD = states[index]
    np.testing.assert_allclose(
      moments[narrow].gram_KK, x_LD.T @ x_LD, rtol=1e-4, atol=1e-4
    )
    # What came back to the stream says what it was made of.
    bias_D = flat[widen.replace('kernel', 'bias')]
    added_LD = states[index + 1] - x_LD - bias_D
    h_LK = added_LD @ np.linalg.pinv(np.asarray(flat[widen], 'f8'))
    np.testing.assert_allclose(
      moments[widen].gram_KK, h_LK.T @ h_LK, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_rounding_makes_up_for_its_errors_there_too():
  model = model_of()
  moments, plan = moments_of(model), plan_of(model, 3)
  flat = tensors.flatten(model.params)
  nearest, best = (
    tensors.flatten(tensors.dequantise(own))
    for own in (
      tensors.quantise(model.params, plan),
      gptq.quantise(model.params, plan, moments),
    )
  )

  def error(rounded, path):
    lost_KN = np.asarray(flat[path] - rounded[path], 'f8')
    return np.trace(lost_KN.T @ np.asarray(moments[path].gram_KK) @ lost_KN)

  paths = [*NARROW, *WIDEN]
  assert sum(error(best, p) for p in paths) < sum(
    error(nearest, p) for p in paths
  )
  for path in paths:
    assert np.any(best[path] != nearest[path])


@pytest.mark.slow
@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('method', ['awq', 'smooth'])
def test_factors_of_inputs_leave_the_function(order, method):
  model = model_of(order)
  moments = moments_of(model)
  if method == 'awq':
    factors = awq.factors(model.config, model.params, moments, plan_of(model))
  else:
    factors = smooth.factors(model.config, model.params, moments)
  params, left = fold.fold(model.config, model.params, factors)
  # The stream has other readers: nothing can take the factors in.
  assert {*NARROW, *WIDEN} <= {*left}
  check_same(model, model.config, params, 1e-4)
  folded = 'encoder/layer_0/mixer/query/kernel'
  assert (folded in left) == (order == 'post')
  plan = plan_of(model, 8)
  rounded = tensors.quantise(params, plan, factors=left)
  assert tensors.flatten(rounded)[NARROW[0]].inputs.shape == (D,)
  check_same(model, model.config, tensors.dequantise(rounded), 0.2)


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


# Teachers.


@dataclasses.dataclass(frozen=True)
class Lessons:
  """What `taught` asks of a task."""

  model: object
  name: str = 'text'
  stacks_texts: bool = False
  frozen: tuple = ()
  objective: object = None

  def arguments(self, batch):
    return {name: batch[name] for name in ('ids_BT', 'lengths_B')}


def taught(student, teacher, lesson, layers=(0, 1, 2)):
  return teaching.taught(
    Lessons(module_of(student)), module_of(teacher), teacher.params, lesson,
    maps.layer_map(layers, 3, 3),
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('order', ORDERS)
def test_states_are_compared_with_those_of_a_wide_teacher(order):
  student, teacher = model_of(order), classifier(model__norm_order=order)
  task = taught(student, teacher, Lesson(soft=0.0, states=2.0))
  batch = {
    **dict(zip(('ids_BT', 'lengths_B'), BATCH, strict=True)),
    'label_B': np.array([0, 2]),
  }
  (loss, values), gradient = jax.jit(
    jax.value_and_grad(task.objective, has_aux=True)
  )(student.params, batch, jax.random.key(0), 0, teacher.params)
  states = [
    [
      np.asarray(x, 'f8')
      for x in capture(module_of(m), m.params, *BATCH).states
    ]
    for m in (student, teacher)
  ]
  each = [
    np.square(a - b)[row][KEEP_BT[row]].mean()
    for a, b in zip(*states, strict=True)
    for row in range(2)
  ]
  assert len(each) == 8
  np.testing.assert_allclose(values['loss_states'], np.mean(each), rtol=1e-4)
  np.testing.assert_allclose(loss, 2 * np.mean(each), rtol=1e-4)
  for path in (*NARROW, *WIDEN):
    assert np.abs(tensors.flatten(gradient)[path]).max() > 1e-5


def test_mixers_of_other_widths_are_not_compared():
  student, teacher = model_of(), classifier()
  lesson = Lesson(mixers=1.0)
  with pytest.raises(ConfigError, match=r'layer 0 gives is 6 wide, .* 12'):
    taught(student, teacher, lesson)
  for own, layers in ((teacher, (None, None, 2)), (student, (0, 1, 2))):
    assert taught(student, own, lesson, layers).frozen
