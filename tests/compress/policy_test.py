"""The solver against all plans, and what a search tries, takes and says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effformer.compress import policy
from effformer.compress.policy import Measured, Option
from effformer.errors import ConfigError

GROUPS = {
  'table': [Option('8', 40, 0.0), Option('4', 20, 0.3), Option('2', 10, 2.0)],
  'first': [Option('8', 16, 0.1), Option('4', 8, 0.2), Option('3', 6, 0.9)],
  'last': [Option('8', 16, 0.0), Option('4', 8, 1.5)],
}


def all_plans(groups):
  for options in itertools.product(*groups.values()):
    yield {
      name: option.name for name, option in zip(groups, options, strict=True)
    }


def ranked(groups, budget):
  fitting = [
    p for p in all_plans(groups) if policy.cost_of(groups, p) <= budget
  ]
  return sorted(fitting, key=lambda p: policy.predicted(groups, p))


@pytest.mark.parametrize('budget', [24, 30, 36, 44, 55, 72, 1000])
def test_the_best_plans_are_those_of_all(budget):
  found = policy.solve(GROUPS, budget, count=4)
  expected = ranked(GROUPS, budget)[:4]
  losses = [policy.predicted(GROUPS, plan) for plan in found]
  assert losses == [policy.predicted(GROUPS, plan) for plan in expected]
  assert len({tuple(plan.items()) for plan in found}) == len(found)
  assert all(policy.cost_of(GROUPS, plan) <= budget for plan in found)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_plan_is_within_the_budget_and_close_to_the_best(data):
  cost, loss = st.integers(0, 1000), st.floats(0, 10)
  groups = {
    f'g{index}': [
      Option(str(o), data.draw(cost), data.draw(loss))
      for o in range(data.draw(st.integers(1, 3)))
    ]
    for index in range(data.draw(st.integers(1, 4)))
  }
  costs = [policy.cost_of(groups, plan) for plan in all_plans(groups)]
  budget = data.draw(st.integers(min(costs), max(costs) + 1))
  bins = data.draw(st.sampled_from([64, policy.BINS]))
  (plan,) = policy.solve(groups, budget, bins=bins)
  assert policy.cost_of(groups, plan) <= budget
  # What rounding up may cost: a bin for each group.
  spare = (budget - min(costs)) / bins * len(groups)
  best = (
    policy.predicted(groups, ranked(groups, budget - spare)[0])
    if (budget - spare >= min(costs))
    else np.inf
  )
  assert policy.predicted(groups, plan) <= best + 1e-9


def test_a_budget_that_no_plan_reaches():
  with pytest.raises(ConfigError, match=r'budget of 23: the least is 24'):
    policy.solve(GROUPS, 23)
  assert policy.solve(GROUPS, 24) == [{'table': '2', 'first': '3', 'last': '4'}]


def test_a_plan_just_above_the_budget_is_not_taken():
  groups = {'one': [Option('small', 0, 1.0), Option('large', 10, 0.0)]}
  assert policy.solve(groups, 9.9, bins=2) == [{'one': 'small'}]
  assert policy.solve(groups, 10, bins=2) == [{'one': 'large'}]


def score_of(plan):
  """What is measured is not what was predicted: '4' of the table is good."""
  return 10 - policy.predicted(GROUPS, plan) + 5 * (plan['table'] == '4')


def test_the_best_measured_plan_is_taken_not_the_best_predicted_one():
  budget = 64
  outcome = policy.search(GROUPS, score_of, budget)
  assert [m.plan for m in outcome.tried] == policy.solve(
    GROUPS, budget, count=policy.AT_ONCE
  )
  assert outcome.tried[0].plan['table'] == '8'
  assert outcome.best.plan == {'table': '4', 'first': '8', 'last': '8'}
  assert outcome.best.score == max(m.score for m in outcome.tried)
  assert outcome.is_reached
  assert 'reaches the floor' in outcome.why
  for m in outcome.tried:
    assert m.cost == policy.cost_of(GROUPS, m.plan) <= budget
    assert m.predicted == policy.predicted(GROUPS, m.plan)


def test_further_plans_are_tried_while_the_floor_is_not_reached():
  asked = []

  def measure(plan):
    asked.append(plan)
    return float(plan['table'] == '2')

  # Plans with that option are among the last ones.
  outcome = policy.search(GROUPS, measure, 72, floor=0.5)
  assert outcome.is_reached
  assert outcome.best.plan['table'] == '2'
  assert len(asked) == len(outcome.tried) > policy.AT_ONCE
  few = policy.search(GROUPS, measure, 72, floor=0.5, max_trials=6)
  assert not few.is_reached
  assert len(few.tried) == 6
  assert few.why.endswith('max_trials')
  none = policy.search(GROUPS, measure, 72, floor=2, max_trials=100)
  assert len(none.tried) == 18
  assert 'none of all 18 plans' in none.why


def test_the_frontier_is_what_nothing_beats():
  def measured(cost, score):
    return Measured({}, cost, 0.0, score)

  every = [measured(*e) for e in ((3, 5), (1, 2), (2, 1), (3, 6), (4, 6))]
  assert policy.frontier(every) == (measured(1, 2), measured(3, 6))


def test_a_uniform_plan_needs_the_option_everywhere():
  assert policy.uniform(GROUPS, '4') == dict.fromkeys(GROUPS, '4')
  with pytest.raises(ConfigError, match="table has no option '3'"):
    policy.uniform(GROUPS, '3')
  with pytest.raises(ValueError, match='max_trials'):
    policy.search(GROUPS, score_of, 72, max_trials=0)


def of_losses(*losses):
  """Two groups of two options, of these losses."""
  return {
    group: [Option('8', 4, losses[2 * i]), Option('2', 1, losses[2 * i + 1])]
    for i, group in enumerate('ab')
  }


# The second has losses of another size, and most of them at another place.
FIRST, SECOND = of_losses(0.0, 6.0, 1.0, 4.0), of_losses(0, 150, 0, 850)


def test_of_several_tasks_the_highest_share_counts():
  found = policy.combined([FIRST, SECOND])
  assert found == of_losses(0.0, 6 / 10, 1 / 10, 850 / 1000)
  assert policy.combined([FIRST]) == of_losses(0.0, 0.6, 0.1, 0.4)
  assert policy.solve(found, 5) == [{'a': '2', 'b': '8'}]
  assert policy.solve(FIRST, 5) == [{'a': '8', 'b': '2'}]
  assert policy.solve(SECOND, 5) == [{'a': '2', 'b': '8'}]


def test_no_task_pays_for_the_others():
  """Three tasks need a, one needs b: a mean would forget the one."""
  tasks = [of_losses(0.0, 8.0, 0.0, 2.0)] * 3 + [of_losses(0.0, 0.1, 0.0, 0.9)]
  (plan,) = policy.solve(policy.combined(tasks), 5)
  assert plan == {'a': '2', 'b': '8'}
  mean = of_losses(0.0, (3 * 0.8 + 0.1) / 4, 0.0, (3 * 0.2 + 0.9) / 4)
  (other,) = policy.solve(mean, 5)

  def worst(plan):
    wholes = (10, 10, 10, 1)
    return max(
      policy.predicted(own, plan) / whole
      for own, whole in zip(tasks, wholes, strict=True)
    )

  assert worst(plan) == pytest.approx(0.8)
  assert worst(other) == pytest.approx(0.9)


@pytest.mark.parametrize('low', [0.0, -0.3])
def test_a_task_that_loses_nothing_has_no_say(low):
  nothing = of_losses(low, low, low, low)
  assert policy.combined([nothing, SECOND]) == policy.combined([SECOND])


@pytest.mark.parametrize(
  'other',
  [
    {'a': FIRST['a']},
    {**FIRST, 'b': [Option('8', 4, 1), Option('3', 1, 4)]},
    {**FIRST, 'b': [Option('8', 4, 1), Option('2', 2, 4)]},
  ],
)
def test_tasks_need_the_same_options(other):
  with pytest.raises(ConfigError, match='task 1 has other groups'):
    policy.combined([FIRST, other])
  with pytest.raises(ValueError, match='at least one task'):
    policy.combined([])
