"""Needs of steps: what is refused by the config alone, and what is not."""

import pytest

from effformer import config as config_lib
from effformer.compress import needs, recipe
from effformer.errors import ConfigError
from tests.train.tiny_run import tiny_config

GPTQ = {'do': 'round', 'method': 'gptq'}
LINFORMER = {'do': 'swap', 'mechanism': 'linformer', 'layers': [1]}
CALIBRATED = (
  GPTQ,
  {'do': 'round', 'method': 'awq'},
  {'do': 'round', 'method': 'smooth'},
  {'do': 'choose_bits', 'budget': 0.2},
  {'do': 'factorise', 'share': 0.5},
)
NOT_CALIBRATED = (
  {'do': 'round'},
  {'do': 'choose_bits', 'budget': 0.2, 'method': 'nearest'},
  {'do': 'factorise', 'share': 0.5, 'parts': ['embedding']},
  {'do': 'simplify', 'norm': 'rms'},
  {'do': 'prune', 'units': ['mlp'], 'ratio': 0.5},
)
AFFINE = {'do': 'simplify', 'norm': 'affine'}
EXTRA, REVERSIBLE = {'model.extra_tokens': 2}, {'model.reversible': True}
# One head of keys and values.
SHARED = {'mixer.num_kv_heads': 1}
CHOOSE = {'do': 'choose_units', 'budget': 0.5}
PRUNE = {'do': 'prune', 'units': ['head'], 'ratio': 0.4}


def taught(**lesson):
  return {'do': 'train', 'steps': 1, 'learning_rate': 1.0, 'lesson': lesson}


def check(rows, facts=(), mechanism='full'):
  config = tiny_config(mechanism, model__num_layers=3)
  needs.check(config_lib.changed(config, dict(facts)), recipe.read(rows))


@pytest.mark.parametrize('row', CALIBRATED, ids=str)
def test_calibration_is_of_tokens_in_one_stream(row):
  check([row])
  number = 1
  rows = [LINFORMER, row]
  with pytest.raises(ConfigError, match=f'step {number}, {row["do"]}: layer 1'):
    check(rows)
  for mechanism in ('longformer', 'linformer'):
    with pytest.raises(ConfigError, match=f'layer 0 is {mechanism}'):
      check([row], mechanism=mechanism)
  check([row], {'mixer.global_tokens': 0}, 'longformer')
  for facts in (EXTRA, REVERSIBLE):
    with pytest.raises(ConfigError, match=f'step 0, {row["do"]}: looking'):
      check([row], facts)


@pytest.mark.parametrize('row', NOT_CALIBRATED, ids=str)
def test_what_is_not_calibrated_is_of_any_model(row):
  check([row], mechanism='longformer')
  for facts in (EXTRA, REVERSIBLE):
    check([row], facts)
  if row['do'] in ('round', 'choose_bits'):
    check([LINFORMER, row])


def test_a_layer_that_left_needs_nothing():
  check([LINFORMER, {'do': 'drop_layers', 'keep': [0, 2]}, GPTQ])
  with pytest.raises(ConfigError, match='layer 0 is linformer'):
    check([LINFORMER, {'do': 'drop_layers', 'keep': [1]}, GPTQ])


def test_norms_are_fitted_to_tokens_in_one_stream():
  check([AFFINE], mechanism='longformer')
  for facts in (EXTRA, REVERSIBLE):
    with pytest.raises(ConfigError, match='simplify: looking inside'):
      check([AFFINE], facts)


@pytest.mark.parametrize('part', ['states', 'mixers', 'attention'])
def test_lessons_of_what_is_inside(part):
  check([taught(**{part: 1.0})])
  for facts in (EXTRA, REVERSIBLE):
    with pytest.raises(ConfigError, match='step 0, train: looking inside'):
      check([taught(**{part: 1.0})], facts)
    check([taught(soft=1.0)], facts)


def test_attention_needs_scores():
  attention = taught(attention=1.0)
  check([{'do': 'swap', 'mechanism': 'local'}, attention])
  check([{'do': 'drop_layers', 'keep': [0, 2]}, attention])
  swap = {'do': 'swap', 'mechanism': 'linear', 'layers': [2]}
  with pytest.raises(ConfigError, match='layer 2 of the student is linear'):
    check([swap, attention])
  # Before the swap there are scores, and mixers have outputs afterwards.
  check([attention, swap, taught(mixers=1.0)])
  with pytest.raises(ConfigError, match='layer 0 of the student is linear'):
    check([attention], mechanism='linear')
  # Of the teacher all layers are looked at.
  layers = {'model.layers': {'1': {'mixer': 'linear'}}}
  with pytest.raises(ConfigError, match='layer 1 of the teacher is linear'):
    check([{'do': 'drop_layers', 'keep': [0, 2]}, attention], layers)


@pytest.mark.parametrize('units', [['head'], ['mlp', 'head'], ['kv_group']])
def test_attention_needs_the_heads_of_the_teacher(units):
  attention, prune = taught(attention=1.0), {**PRUNE, 'units': units}
  facts = SHARED if 'kv_group' in units else {}
  check([attention, prune, taught(states=1.0)], facts)
  check([{**PRUNE, 'units': ['mlp']}, attention], facts)
  with pytest.raises(ConfigError, match='step 1, train: heads have left'):
    check([prune, attention], facts)


@pytest.mark.parametrize('units', [['head'], ['mlp', 'kv_group']])
def test_the_policy_may_take_heads(units):
  choose = {**CHOOSE, 'units': units}
  facts = SHARED if 'kv_group' in units else {}
  check([{**choose, 'units': ['mlp']}, taught(attention=1.0)], facts)
  check([choose, taught(states=1.0)], facts)
  with pytest.raises(ConfigError, match='step 1, train: heads have left'):
    check([choose, taught(attention=1.0)], facts)


@pytest.mark.parametrize(
  ('row', 'words'),
  [(PRUNE, 'nothing to prune of kind'), (CHOOSE, 'no layer of this model has')],
  ids=str,
)
def test_units_that_no_layer_has(row, words):
  """Found before anything is trained, and of the layers that are there."""
  heads, groups = ({**row, 'units': [kind]} for kind in ('head', 'kv_group'))
  check([heads])
  check([groups], SHARED)
  refused = [
    ([groups], {}, 'full'),
    ([heads], {}, 'performer'),
    ([{'do': 'swap', 'mechanism': 'performer'}, heads], {}, 'full'),
  ]
  for rows, facts, mechanism in refused:
    with pytest.raises(ConfigError, match=f'{row["do"]}: .*{words}'):
      check(rows, facts, mechanism)
  check([{**row, 'units': ['mlp']}], mechanism='performer')
  swap = {'do': 'swap', 'mechanism': 'performer', 'layers': [0, 2]}
  check([swap, heads])
  with pytest.raises(ConfigError, match=words):
    check([swap, {'do': 'drop_layers', 'keep': [0, 2]}, heads])


def test_heads_that_share_keys_are_chosen_as_groups():
  with pytest.raises(ConfigError, match="'head' that leave one by one"):
    check([CHOOSE], SHARED)


@pytest.mark.parametrize('length', [0, 1, 16])
def test_rows_that_are_timed(length):
  check([{**CHOOSE, 'length': length}])


def test_rows_that_no_model_reads_are_not_timed():
  with pytest.raises(ConfigError, match=r'length=17 ids .* reads 1 to 16'):
    check([{**CHOOSE, 'length': 17}])
  patches = {'model.front_end': 'patches', 'model.patch_size': 2}
  check([{**CHOOSE, 'length': 4}], patches)
  with pytest.raises(ConfigError, match=r'length=3 ids .* reads 4 to 16'):
    check([{**CHOOSE, 'length': 3}], patches)


def test_swapped_heads_are_counted():
  swap = {'do': 'swap', 'mechanism': 'local', 'settings': {'num_heads': 2}}
  with pytest.raises(ConfigError, match='layer 0 has 2 heads'):
    check([swap, taught(attention=1.0)])


def test_a_layer_is_compared_with_the_one_that_it_was():
  layers = {'model.layers': {'1': {'num_heads': 2}}}
  drop = {'do': 'drop_layers', 'keep': [1, 2]}
  again = {'do': 'drop_layers', 'keep': [0]}
  check([drop, taught(attention=1.0), again, taught(attention=1.0)], layers)


def test_mixers_of_bottlenecks_are_narrower():
  narrow = {'do': 'bottleneck', 'width': 6}
  check([narrow, taught(states=1.0)])
  with pytest.raises(ConfigError, match='leave mixers out of the lesson'):
    check([narrow, taught(mixers=1.0)])


@pytest.mark.parametrize(
  ('row', 'words'),
  [
    ({'do': 'drop_layers', 'keep': [3]}, 'step 0, drop_layers: layers to keep'),
    ({'do': 'swap', 'mechanism': 'x'}, "swap: no mechanism 'x'"),
    ({**LINFORMER, 'layers': [3]}, 'there is no layer 3'),
    ({**LINFORMER, 'settings': {'window': 3}}, "no setting 'window'"),
    ({**LINFORMER, 'settings': {'rank': 0}}, 'rank must be at least 1'),
    ({'do': 'bottleneck', 'width': 12}, 'a bottleneck is from 1 to 11 wide'),
  ],
)
def test_layers_and_mechanisms_that_there_are_not(row, words):
  with pytest.raises(ConfigError, match=words):
    check([row])


def test_any_model_is_split():
  train = {**taught(soft=1.0), 'rounded': True}
  sign = {'do': 'round', 'bits': 1, 'rule': 'sign', 'tables': 0}
  rows = [train, {'do': 'split'}, train, sign]
  check(rows, mechanism='longformer')
  for facts in (EXTRA, REVERSIBLE):
    check(rows, facts)
  # Lessons are checked after it as before it.
  states = {**train, 'lesson': {'states': 1.0}}
  with pytest.raises(ConfigError, match='step 2, train: looking'):
    check([train, {'do': 'split'}, states, sign], EXTRA)
