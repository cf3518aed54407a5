"""Bits and units that the policy chooses, on an untrained model."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from effformer import config as config_lib
from effformer import data, errors, tasks
from effformer.compress import (
  bits,
  choices,
  command,
  latency_table,
  measuring,
  pipeline,
  places,
  recipe,
  steps,
  structure,
  tensors,
)
from effformer.compress.tensors import QTensor
from effformer.train import preemption
from tests import slow
from tests.compress.single_steps import carry, place_of, untrained
from tests.train.tiny_run import quiet_screen


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
  return untrained(tmp_path_factory.mktemp('data'))


def flat(params):
  return tensors.flatten(params)


# Bits.

BITS = {
  'do': 'choose_bits', 'budget': 0.24, 'choices': [8, 4, 2], 'tile': 12,
  'batches': 2, 'max_trials': 4,
}  # fmt: skip


@pytest.fixture(scope='module', params=slow.after(1, ['nearest', 'gptq']))
def chosen(request, parent, tmp_path_factory):
  folder = tmp_path_factory.mktemp('bits') / 'step_0_choose_bits'
  row = {**BITS, 'method': request.param}
  return row, folder, *carry(parent, folder, row)


def test_bytes_are_within_the_budget(parent, chosen):
  _, folder, model, printed = chosen
  found = json.loads((folder / choices.SEARCH).read_text())
  groups = bits.groups(parent.model.params)
  paths = [path for own in groups.values() for path in own]
  count = sum(flat(parent.model.params)[path].size for path in paths)
  size = bits.num_bytes(model.params)
  assert size == found['best']['cost']
  assert 0.1 * 4 * count < size <= 0.24 * 4 * count
  rounded = flat(model.params)
  for group, own in groups.items():
    for path in own:
      grid = rounded[path].grid
      assert str(grid.bits) == found['best']['plan'][group]
      assert (grid.group, grid.tile, grid.rule) == ('tile', 12, 'clip')
  codes = {path for path, x in rounded.items() if isinstance(x, QTensor)}
  assert codes == {*paths}
  assert len({*found['best']['plan'].values()}) > 1
  assert found['why'] in printed


def test_all_that_was_tried_is_kept(parent, chosen):
  row, folder, _, _ = chosen
  found = json.loads((folder / choices.SEARCH).read_text())
  assert measuring.searches(recipe.read([row]), folder.parent) == [found]
  assert not measuring.searches(recipe.read([{'do': 'round'}]), folder.parent)
  assert [path.name for path in folder.iterdir()] == [choices.SEARCH]
  assert found['why'] == 'the best of the 4 plans measured reaches the floor'
  assert found['is_reached'] is True
  assert len(found['tried']) == 4
  assert found['best'] in found['frontier']
  assert found['best']['score'] == max(own['score'] for own in found['tried'])
  for one, other in zip(found['frontier'], found['frontier'][1:], strict=False):
    assert one in found['tried']
    assert one['cost'] < other['cost']
    assert one['score'] < other['score']
  assert {*found['options']} == {*bits.groups(parent.model.params)}
  for row in found['options'].values():
    assert [option['name'] for option in row] == ['8', '4', '2']
    assert row[0]['cost'] > row[1]['cost'] > row[2]['cost']


def test_no_worse_than_the_same_bits_for_all(parent, chosen, tmp_path):
  """By the KL, by hand, of batches that did not calibrate."""
  row, folder, model, _ = chosen
  (step,) = recipe.read([row])
  assert (step.uniform.bits, step.uniform.method) == (4, row['method'])
  uniform = steps.CARRY[recipe.Round](
    step.uniform, parent.model,
    place_of(parent, tmp_path, (step,)),
  )  # fmt: skip
  batches = [
    data.batch_at(
      parent.task.dataset.splits['train'], parent.task.encode, number, seed=0,
      batch_size=8, max_length=16,
    )
    for number in (2, 3)
  ]  # fmt: skip

  def loss(own):
    p_NC, q_NC = (
      np.concatenate(
        [np.asarray(parent.task.predict(x.numbers, batch), 'f8')
         for batch in batches]
      )
      for x in (parent.model, own)
    )  # fmt: skip
    return float((p_NC * np.log(p_NC / q_NC)).sum(axis=-1).mean())

  best = json.loads((folder / choices.SEARCH).read_text())['best']
  assert -best['score'] == pytest.approx(loss(model), rel=1e-3, abs=1e-7)
  assert 0 < loss(model) <= loss(uniform)


def test_enough_is_enough(parent, tmp_path):
  row = {**BITS, 'method': 'nearest', 'tolerance': 9.0, 'choices': [4, 2]}
  carry(parent, tmp_path, row)
  found = json.loads((tmp_path / choices.SEARCH).read_text())
  assert found['is_reached'] is True
  assert 'reaches the floor' in found['why']


def test_a_budget_that_cannot_be_leaves_nothing(parent, tmp_path, monkeypatch):
  def measured(*_):
    pytest.fail('a plan was measured that is beyond the budget')

  monkeypatch.setattr(choices, '_distances', measured)
  monkeypatch.setattr(choices.places, 'moments', measured)
  folder = tmp_path / 'step'
  # Channels are shorter than tiles, and so have more scales than can be known
  # of a step alone.
  row = {**BITS, 'method': 'gptq', 'tile': 32, 'budget': 0.1}
  with pytest.raises(errors.ConfigError, match='no plan is within the budget'):
    carry(parent, folder, row)
  assert not folder.exists()


# Units.

UNITS = {
  'do': 'choose_units', 'budget': 0.6, 'shares': [0.4], 'batches': 2,
  'max_trials': 3, 'batch': 2,
}  # fmt: skip


def milliseconds(layer):
  """Of a layer: a column takes 1, a head 10."""
  return 10 * dict(layer.settings)['num_heads'] + layer.mlp_width


class Machine:
  """Takes what sizes say, and knows what it was asked."""

  def __init__(self, slow=1.0):
    self.slow, self.asked = slow, []

  def __call__(self, parts):
    self.asked += parts
    return [self.slow * self.of(part) for part in parts]

  def of(self, part):
    (layer,) = part.layers
    heads = 10 * dict(layer.settings)['num_heads']
    return heads if part.branch == 'mixer' else layer.mlp_width


@pytest.fixture
def machine(monkeypatch):
  found = Machine()
  monkeypatch.setattr(latency_table, 'measured', found)
  return found


def layers_of(model, parent):
  return places.task_of(model, parent).model.layers


def kl(parent, model):
  """Of the batches that choose, by hand."""
  p_NC, q_NC = (
    np.concatenate([
      np.asarray(
        places.task_of(own, parent).predict(
          own.params,
          data.batch_at(
            parent.task.dataset.splits['train'], parent.task.encode, number,
            seed=0, batch_size=8, max_length=16,
          ),
        ),
        'f8',
      )
      for number in (2, 3)
    ])
    for own in (parent.model, model)
  )  # fmt: skip
  return float((p_NC * np.log(p_NC / q_NC)).sum(axis=-1).mean())


@pytest.mark.parametrize(
  'score', slow.after(1, ['taylor', 'magnitude', 'random'])
)
def test_time_is_within_the_budget(parent, machine, tmp_path, score):
  row = {**UNITS, 'score': score, 'drops_layers': False}
  model, printed = carry(parent, tmp_path / 'step', row)
  found = json.loads((tmp_path / 'step' / choices.SEARCH).read_text())
  before, after = (layers_of(own, parent) for own in (parent.model, model))
  whole, cost = (sum(map(milliseconds, own)) for own in (before, after))
  assert found['best']['cost'] == cost
  assert 0.4 * whole < cost <= 0.6 * whole
  assert f'{cost / whole:.3g} of the milliseconds' in printed
  assert found['why'] in printed
  assert found['kept'] == [0, 1]
  for number, layer in enumerate(after):
    heads = dict(layer.settings)['num_heads']
    name = f'head {heads}, mlp {layer.mlp_width}'
    assert found['best']['plan'][f'encoder/layer_{number}'] == name
  best = found['best']['score']
  assert best == max(own['score'] for own in found['tried'])
  assert -best == pytest.approx(kl(parent, model), rel=1e-3, abs=1e-7)
  assert -best > 1e-6
  for options in found['options'].values():
    assert options[0]['loss'] == 0
    assert len(options) == 4
  assert {(part.batch, part.length) for part in machine.asked} == {(2, 16)}


def test_time_is_of_tokens(parent, machine, tmp_path):
  """Of rows of 16 ids, and 8: 4 of them a token, and one stands before."""
  config = config_lib.changed(
    parent.model.config,
    {'model.front_end': 'patches', 'model.patch_size': 2,
     'model.pooling': 'cls'},
  )  # fmt: skip
  task = tasks.make(config, parent.task.dataset)
  params = jax.device_get(jax.jit(task.init)(jax.random.key(1)))
  own = places.Parent(parent.model._replace(config=config, params=params), task)
  row = {**UNITS, 'units': ['mlp'], 'score': 'magnitude', 'max_trials': 1}
  for length in (0, 8):
    carry(own, tmp_path / f'step_{length}', {**row, 'length': length})
  assert {part.length for part in machine.asked} == {5, 3}


def test_a_layer_may_leave(parent, machine, tmp_path):
  row = {**UNITS, 'budget': 0.45, 'units': ['mlp'], 'length': 5}
  model, _ = carry(parent, tmp_path / 'step', row)
  found = json.loads((tmp_path / 'step' / choices.SEARCH).read_text())
  plan = [*found['best']['plan'].values()]
  (kept,) = found['kept']
  assert plan[1 - kept] == structure.NONE
  assert choices.kept_layers(tmp_path / 'step', 2, 1) == (kept,)
  (layer,), before = layers_of(model, parent), layers_of(parent.model, parent)
  assert layer.settings == before[kept].settings
  assert -found['best']['score'] == pytest.approx(
    kl(parent, model), rel=1e-3, abs=1e-7
  )
  assert {part.length for part in machine.asked} == {5}


def test_later_steps_know_the_layers_that_are_left(
  parent, machine, monkeypatch, tmp_path
):
  seen = []

  def train(step, model, place):
    seen.append(place.kept)
    return model

  monkeypatch.setitem(steps.CARRY, recipe.Train, train)
  rows = recipe.read([
    {'do': 'drop_layers', 'keep': [1]},
    {**UNITS, 'units': ['mlp'], 'budget': 0.95},
    {'do': 'train', 'steps': 1, 'learning_rate': 1.0},
    {'do': 'train', 'steps': 2, 'learning_rate': 1.0},
  ])  # fmt: skip

  def run():
    pipeline.run(parent, rows, tmp_path, preemption.Stop(), quiet_screen())

  run()
  assert seen == [(1,), (1,)]
  shutil.rmtree(tmp_path / 'step_3_train')
  run()
  assert seen == [(1,), (1,), (1,)]
  assert (tmp_path / pipeline.TIMES).exists()
  # The layer that stays is the second of two.
  path = tmp_path / 'step_1_choose_units' / choices.SEARCH
  found = json.loads(path.read_text())
  assert found['kept'] == [0]
  path.write_text('{}')
  shutil.rmtree(tmp_path / 'step_3_train')
  with pytest.raises(errors.CheckpointError, match="not say 'step' of the"):
    run()
  with pytest.raises(errors.CheckpointError, match="not say 'step' of the"):
    measuring.searches(rows, tmp_path)
  for kept in (None, [], [1], [0, 1], ['0'], [-1], 0):
    path.write_text(json.dumps({**found, 'kept': kept}))
    with pytest.raises(errors.CheckpointError, match='which 1 of 1 layers'):
      run()
  path.unlink()
  for reader in (run, functools.partial(measuring.searches, rows, tmp_path)):
    with pytest.raises(errors.CheckpointError, match=r'json is missing\.\nPut'):
      reader()
  path.write_text(json.dumps(found))
  run()


def test_layers_that_stayed_are_in_order(tmp_path):
  facts = dict.fromkeys(('step', 'why', 'best', 'frontier', 'options'))
  for kept in ([2, 0], [1, 1], [0, 3]):
    path = tmp_path / choices.SEARCH
    path.write_text(json.dumps({**facts, 'kept': kept}))
    with pytest.raises(errors.CheckpointError, match='which 2 of 3 layers'):
      choices.kept_layers(tmp_path, 3, 2)
  path.write_text(json.dumps({**facts, 'kept': [0, 2]}))
  assert choices.kept_layers(tmp_path, 3, 2) == (0, 2)


def test_times_are_measured_once(parent, machine, monkeypatch, tmp_path):
  first, _ = carry(parent, tmp_path / 'first', UNITS)
  other = Machine(slow=7.0)
  monkeypatch.setattr(latency_table, 'measured', other)
  second, _ = carry(parent, tmp_path / 'second', UNITS)
  assert machine.asked
  assert not other.asked
  assert layers_of(first, parent) == layers_of(second, parent)
  found = [
    json.loads((tmp_path / name / choices.SEARCH).read_text())
    for name in ('first', 'second')
  ]
  assert found[0] == found[1]


def test_killed_before_it_is_written_it_ends_in_the_same_bytes(
  parent, machine, monkeypatch, tmp_path
):
  rows = recipe.read([{**UNITS, 'units': ['mlp'], 'max_trials': 1}])

  def run(folder):
    pipeline.run(parent, rows, folder, preemption.Stop(), quiet_screen())
    own = folder / 'step_0_choose_units'
    return {path.name: path.read_bytes() for path in own.iterdir()}

  wanted = run(tmp_path / 'whole')
  with monkeypatch.context() as patch:
    patch.setattr(pipeline.artefact, 'save', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(tmp_path / 'killed')
  # Later on another machine would choose otherwise, and half a file is none.
  monkeypatch.setattr(latency_table, 'measured', lambda parts: 1 / 0)
  path = tmp_path / 'killed/step_0_choose_units' / choices.SEARCH
  path.write_bytes(path.read_bytes()[:9])
  assert run(tmp_path / 'killed') == wanted
  # Times are of no use any more.
  (tmp_path / 'killed' / pipeline.TIMES).unlink()
  assert run(tmp_path / 'killed') == wanted


def test_time_that_no_plan_takes_leaves_nothing(parent, machine, tmp_path):
  row = {**UNITS, 'units': ['mlp'], 'drops_layers': False, 'budget': 0.1}
  with pytest.raises(errors.ConfigError, match='no plan is within the budget'):
    carry(parent, tmp_path / 'step', row)
  assert not (tmp_path / 'step').exists()


def test_blocks_that_take_no_time(parent, monkeypatch, tmp_path):
  monkeypatch.setattr(latency_table, 'measured', Machine(slow=0.0))
  with pytest.raises(errors.ConfigError, match='there is no time to save'):
    carry(parent, tmp_path / 'step', {**UNITS, 'units': ['mlp']})


def test_the_control_takes_the_same_share_everywhere():
  (step,) = recipe.read([{**UNITS, 'units': ['mlp']}])
  assert step.uniform == recipe.Prune(('mlp',), 0.4, batches=2)
  (other,) = recipe.read([{**UNITS, 'score': 'magnitude'}])
  assert other.uniform == recipe.Prune(('head', 'mlp'), 0.4, 'magnitude')
  found = command.controls([step])
  assert found == {
    'random': (dataclasses.replace(step, score='random'),),
    'uniform': (step.uniform,),
  }


def test_distances():
  p_NC = np.array([[0.25, 0.75], [0.5, 0.5]])
  q_NC = np.array([[0.5, 0.5], [0.5, 0.5]])
  wanted = (0.25 * np.log(0.5) + 0.75 * np.log(1.5)) / 2
  assert choices.distance(p_NC, q_NC) == pytest.approx(wanted)
  a_N2D = np.array([[[1.0, 0], [0, 1]]])
  b_N2D = np.array([[[0.6, 0.8], [0, 1]]])
  assert choices.distance(a_N2D, b_N2D) == pytest.approx(0.2)
  assert choices.distance(a_N2D, a_N2D) == 0
