"""Candidates, costs and losses of layers, and the model of a plan."""

import jax
import numpy as np
import pytest

from effformer.compress import latency_table, policy, shrink, structure
from effformer.compress import tensors as tensors_lib
from effformer.compress.prune import masks as masks_lib
from effformer.compress.prune import scores as scores_lib
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from tests.compress.latency_table_test import Fake
from tests.compress.prune.models import classifier

SHARES = {'head': (0.4,), 'mlp': (0.7, 0.2)}
PLACES = tuple(f'encoder/layer_{index}' for index in range(3))
NAMES = [f'head {h}, mlp {f}' for h in (3, 1) for f in (10, 7, 2)]
B, T = 2, 5


def milliseconds(part):
  """Of heads 7 each, of columns 1 each, and 2 beside them."""
  (layer,) = part.layers
  heads = dict(layer.settings)['num_heads']
  return 2.0 + (7.0 * heads if part.branch == 'mixer' else layer.mlp_width)


class OfHeads(Fake):
  def __call__(self, parts):
    self.asked.append(list(parts))
    return [500.0 if not p.branch else milliseconds(p) for p in parts]


def random_scores(model, kinds):
  units = units_lib.of(model.config, model.params, kinds)
  return scores_lib.random(jax.random.key(0), units)


def squares(config, params):
  """A loss of which each part is of one layer: what is left of its exits."""
  total = 0.0
  for name, block in params['encoder'].items():
    if name != 'norm_out':
      for x in (block['mixer']['out']['kernel'], block['mlp']['out']['kernel']):
        total += float(np.square(np.asarray(x, 'f8')).sum())
  return 100 - total


def test_candidates_are_all_combinations():
  model = classifier()
  found = structure.candidates(model.config, model.params, SHARES, none=True)
  assert list(found) == list(PLACES)
  for rows in found.values():
    assert list(rows) == [*NAMES, 'none']
    assert rows['head 1, mlp 7'] == {'head': 1, 'mlp': 7}
    assert rows['none'] == {'layer': 0}
  few = structure.candidates(model.config, model.params, {'mlp': (0.01,)})
  assert {tuple(rows) for rows in few.values()} == {('mlp 10', 'mlp 1')}


GROUPED = (('0', (('num_heads', 6), ('num_kv_heads', 2), ('head_width', 3))),
           ('1', (('mixer', 'fnet'),)))  # fmt: skip


def test_layers_have_the_units_that_can_leave():
  model = classifier(rows=GROUPED)

  def names(shares):
    found = structure.candidates(model.config, model.params, shares)
    return [list(rows) for rows in found.values()]

  assert names({'head': (0.3,), 'kv_group': (0.5,)}) == [
    ['kv_group 2', 'kv_group 1'], ['whole'], ['head 3', 'head 1'],
  ]  # fmt: skip
  assert names({'head': (0.3,)}) == [['whole'], ['whole'], ['head 3', 'head 1']]


@pytest.mark.parametrize(
  ('shares', 'words'),
  [
    ({'layer': (0.5,)}, "no kind of unit 'layer'"),
    ({'mlp': (0.5, 0.0)}, 'at most 1, not 0.0'),
    ({'mlp': (1.5,)}, 'at most 1, not 1.5'),
    ({'kv_group': (0.5,)}, "units of kind 'kv_group'"),
  ],
)
def test_what_are_no_candidates(shares, words):
  model = classifier()
  with pytest.raises(ConfigError, match=words):
    structure.candidates(model.config, model.params, shares)


def costs_of(model, found, path, fake, **keys):
  return structure.costs(
    model.config, model.params, found, B, T, path, measure=fake, **keys
  )


def test_costs_are_sums_of_the_table(tmp_path):
  model, fake = classifier(), OfHeads()
  found = structure.candidates(model.config, model.params, SHARES, none=True)
  costs = costs_of(model, found, tmp_path / 'table.json', fake)
  for place, own in costs.items():
    assert own == {
      **{f'head {h}, mlp {f}': 2 + 7 * h + 2 + f
         for h in (3, 1) for f in (10, 7, 2)},
      'none': 0,
    }, place  # fmt: skip
  # Two forms of mixers and three of the other part, of all layers once.
  (asked,) = fake.asked
  assert len(asked) == 5
  assert {(p.batch, p.length) for p in asked} == {(B, T)}
  assert costs_of(model, found, tmp_path / 'table.json', None) == costs


def test_a_share_group_costs_what_all_its_layers_do(tmp_path):
  rows = tuple((index, (('share', 'a'),)) for index in ('0', '2'))
  model = classifier(rows=rows)
  found = structure.candidates(model.config, model.params, {'mlp': (0.3,)})
  assert set(found) == {'encoder/shared_a', 'encoder/layer_1'}
  costs = costs_of(model, found, tmp_path / 'table.json', OfHeads())
  assert costs['encoder/layer_1'] == {'mlp 10': 35, 'mlp 3': 28}
  assert costs['encoder/shared_a'] == {'mlp 10': 70, 'mlp 3': 56}


def test_the_highest_scores_stay():
  model = classifier()
  found = structure.candidates(model.config, model.params, SHARES, none=True)
  scores = random_scores(model, ('head', 'mlp'))
  chosen = {PLACES[0]: 'head 1, mlp 7', PLACES[1]: 'none', PLACES[2]: NAMES[0]}
  masks = structure.masks_of(found, chosen, scores)
  assert set(masks) == {
    f'{PLACES[0]}:head', f'{PLACES[0]}:mlp', f'{PLACES[1]}:layer',
  }  # fmt: skip
  assert not masks[f'{PLACES[1]}:layer'].any()
  for kind, count in (('head', 1), ('mlp', 7)):
    name = f'{PLACES[0]}:{kind}'
    best = np.argsort(-np.asarray(scores[name]))[:count]
    assert set(np.flatnonzero(masks[name])) == set(best)


def options_of(model, found, scores, loss=squares, shares=SHARES):
  costs = {
    place: {name: 1.0 + i for i, name in enumerate(rows)}
    for place, rows in found.items()
  }
  return costs, structure.options(
    model.config, model.params, found, scores, costs, loss
  )


@pytest.mark.parametrize('norm_order', ['pre', 'post'])
def test_a_loss_is_of_one_layer_alone(norm_order):
  model = classifier(model__norm_order=norm_order)
  found = structure.candidates(model.config, model.params, SHARES, none=True)
  scores = random_scores(model, ('head', 'mlp'))
  configs = []

  def loss(config, params):
    configs.append(config)
    return squares(config, params)

  costs, options = options_of(model, found, scores, loss)
  whole = squares(model.config, model.params)
  flat = tensors_lib.flatten(model.params)
  for place, own in options.items():
    values = {option.name: option.loss for option in own}
    assert {option.name: option.cost for option in own} == {
      name: costs[place][name] for name in values
    }
    assert values[NAMES[0]] == whole
    for heads in (3, 1):
      for columns in (10, 7, 2):
        lost = 0.0
        for kind, path, count in (
          ('head', f'{place}/mixer/out/kernel', heads),
          ('mlp', f'{place}/mlp/out/kernel', columns),
        ):
          gone = np.argsort(-np.asarray(scores[f'{place}:{kind}']))[count:]
          lost += np.square(flat[path][gone].astype('f8')).sum()
        assert values[f'head {heads}, mlp {columns}'] == pytest.approx(
          whole + lost, rel=1e-6
        )
  # One program for all, but for those with a layer less.
  assert [c.model.num_layers for c in configs if c != model.config] == [2] * 3
  # The whole is looked at once.
  assert len(configs) == 1 + 3 * (len(NAMES) - 1) + 3


def test_the_layer_that_is_missed_most_stays():
  model = classifier()
  found = structure.candidates(model.config, model.params, {}, none=True)
  _, options = options_of(model, found, {})
  values = {
    place: sum(
      np.square(np.asarray(x, 'f8')).sum()
      for x in (
        model.params['encoder'][place[8:]]['mixer']['out']['kernel'],
        model.params['encoder'][place[8:]]['mlp']['out']['kernel'],
      )
    )
    for place in PLACES
  }
  best = max(values, key=values.get)
  assert {
    place
    for place, own in options.items()
    if 'none' not in [o.name for o in own]
  } == {best}


def test_a_hybrid_keeps_as_many_layers_as_it_has_members():
  model = classifier('full+linear')
  found = structure.candidates(model.config, model.params, {}, none=True)
  _, options = options_of(model, found, {})
  assert sum(len(own) for own in options.values()) == 4
  # All layers in one group: it cannot leave.
  rows = tuple((str(index), (('share', 'a'),)) for index in range(3))
  model = classifier(rows=rows)
  found = structure.candidates(model.config, model.params, {}, none=True)
  _, options = options_of(model, found, {})
  assert [o.name for o in options['encoder/shared_a']] == ['whole']


def test_the_model_of_a_plan_is_as_wide_and_as_fast_as_it_says(tmp_path):
  model, path = classifier(), tmp_path / 'table.json'
  found = structure.candidates(model.config, model.params, SHARES, none=True)
  scores = random_scores(model, ('head', 'mlp'))
  costs = costs_of(model, found, path, OfHeads())
  options = structure.options(
    model.config, model.params, found, scores, costs, squares
  )
  least = sum(min(o.cost for o in own) for own in options.values())
  with pytest.raises(ConfigError, match='no plan is within the budget of'):
    policy.solve(options, least - 0.1)
  seen = set()
  for budget in (least, 40, 55, 80):
    plan = policy.solve(options, budget)[0]
    masks = structure.masks_of(found, plan, scores)
    config, params = shrink.shrink(model.config, model.params, masks)
    both = latency_table.predicted_and_measured(
      config, B, T, path, measure=OfHeads()
    )
    assert both == (policy.cost_of(options, plan), 500)
    assert both[0] <= budget
    left = [name for name in plan.values() if name != 'none']
    blocks = [params['encoder'][f'layer_{i}'] for i in range(len(left))]
    assert config.model.num_layers == len(left)
    assert [
      f'head {b["mixer"]["query"]["kernel"].shape[1]}, '
      f'mlp {b["mlp"]["in"]["bias"].size}'
      for b in blocks
    ] == left
    seen |= set(plan.values())
  assert len(seen) > 3
  # It gives what the masked model gives.
  units = units_lib.of(model.config, model.params, ('head', 'mlp'))
  plan = dict.fromkeys(PLACES, 'head 1, mlp 7')
  masks = structure.masks_of(found, plan, scores)
  masked = model.outputs(params=masks_lib.apply(model.params, masks, units))
  small = shrink.shrink(model.config, model.params, masks)
  np.testing.assert_allclose(model.outputs(*small), masked, atol=1e-5)
