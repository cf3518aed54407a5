"""Recipes: what is read, what is refused, and which orders can work."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from effformer.compress import command, int8, recipe, tensors
from effformer.compress.distill.teaching import Lesson
from effformer.compress.grid import Grid
from effformer.errors import ConfigError

UNITS = {'do': 'choose_units', 'budget': 0.5}
ROWS = [
  {'do': 'drop_layers', 'keep': [0, 2]},
  {'do': 'train', 'steps': 3, 'learning_rate': 1, 'lesson': {'states': 2}},
  {'do': 'prune', 'units': ['mlp', 'head'], 'ratio': 0.5, 'score': 'random'},
  {'do': 'round', 'bits': 4, 'group': 'tile', 'tile': 8, 'method': 'gptq'},
]


def test_rows_become_steps_and_rows_again():
  steps = recipe.read(ROWS)
  assert steps == (
    recipe.DropLayers((0, 2)),
    recipe.Train(3, 1.0, Lesson(states=2.0)),
    recipe.Prune(('mlp', 'head'), 0.5, 'random'),
    recipe.Round(4, 'tile', 8, method='gptq'),
  )
  assert steps[3].grid == Grid(4, 'tile', 8)
  assert steps[3].table_grid == Grid(8)
  assert recipe.Round(tables=0).table_grid is None
  rows = json.loads(json.dumps([recipe.row_of(step) for step in steps]))
  assert recipe.read(rows) == steps
  # By default labels alone teach.
  train = recipe.read([{'do': 'train', 'steps': 1, 'learning_rate': 1.0}])[0]
  assert (train.lesson.hard, train.lesson.soft) == (1, 0)


def test_tables_have_no_pattern():
  (last,) = recipe.read([{'do': 'round', 'bits': 4, 'pattern': [2, 4]}])
  assert last.grid == Grid(4, keep=2, of=4)
  assert last.table_grid == Grid(8)
  assert dataclasses.replace(last, tables=0).table_grid == Grid(4)


def works(order):
  """As the head of the module says."""
  names = [row['do'] for row in order]
  rounded = names.index('round') if 'round' in names else len(names)
  pruned = names.index('prune') if 'prune' in names else len(names)
  is_last = rounded >= len(names) - 1
  return is_last and 'drop_layers' not in names[pruned:]


@pytest.mark.parametrize('order', itertools.permutations(range(4)))
def test_orders_that_can_work(order):
  rows = [ROWS[index] for index in order]
  if works(rows):
    assert len(recipe.read(rows)) == 4
    return
  with pytest.raises(ConfigError, match='comes after'):
    recipe.read(rows)


def test_steps_may_come_again():
  train, prune, drop = ROWS[1], ROWS[2], ROWS[0]
  assert len(recipe.read([drop, train, drop, prune, train, prune, train])) == 7
  with pytest.raises(ConfigError, match='train comes after round'):
    recipe.read([ROWS[3], train])
  with pytest.raises(ConfigError, match='round comes after round'):
    recipe.read([ROWS[3], ROWS[3]])


@pytest.mark.parametrize(
  ('row', 'words'),
  [
    ({'do': 'melt'}, "no step 'melt'; there are drop_layers"),
    ({}, 'no step None'),
    ({'do': 'drop_layers'}, 'drop_layers needs keep'),
    ({'do': 'drop_layers', 'keep': 2}, 'keep=2 has to be a row'),
    ({'do': 'drop_layers', 'keep': ['0']}, "keep='0' has to be int"),
    ({'do': 'round', 'bit': 8}, "round has no setting 'bit'; it has bits"),
    ({'do': 'round', 'bits': 9}, 'bits has to be 2 to 8'),
    ({'do': 'round', 'bits': True}, 'bits=True has to be int'),
    ({'do': 'round', 'tables': 1}, 'bits has to be 2 to 8'),
    ({'do': 'round', 'pattern': [2]}, r'pattern=\(2,\) has to be two numbers'),
    (
      {'do': 'round', 'pattern': [4, 4]},
      'round: a pattern keeps .* got 4 of 4',
    ),
    ({'do': 'round', 'pattern': [0, 0]}, 'got 0 of 0'),
    (
      {'do': 'round', 'pattern': [2, 4], 'symmetric': False},
      'needs a symmetric grid',
    ),
    (
      {
        'do': 'round',
        'bits': 1,
        'rule': 'sign',
        'tables': 0,
        'pattern': [2, 4],
      },
      'a code for 0',
    ),
    (
      {'do': 'round', 'group': 'tile', 'tile': 6, 'pattern': [2, 4]},
      'tile=6 is no multiple of 4',
    ),
    ({'do': 'round', 'method': 'best'}, 'one of nearest, gptq'),
    ({'do': 'round', 'batches': 0}, 'batches=0 has to be at least 1'),
    ({'do': 'round', 'activations': 'static'}, "activations='static' has to"),
    (
      {'do': 'round', 'rule': 'kmeans', 'activations': 'dynamic'},
      "activations='dynamic' needs integers",
    ),
    ({'do': 'round', 'batches': 9}, 'batches=9 is read with another method'),
    (
      {
        'do': 'prune',
        'units': ['mlp'],
        'ratio': 0.5,
        'score': 'magnitude',
        'batches': 9,
      },
      'prune: batches=9 is read with score=',
    ),
    (
      {
        'do': 'prune',
        'units': ['mlp'],
        'ratio': 0.5,
        'score': 'random',
        'batches': 9,
      },
      'prune: batches=9 is read with score=',
    ),
    (
      {'do': 'simplify', 'norm': 'rms', 'batches': 9},
      "simplify: batches=9 is read with norm='affine'",
    ),
    (
      {'do': 'factorise', 'share': 0.5, 'parts': ['embedding'], 'batches': 9},
      "factorise: batches=9 is read with 'mlp'",
    ),
    ({'do': 'swap'}, 'swap needs mechanism'),
    ({'do': 'share', 'number': 0}, 'number=0 has to be at least 1'),
    ({'do': 'simplify'}, 'needs an activation or a norm'),
    ({'do': 'factorise', 'share': 1}, 'share=1.0 has to be above 0'),
    ({'do': 'factorise', 'share': 0.5, 'parts': ['mixer']}, 'parts='),
    ({'do': 'factorise', 'share': 0.5, 'parts': []}, 'parts='),
    ({'do': 'swap', 'mechanism': 'local', 'settings': 3}, 'values by name'),
    ({'do': 'choose_bits', 'budget': 1}, 'budget=1.0 has to be above 0'),
    ({'do': 'choose_units', 'budget': 1}, 'choose_units: budget=1.0 has to'),
    ({**UNITS, 'units': ['layer']}, r"units=\('layer',\) have to be of"),
    ({**UNITS, 'shares': [1.0]}, r'shares=\(1.0,\) have to be above 0'),
    ({**UNITS, 'shares': []}, r'shares=\(\) have to be'),
    ({**UNITS, 'score': 'wanda'}, "score='wanda' has to be one of"),
    ({**UNITS, 'length': -1}, 'length=-1 has to be at least 0'),
    ({**UNITS, 'batch': 0}, 'batch=0 has to be at least 1'),
    ({**UNITS, 'max_trials': 0}, 'max_trials=0 has to be at least 1'),
    ({**UNITS, 'tolerance': -0.5}, 'tolerance=-0.5 has to be at least 0'),
    ({'do': 'choose_bits', 'budget': 0.1, 'choices': [9]}, r'choices=\(9,\)'),
    ({'do': 'choose_bits', 'budget': 0.1, 'choices': []}, r'choices=\(\)'),
    ({'do': 'choose_bits', 'budget': 0.1, 'tolerance': -1}, 'tolerance=-1.0'),
    ({'do': 'choose_bits', 'budget': 0.1, 'method': 'awq'}, 'one of nearest'),
    ({'do': 'choose_bits', 'budget': 0.1, 'max_trials': 0}, 'max_trials=0'),
    ({'do': 'prune', 'units': ['layer'], 'ratio': 0.5}, r"units=\('layer',\)"),
    ({'do': 'prune', 'units': [], 'ratio': 0.5}, r'units=\(\)'),
    ({'do': 'prune', 'units': ['mlp'], 'ratio': 1}, 'ratio=1.0 has to be'),
    ({'do': 'prune', 'units': ['mlp'], 'ratio': 0.5, 'score': 'x'}, 'score='),
    ({'do': 'train', 'steps': 0, 'learning_rate': 1}, 'steps=0'),
    ({'do': 'train', 'steps': 1, 'learning_rate': 0}, 'learning_rate=0.0'),
    (
      {'do': 'train', 'steps': 1, 'learning_rate': 1, 'lesson': {'x': 1}},
      "a lesson has no 'x'",
    ),
    (
      {'do': 'train', 'steps': 1, 'learning_rate': 1, 'lesson': 'hard'},
      'weights by name',
    ),
    (
      {'do': 'train', 'steps': 1, 'learning_rate': 1, 'lesson': {'soft': 0}},
      'one of them above',
    ),
  ],
)
def test_what_is_refused(row, words):
  with pytest.raises(ConfigError, match=words):
    recipe.read([row])


@pytest.mark.parametrize('group', ['tensor', 'channel', 'tile'])
@pytest.mark.parametrize(
  ('rule', 'bits', 'symmetric'),
  [
    *(('extremes', bits, own) for bits in (8, 4, 2) for own in (True, False)),
    ('clip', 5, True), ('ternary', 2, True), ('absmean', 2, True),
    ('sign', 1, True), ('kmeans', 4, True),
  ],
)  # fmt: skip
def test_what_integers_refuse_is_refused_before(group, rule, bits, symmetric):
  """Rounded inputs are of what `int8.product` takes."""
  tile = 5 if group == 'tile' else 0
  if rule == 'kmeans' and tile:
    return
  row = {
    'do': 'round', 'bits': bits, 'group': group, 'tile': tile, 'rule': rule,
    'symmetric': symmetric,
  }  # fmt: skip
  (step,) = recipe.read([row])
  rng = np.random.default_rng(0)
  w_KN, x_LK = (rng.normal(size=s).astype('f4') for s in ((12, 3), (2, 12)))
  params = tensors.quantise({'kernel': w_KN}, {'kernel': step.grid})
  try:
    y_LN = int8.product(x_LK, params['kernel'])
  except ConfigError:
    with pytest.raises(ConfigError, match='activations='):
      recipe.read([{**row, 'activations': 'dynamic'}])
    assert rule == 'kmeans'
    return
  assert np.isfinite(y_LN).all()
  (step,) = recipe.read([{**row, 'activations': 'dynamic'}])
  assert step.activations == 'dynamic'


def test_controls_read_no_batches():
  """Set for what they replace, which is no reason to refuse them."""
  rows = recipe.read([
    {'do': 'prune', 'units': ['mlp'], 'ratio': 0.5, 'batches': 3},
    {'do': 'round', 'method': 'gptq', 'batches': 3},
  ])  # fmt: skip
  found = command.controls(rows)
  assert found['random'][0].batches == found['nearest'][1].batches == 8
  assert found['random'][1].batches == found['nearest'][0].batches == 3
  step = recipe.ChooseBits(0.2, method='nearest', batches=3)
  assert (step.uniform.method, step.uniform.batches) == ('nearest', 8)


def test_a_recipe_has_steps():
  with pytest.raises(ConfigError, match='at least one step'):
    recipe.read([])


def test_training_for_rounding_needs_the_rounding():
  train = {'do': 'train', 'steps': 1, 'learning_rate': 1.0, 'rounded': True}
  last = {'do': 'round', 'bits': 2, 'rule': 'ternary', 'tables': 0}
  assert recipe.read([train, last])[0].rounded
  for rows in ([train], [train, {**last, 'method': 'gptq', 'rule': 'clip'}]):
    with pytest.raises(ConfigError, match='rounded=True trains for the last'):
      recipe.read(rows)


TERNARY = {'do': 'train', 'steps': 1, 'learning_rate': 1.0, 'rounded': True}
SPLIT = {'do': 'split'}
SIGN = {'do': 'round', 'bits': 1, 'rule': 'sign', 'tables': 0}


@pytest.mark.parametrize(
  'rows',
  [
    [TERNARY, SPLIT, TERNARY, SIGN],
    # Split without more training it is the ternary model.
    [TERNARY, SPLIT, SIGN],
    [ROWS[1], TERNARY, SPLIT, TERNARY, TERNARY, {**SIGN, 'group': 'tensor'}],
    [ROWS[0], ROWS[2], TERNARY, SPLIT, TERNARY, {**SIGN, 'tables': 8}],
    # The control without training.
    [SPLIT, SIGN],
    [SPLIT, {**SIGN, 'activations': 'dynamic'}],
  ],
)
def test_orders_with_a_split(rows):
  steps = recipe.read(rows)
  assert recipe.Split() in steps
  assert recipe.row_of(recipe.Split()) == recipe.chosen(recipe.Split()) == SPLIT
  assert recipe.has_split(steps)
  untrained = command.controls(steps).get('untrained', steps)
  # It is carried out as well.
  recipe.check_order(untrained)
  assert not recipe.has_split(steps[-1:])


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    ([TERNARY, SPLIT, SPLIT, SIGN], 'split comes twice'),
    ([TERNARY, SPLIT, TERNARY, SPLIT, SIGN], 'split comes twice'),
    ([SPLIT], 'the last step has to be round with bits=1'),
    ([SPLIT, {**SIGN, 'bits': 2, 'rule': 'ternary'}], 'round with bits=1'),
    ([SPLIT, {**SIGN, 'method': 'gptq'}], "method='nearest'"),
    ([SPLIT, {'do': 'choose_bits', 'budget': 0.2}], 'round with bits=1'),
    ([SPLIT, TERNARY, SIGN], 'train before it needs rounded=True'),
    ([ROWS[1], SPLIT, TERNARY, SIGN], 'train before it needs rounded=True'),
    ([TERNARY, ROWS[1], SPLIT, SIGN], 'train before it needs rounded=True'),
    ([TERNARY, SPLIT, ROWS[1], SIGN], 'train after split needs rounded=True'),
    (
      [TERNARY, SPLIT, ROWS[1], TERNARY, SIGN],
      'train after split needs rounded=True',
    ),
    ([TERNARY, SPLIT, ROWS[2], TERNARY, SIGN], 'prune comes after split'),
    ([TERNARY, SPLIT, ROWS[0], SIGN], 'drop_layers comes after split'),
    ([SIGN, SPLIT], 'split comes after round'),
    ([{**SPLIT, 'bits': 2}, SIGN], "no setting 'bits'; it has none"),
  ],
)  # fmt: skip
def test_splits_that_cannot_work(rows, words):
  with pytest.raises(ConfigError, match=words) as caught:
    recipe.read(rows)
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
  'row',
  [
    {'do': 'swap', 'mechanism': 'local', 'settings': {'window': 6}},
    {'do': 'share', 'number': 1},
    {'do': 'bottleneck', 'width': 8},
    {'do': 'simplify', 'norm': 'rms'},
  ],
)
def test_structure_changes_before_units_leave(row):
  assert len(recipe.read([ROWS[0], row, ROWS[2]])) == 3
  factorise = {'do': 'factorise', 'share': 0.5}
  assert len(recipe.read([row, factorise, ROWS[2], factorise])) == 4
  for last in (ROWS[2], factorise):
    with pytest.raises(ConfigError, match=f'{row["do"]} comes after'):
      recipe.read([last, row])


def test_bits_are_chosen_last():
  choose = {'do': 'choose_bits', 'budget': 0.2}
  assert recipe.read([ROWS[2], choose])[1].tile == 32
  with pytest.raises(ConfigError, match='round comes after choose_bits'):
    recipe.read([choose, ROWS[3]])


@pytest.mark.parametrize(
  ('budget', 'tile', 'bits'),
  [(5 / 32, 32, 4), (5.9 / 32, 32, 4), (6 / 32, 32, 5), (3 / 32, 32, 2),
   (0.9, 32, 8), (6 / 32, 16, 4)],
)  # fmt: skip
def test_the_uniform_control_is_within_the_budget(budget, tile, bits):
  step = recipe.ChooseBits(budget, tile=tile)
  assert step.uniform == recipe.Round(
    bits, 'tile', tile, rule='clip', tables=0, method='gptq', batches=8
  )
  assert step.uniform.grid == step.grids[str(bits)]


@pytest.mark.parametrize(
  ('row', 'least'),
  [({'tile': 32}, 3 / 32), ({'tile': 32, 'choices': [6, 5]}, 6 / 32),
   ({'tile': 12}, (2 + 32 / 12) / 32), ({'tile': 1}, 34 / 32)],
)  # fmt: skip
def test_a_budget_that_no_bits_reach(row, least):
  row = {'do': 'choose_bits', **row}
  budget = min(0.99, least - 1e-4)
  wanted = rf'budget={budget:g} is less than {least:.6g}, which'
  with pytest.raises(ConfigError, match=wanted):
    recipe.read([{**row, 'budget': budget}])
  if least < 1:
    recipe.read([{**row, 'budget': least}])


def test_what_was_chosen_is_read_again():
  rows = [
    *ROWS,
    {'do': 'choose_bits', 'budget': 0.2, 'choices': [8, 4]},
    {'do': 'swap', 'mechanism': 'local', 'layers': [1]},
    {'do': 'factorise', 'share': 0.5, 'parts': ['embedding']},
    {'do': 'simplify', 'activation': 'relu'},
    {'do': 'train', 'steps': 1, 'learning_rate': 1.0},
  ]
  for row in rows:
    (step,) = recipe.read([row])
    chosen = json.loads(json.dumps(recipe.chosen(step)))
    assert recipe.read([chosen]) == (step,)
    assert {*chosen} <= {*row}
