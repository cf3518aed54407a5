"""BigBird: its limits, what is global in both forms, its random blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention import bigbird
from effformer.shapes import Tokens
from tests.attention import cost_test
from tests.attention.cases import (
  B,
  Case,
  D,
  H,
  T,
  assert_close,
  call_of,
  module_of,
  normal,
  run,
  variables_of,
)

ROWS = Tokens.from_lengths(np.array([T, 4]), T)
KEEP_BT = np.asarray(ROWS.keep_BT)


def sparse(**settings):
  return Case('bigbird').having(num_heads=H, **settings)


def rows_of(plan_NJ):
  """The sets of blocks, after checking that none stands twice."""
  rows = [[block for block in row if block >= 0] for row in plan_NJ.tolist()]
  assert all(len(row) == len(set(row)) for row in rows)
  return [set(row) for row in rows]


def plans(last, num_blocks, num_random, seed=0, num_heads=1, with_ends=True):
  """Sets of blocks, [H][N]."""
  bits_HNM = bigbird.random_bits(seed, num_heads, num_blocks, num_random)
  plans_HNJ = jax.vmap(bigbird.plan, (0, None, None))(
    bits_HNM, jnp.int32(last), with_ends
  )
  return [rows_of(np.asarray(plan_NJ)) for plan_NJ in plans_HNJ]


@pytest.mark.parametrize(
  'settings',
  [
    {'block': 1, 'num_random': T},
    # Up to five blocks, the window and the ends are all of them.
    {'block': 2, 'num_random': 0},
    {'block': 2, 'num_random': 3},
    {'block': 8, 'num_random': 1},
    {'num_random': 3},
    # The ends of three blocks do not see each other but by drawing.
    {'block': 2, 'num_random': 1, 'global_tokens': 1},
    {'block': 1, 'num_random': T, 'global_tokens': 2},
    {'block': 3, 'num_random': 0, 'global_tokens': 1},
    {'num_random': 3, 'global_tokens': 2},
    {'block': 1, 'num_random': 0, 'global_tokens': T},
    {'block': 1, 'num_random': 1, 'global_tokens': T + 2},
  ],
  ids=str,
)
def test_all_blocks_are_full(settings):
  case = sparse(**settings)
  full = Case('full').having(num_heads=H, form='dense')
  x_BTD, variables = normal(B, T, D), variables_of(full)
  y_BTD = call_of(case)(variables, x_BTD, ROWS)
  expected_BTD = call_of(full)(variables, x_BTD, ROWS)
  assert_close(y_BTD[KEEP_BT], expected_BTD[KEEP_BT])


def seen_by(case, token):
  """Tokens whose content changes the output of `token`; the last is 5."""
  x_BTD = np.repeat(normal(1, T, D), T, axis=0)
  for t in range(T):
    x_BTD[t, t] += 1.0
  y_BTD = run(case, x_BTD, Tokens.from_lengths(np.full(T, 6), T))
  # No token sees the padding, so this is the row as it was.
  y_BD, before_D = y_BTD[:, token], y_BTD[6, token]
  return {t for t in range(6) if np.abs(y_BD[t] - before_D).max() > 1e-6}


@pytest.mark.parametrize('token', range(6))
def test_token_sees_window_and_ends(token):
  seen = seen_by(sparse(block=1, num_random=0), token)
  if token in (0, 5):
    assert seen == set(range(6))
  else:
    assert seen == {0, 5, token - 1, token, token + 1}


@pytest.mark.parametrize('token', range(6))
def test_token_sees_window_and_global_tokens(token):
  seen = seen_by(sparse(block=1, num_random=0, global_tokens=2), token)
  if token < 2:
    assert seen == set(range(6))
  else:
    assert seen == {0, 1, *{token - 1, token, token + 1} - {6}}


def test_blocks_start_behind_the_global_tokens():
  # The blocks are {1, 2}, {3, 4} and {5}.
  wide = sparse(block=2, num_random=0, global_tokens=1)
  assert seen_by(wide, 2) == {0, 1, 2, 3, 4}
  assert seen_by(wide, 5) == {0, 3, 4, 5}


def test_first_real_tokens_are_global_wherever_they_stand():
  case = sparse(block=1, num_random=0, global_tokens=2)
  x_BTD, y_BTD = normal(1, T, D), np.zeros((1, T, D), 'f4')
  y_BTD[:, 2:] = x_BTD[:, : T - 2]
  right = Tokens.from_lengths(np.array([T - 2]), T)
  left = Tokens.from_segments(np.array([[0] * 2 + [1] * (T - 2)]))
  left = left.replace(is_packed=False)
  assert_close(
    run(case, y_BTD, left)[:, 2:], run(case, x_BTD, right)[:, : T - 2]
  )


def test_random_blocks_beside_global_tokens():
  (plan,) = plans(last=9, num_blocks=12, num_random=3, with_ends=False)
  for block in range(10):
    sure = {block - 1, block, block + 1} & set(range(10))
    assert sure <= plan[block] <= set(range(10))
    assert len(plan[block]) == len(sure) + 3
  assert [plan[block] for block in (10, 11)] == [set()] * 2
  num_heads = 2000
  drawn = plans(9, 10, 1, num_heads=num_heads, with_ends=False)
  for block, others in ((0, range(2, 10)), (4, (0, 1, 2, 6, 7, 8, 9))):
    sure, share = {block - 1, block, block + 1}, 1 / len(others)
    counts = np.bincount([min(p[block] - sure) for p in drawn], minlength=10)
    error = (num_heads * share * (1 - share)) ** 0.5
    assert np.abs(counts[[*others]] - share * num_heads).max() < 4 * error


def test_operations_are_linear_with_global_tokens():
  assert (
    cost_test.time_exponent('bigbird', False, num_heads=2, global_tokens=4)
    <= cost_test.LARGEST_EXPONENT
  )


@pytest.mark.optimised
def test_memory_is_linear_with_global_tokens():
  settings = {'num_heads': 2, 'global_tokens': 4}
  exponent = cost_test.memory_exponent('bigbird', False, **settings)
  assert exponent <= cost_test.LARGEST_EXPONENT


def test_random_blocks_are_further_blocks_and_each_once():
  (plan,) = plans(last=9, num_blocks=12, num_random=3)
  for block in range(1, 9):
    sure = {0, 9, block - 1, block, block + 1}
    assert sure <= plan[block] <= set(range(10))
    assert len(plan[block]) == len(sure) + 3
  assert [plan[block] for block in (0, 9, 10, 11)] == [set()] * 4


def test_fewer_blocks_than_are_drawn_are_all_seen():
  (plan,) = plans(last=7, num_blocks=8, num_random=6)
  assert all(plan[block] == set(range(8)) for block in range(1, 7))


def test_random_blocks_are_evenly_likely():
  num_heads = 4000
  drawn = plans(last=9, num_blocks=10, num_random=2, num_heads=num_heads)
  counts = np.zeros(10)
  for plan in drawn:
    for block in plan[4] - {0, 3, 4, 5, 9}:
      counts[block] += 1
  # Two of five blocks: a binomial share of 0.4.
  error = (num_heads * 0.4 * 0.6) ** 0.5
  assert np.abs(counts[[1, 2, 6, 7, 8]] - 0.4 * num_heads).max() < 4 * error


def test_random_blocks_depend_on_head_and_seed_and_not_on_padding():
  first, second = plans(last=30, num_blocks=31, num_random=3, num_heads=2)
  assert first != second
  assert plans(last=30, num_blocks=31, num_random=3, seed=1) != [first]
  assert plans(last=30, num_blocks=31, num_random=3) == [first]
  (padded,) = plans(last=30, num_blocks=40, num_random=3)
  assert padded[:31] == first


@pytest.mark.parametrize('global_tokens', [0, 2])
@pytest.mark.slow
def test_dropout_is_of_all_weights_and_of_no_blocks(global_tokens):
  case = sparse(block=1, num_random=1, global_tokens=global_tokens)
  x_BTD = normal(B, T, D)

  def train(dropout):
    dropping = module_of(case.having(dropout=dropout))
    y_BTD = dropping.apply(
      variables_of(case), x_BTD, tokens=ROWS, deterministic=False,
      rngs={'dropout': jax.random.key(1)},
    )  # fmt: skip
    return y_BTD[KEEP_BT]

  # So little dropout drops nothing, so much drops everything.
  assert_close(train(1e-9), run(case, x_BTD, ROWS)[KEEP_BT])
  np.testing.assert_array_equal(train(1 - 1e-9), 0.0)


@pytest.mark.parametrize(
  'setting', ['num_random', 'block', 'seed', 'global_tokens']
)
def test_wrong_value_is_refused(setting):
  with pytest.raises(ValueError, match=f'{setting}.*0.*-1'):
    attention.build('bigbird', **{setting: -1})
