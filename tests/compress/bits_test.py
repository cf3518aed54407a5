"""Groups, bytes and losses of bits, and the plan that follows from them."""

import jax
import numpy as np
import pytest

from effformer.compress import bits, policy, tensors
from effformer.compress.grid import Grid
from tests.compress.tensors_test import OUT, QUERY, ROUNDED, params

GRIDS = {'8': Grid(8), '3': Grid(3)}
MIXER, MLP = 'encoder/layer_0/mixer', 'encoder/layer_0/mlp'


def test_every_matrix_is_in_one_group():
  found = bits.groups(params())
  assert set(found) == {'embedding/embedding', 'positions', MIXER, MLP}
  assert sorted(sum(found.values(), ())) == sorted(ROUNDED)
  assert set(found[MIXER]) == {QUERY, OUT}


def squared(values):
  """Of what a loss sees: the squared error of all numbers."""
  numbers = tensors.dequantise(values)
  errors = jax.tree.map(
    lambda a, b: float(np.square(a - b).sum()), numbers, params()
  )
  return sum(jax.tree.leaves(errors))


def test_an_option_has_the_bytes_and_the_loss_of_its_group_alone():
  groups = bits.groups(params())
  found = bits.options(params(), groups, GRIDS, squared)
  assert set(found) == set(groups)
  for group, paths in groups.items():
    assert [option.name for option in found[group]] == ['8', '3']
    for option in found[group]:
      alone = tensors.quantise(
        params(), dict.fromkeys(paths, GRIDS[option.name])
      )
      assert option.loss == pytest.approx(squared(alone))
      assert option.cost == bits.num_bytes(alone) > 0
    assert found[group][0].loss < found[group][1].loss
    assert found[group][0].cost > found[group][1].cost
  # Losses of squares add up, bytes too.
  plan = policy.solve(found, sum(o[1].cost for o in found.values()) + 30)[0]
  assert len(set(plan.values())) == 2
  rounded = tensors.quantise(params(), bits.plan_of(groups, plan, GRIDS))
  assert bits.num_bytes(rounded) == policy.cost_of(found, plan)
  assert squared(rounded) == pytest.approx(policy.predicted(found, plan))


def test_another_way_to_round_is_used():
  calls = []

  def quantise(values, plan):
    calls.append(set(plan))
    return tensors.quantise(values, plan)

  groups = bits.groups(params())
  bits.options(params(), groups, {'8': Grid(8)}, squared, quantise=quantise)
  assert calls == [set(paths) for paths in groups.values()]
