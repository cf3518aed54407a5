"""Two tasks on one encoder: what each needs, and the plans that follow.

A row is a query token, with a key and a bit, and tokens of all keys in any
order, each with a bit. Task `near` is the XOR of the bits of the first two
tokens: neighbours, and a product of them, which the feed-forward part has to
make. Task `far` is the bit of the token that has the query's key, wherever it
stands: that takes attention, and nothing else.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effformer.compress import bits, policy, tensors
from effformer.compress.grid import Grid
from effformer.models import build
from tests import slow
from tests.models.build_test import make_config

TASKS = ('near', 'far')
KEYS = 6
T, Y, STEPS, BATCH = 1 + KEYS, 1 + 4 * KEYS, 400, 128
MIXER, MLP = 'encoder/layer_0/mixer', 'encoder/layer_0/mlp'
GRIDS = {'4': Grid(4), '2': Grid(2), '1': Grid(1, rule='sign')}
# Two logits for each task.
MODULE = build.sequence_classifier(
  make_config(
    'full',
    model__num_layers=1,
    model__width=24,
    model__num_heads=2,
    model__mlp_width=48,
    model__conv_width=3,
    model__pooling='first',
    mixer__form='dense',
  ),
  Y,
  4,
)
# Nats that one plan is better by.
MARGIN = 0.1


def examples(key, number):
  """Ids [N, T] and the labels of both tasks [2, N]."""
  keys = jax.random.split(key, 4)
  query_N = jax.random.randint(keys[0], (number,), 0, KEYS)
  own_N = jax.random.randint(keys[1], (number,), 0, 2)
  order_NK = jnp.argsort(jax.random.uniform(keys[2], (number, KEYS)), axis=1)
  bit_NK = jax.random.randint(keys[3], (number, KEYS), 0, 2)
  first_N = 1 + 2 * query_N + own_N
  rest_NK = 1 + 2 * KEYS + 2 * order_NK + bit_NK
  near_N = own_N ^ bit_NK[:, 0]
  far_N = jnp.sum(bit_NK * (order_NK == query_N[:, None]), axis=1)
  ids_NT = jnp.concatenate([first_N[:, None], rest_NK], axis=1)
  return ids_NT, jnp.stack([near_N, far_N])


def losses(params, ids_NT, label_2N):
  """Of each task [2]."""
  lengths_N = jnp.full(ids_NT.shape[0], T)
  logits_NC = MODULE.apply({'params': params}, ids_NT, lengths_N)
  logits_2NC = logits_NC.reshape(-1, 2, 2).swapaxes(0, 1)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits_2NC, label_2N
  ).mean(axis=1)


@jax.jit
def trained(seed):
  """The encoder with both heads, after some steps on both tasks."""
  ids_1T, lengths_1 = jnp.ones((1, T), int), jnp.full(1, T)
  params = MODULE.init(jax.random.key(seed), ids_1T, lengths_1)['params']
  optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

  def step(carry, key):
    params, state = carry
    batch = examples(key, BATCH)
    gradients = jax.grad(lambda p: losses(p, *batch).sum())(params)
    updates, state = optimiser.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(1), STEPS)
  first = params, optimiser.init(params)
  return jax.lax.scan(step, first, keys)[0][0]


class Found(NamedTuple):
  """What was found on data that choose, and how it does on others.

  Attributes:
    options: by task.
    budget: in bytes.
    outcomes: of the search, by task.
    losses: plan -> those of both tasks on data that chose nothing.
    whole: those of the model as it was.
  """

  options: dict
  budget: float
  outcomes: dict
  losses: Callable[[dict], np.ndarray]
  whole: np.ndarray


@pytest.fixture(scope='module', params=slow.after(1, range(4)))
def found(request):
  params = jax.device_get(trained(request.param))
  chosen, held_out = (examples(jax.random.key(s), 1000) for s in (2, 3))
  both = jax.jit(losses)
  before = both(params, *chosen)
  groups = bits.groups(params)

  def rounded(plan):
    return tensors.quantise(params, bits.plan_of(groups, plan, GRIDS))

  def lost(params, task):
    own = both(tensors.dequantise(params), *chosen)
    return float((own - before)[TASKS.index(task)])

  options = {
    task: bits.options(
      params, groups, GRIDS, lambda p, task=task: lost(p, task)
    )
    for task in TASKS
  }
  # All of 4 bits, but for one of the two large groups.
  least = {'embedding/embedding': '4', 'head_out/kernel': '4'}
  budget = max(
    policy.cost_of(options['near'], {**least, MIXER: one, MLP: other})
    for one, other in (('4', '1'), ('1', '4'))
  )
  outcomes = {
    task: policy.search(
      options[task], lambda plan, task=task: -lost(rounded(plan), task), budget
    )
    for task in TASKS
  }

  def of_held_out(plan):
    return np.asarray(both(tensors.dequantise(rounded(plan)), *held_out))

  return Found(
    options, budget, outcomes, of_held_out, np.asarray(both(params, *held_out))
  )


def test_the_encoder_has_learnt_both_tasks(found):
  assert found.whole.max() < 0.02


def test_two_tasks_have_two_plans(found):
  """By what was predicted alone, and by what was measured of whole plans."""
  for plans in (
    {task: own.tried[0].plan for task, own in found.outcomes.items()},
    {task: own.best.plan for task, own in found.outcomes.items()},
  ):
    near, far = (plans[task] for task in TASKS)
    # Each has its bits where the task is computed.
    assert int(near[MLP]) > int(far[MLP])
    assert int(near[MIXER]) < int(far[MIXER])
    # And is better on its own task than the plan of the other.
    (near_near, far_near), (near_far, far_far) = (
      found.losses(plan) for plan in (near, far)
    )
    assert near_near < near_far - MARGIN
    assert far_far < far_near - MARGIN
    for plan in (near, far):
      assert policy.cost_of(found.options['near'], plan) <= found.budget
