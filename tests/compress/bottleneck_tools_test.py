"""What pruning, rounding and teachers make of narrower blocks."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import common
from effformer import config_check
from effformer.compress import (
  artefact,
  awq,
  depth,
  fold,
  gptq,
  running,
  shrink,
  smooth,
  tensors,
)
from effformer.compress.distill import dynabert, maps, teaching
from effformer.compress.distill.capture import capture
from effformer.compress.distill.teaching import Lesson
from effformer.compress.prune import masks as masks_lib
from effformer.compress.prune import scores as scores_lib
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.models import build
from tests.compress.narrow_models import (
  BATCH,
  KEEP_BT,
  NARROW,
  ORDERS,
  WIDEN,
  D,
  F,
  N,
  check_same,
  compressed,
  model_of,
  module_of,
  moments_of,
  plan_of,
)
from tests.compress.prune.models import classifier

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
