"""Which option for which part, under a budget: a solver and a search.

A model has groups (a kernel, a layer, a table), of which each gets one of a few
options (bits, a share of its columns). Every option has a cost (bytes from
packing, milliseconds from a table measured on the device) and a loss, measured
with that group alone changed. If losses add up, the best plan is

    min sum_g loss(g, o_g)    where    sum_g cost(g, o_g) <= budget

a multiple-choice knapsack, solved by dynamic programming over costs in bins
(exactly, but for what rounding costs up to a bin leaves of the budget).
Losses do not add up exactly: the best few plans are measured as a whole, and
while none reaches the floor, the next ones are. What comes back is all that was
measured, its Pareto frontier, and why the search stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from effformer.errors import ConfigError

# Costs are rounded up to so many parts of the budget: a plan never exceeds it,
# and may fall short of the best one by a part for each group.
BINS = 4096
# Plans that are measured at once.
AT_ONCE = 5

Plan = Mapping[str, str]


class Option(NamedTuple):
  """What a group may get.

  Attributes:
    name: of the option.
    cost: of the group with it, at least 0.
    loss: what it costs in quality when nothing else is changed.
  """

  name: str
  cost: float
  loss: float


class Measured(NamedTuple):
  """A plan that was tried.

  Attributes:
    plan: group -> option.
    cost: of all groups.
    predicted: sum of the losses.
    score: as measured, the more the better.
  """

  plan: dict[str, str]
  cost: float
  predicted: float
  score: float


class Outcome(NamedTuple):
  """What a search found.

  Attributes:
    best: of those within the budget the one of the highest score.
    is_reached: whether it reaches the floor.
    frontier: what was measured and is not beaten in both cost and score, by
      cost.
    tried: all that was measured, in order.
    why: why the search stopped, a sentence.
  """

  best: Measured
  is_reached: bool
  frontier: tuple[Measured, ...]
  tried: tuple[Measured, ...]
  why: str


def check(least: float, budget: float) -> None:
  """Raises a ConfigError where even the least cost exceeds the budget."""
  if not least <= budget:
    raise ConfigError(
      f'no plan is within the budget of {budget:,.6g}: the least is '
      f'{least:,.6g}.\nAllow more, or smaller options.'
    )


def solve(
  groups: Mapping[str, Sequence[Option]],
  budget: float,
  *,
  count: int = 1,
  bins: int = BINS,
) -> list[dict[str, str]]:
  """The `count` plans of the least predicted loss within the budget, in order.

  Args:
    groups: name -> options.
    budget: of the costs of all groups together.
    count: of plans; fewer come back where there are not so many.
    bins: see `BINS`.

  Raises:
    ConfigError: no plan is within the budget.
  """
  least = sum(min(o.cost for o in options) for options in groups.values())
  check(least, budget)
  # What exceeds the least cost of each group, in bins. One for each group is
  # room for what rounding up adds.
  room = bins + len(groups)
  unit = (budget - least) / bins
  # loss_SK: of the K best plans so far that take S bins or fewer.
  loss_SK = np.full((room + 1, count), np.inf)
  loss_SK[:, 0] = 0.0
  steps = []
  for options in groups.values():
    low = min(o.cost for o in options)
    extra = [_bins(o.cost - low, unit, room) for o in options]
    loss_SK, step = _extended(loss_SK, options, extra)
    steps.append(step)
  found = []
  # Only what is within the budget by exact costs; from `bins` down all is.
  for place in range(room, bins - 1, -1):
    for rank in range(count):
      if np.isfinite(loss_SK[place, rank]):
        plan = _traced(groups, steps, place, rank)
        if plan not in found and cost_of(groups, plan) <= budget:
          found.append(plan)
  found.sort(key=lambda plan: predicted(groups, plan))
  return found[:count]


def _bins(extra, unit, room):
  if extra <= 0:
    return 0
  return int(min(np.ceil(extra / unit), room + 1)) if unit > 0 else room + 1


def _extended(loss_SK, options, extra):
  """The K best with one group more, and which option and rank each came by."""
  size, count = loss_SK.shape
  candidates = np.full((size, len(options), count), np.inf)
  for number, (option, shift) in enumerate(zip(options, extra, strict=True)):
    if shift < size:
      candidates[shift:, number] = loss_SK[: size - shift] + option.loss
  flat = candidates.reshape(size, -1)
  order = np.argsort(flat, axis=1, kind='stable')[:, :count]
  best = np.take_along_axis(flat, order, axis=1)
  return best, (*np.divmod(order, count), extra)


def _traced(groups, steps, place, rank):
  plan = {}
  for name, (option, before, extra) in reversed(
    list(zip(groups, steps, strict=True))
  ):
    number = int(option[place, rank])
    plan[name] = groups[name][number].name
    place, rank = place - extra[number], int(before[place, rank])
  return {name: plan[name] for name in groups}


def cost_of(groups: Mapping[str, Sequence[Option]], plan: Plan) -> float:
  """Cost of a plan."""
  return sum(_option(groups, plan, name).cost for name in groups)


def predicted(groups: Mapping[str, Sequence[Option]], plan: Plan) -> float:
  """Loss of a plan, if losses add up."""
  return sum(_option(groups, plan, name).loss for name in groups)


def _option(groups, plan, name):
  return next(o for o in groups[name] if o.name == plan[name])


def uniform(
  groups: Mapping[str, Sequence[Option]], name: str
) -> dict[str, str]:
  """The plan that gives every group the same option."""
  for group, options in groups.items():
    if name not in {option.name for option in options}:
      raise ConfigError(f'{group} has no option {name!r}.')
  return dict.fromkeys(groups, name)


def combined(
  tasks: Sequence[Mapping[str, Sequence[Option]]],
) -> dict[str, list[Option]]:
  """Options for several tasks of one model, none of which is sacrificed.

      loss(g, o) = max_t loss_t(g, o) / sum_g' max_o' loss_t(g', o')

  A task's losses count as shares of what it has to lose; of these the highest
  is taken, where a mean would let one task pay for the others. If losses add
  up, no task loses a larger share by a plan than is predicted of it.

  Args:
    tasks: of each the same groups, options and costs, and losses of its own,
      0 being nothing.

  Raises:
    ConfigError: the tasks have other options.
    ValueError: there are no tasks.
  """
  if not tasks:
    raise ValueError('options of at least one task are needed')
  first = tasks[0]
  for number, own in enumerate(tasks):
    if _without_losses(own) != _without_losses(first):
      raise ConfigError(
        f'task {number} has other groups, options or costs than task 0.\n'
        'Measure the losses of all tasks for the same options.'
      )
  # What cannot lose anything has no say.
  scales = [
    sum(max(0.0, *(o.loss for o in options)) for options in own.values()) or 1.0
    for own in tasks
  ]
  return {
    name: [
      option._replace(
        loss=max(
          own[name][place].loss / scale
          for own, scale in zip(tasks, scales, strict=True)
        )
      )
      for place, option in enumerate(options)
    ]
    for name, options in first.items()
  }


def _without_losses(groups):
  return {
    name: [(o.name, o.cost) for o in options]
    for name, options in groups.items()
  }


def search(
  groups: Mapping[str, Sequence[Option]],
  measure: Callable[[dict[str, str]], float],
  budget: float,
  *,
  floor: float = -np.inf,
  max_trials: int = 4 * AT_ONCE,
) -> Outcome:
  """The best plan within the budget, by what is measured of whole plans.

  Args:
    groups: name -> options.
    measure: plan -> score, the more the better; on data that the losses may be
      of, never on those of the test.
    budget: see `solve`.
    floor: a score that is enough.
    max_trials: plans that are measured at most.

  Raises:
    ConfigError: no plan is within the budget.
  """
  if max_trials < 1:
    raise ValueError(f'max_trials must be at least 1, got {max_trials}')
  tried = []
  for plan in solve(groups, budget, count=max_trials):
    tried.append(
      Measured(
        plan,
        cost_of(groups, plan),
        predicted(groups, plan),
        float(measure(plan)),
      )
    )
    best = max(tried, key=lambda m: m.score)
    if len(tried) >= min(AT_ONCE, max_trials) and best.score >= floor:
      break
  if best.score >= floor:
    why = f'the best of the {len(tried)} plans measured reaches the floor'
  elif len(tried) == max_trials:
    why = f'none of {max_trials} plans reaches {floor:g}: max_trials'
  else:
    why = f'none of all {len(tried)} plans within the budget reaches {floor:g}'
  return Outcome(best, best.score >= floor, frontier(tried), tuple(tried), why)


def frontier(measured: Sequence[Measured]) -> tuple[Measured, ...]:
  """Those that no other beats in cost and score, by cost."""
  found = []
  for one in sorted(measured, key=lambda m: (m.cost, -m.score)):
    if not found or one.score > found[-1].score:
      found.append(one)
  return tuple(found)
