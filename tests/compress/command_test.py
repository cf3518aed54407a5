"""--mode=compress on tiny runs: what it leaves, interrupted, and refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from effformer import config as config_lib
from effformer import errors, main, tasks
from effformer.compress import (
  artefact,
  command,
  latency_table,
  measuring,
  recipe,
  step_kinds,
)
from effformer.report import runs
from effformer.train import preemption
from tests.train.tiny_run import (
  again_and_again,
  quiet_screen,
  tiny_config,
  write_examples,
)
from tests.train.tiny_similarity import COUNTS, similarity_config

PRUNE = {'do': 'prune', 'units': ('mlp',), 'ratio': 0.4, 'batches': 1}
TRAIN = {
  'do': 'train', 'steps': 2, 'learning_rate': 1e-2,
  'lesson': {'hard': 0.5, 'soft': 1.0, 'states': 1.0},
}  # fmt: skip
ROUND = {
  'do': 'round', 'bits': 4, 'group': 'tile', 'tile': 5, 'method': 'gptq',
  'batches': 1,
}  # fmt: skip
CONTROLS = ('untrained', 'no_teacher', 'random', 'nearest')


def with_steps(config, *rows, **compress):
  return config_lib.changed(
    config,
    {
      'compress.steps': {str(n): row for n, row in enumerate(rows)},
      'compress.shapes': ('1x16',),
      **{f'compress.{key}': value for key, value in compress.items()},
    },
  )


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return tiny_config(
    'full',
    **write_examples(folder, train=40, validation=9, test=7),
    model__num_layers=2,
    train__batch_size=8,
    train__eval_batch_size=8,
    train__num_steps=4,
  )


@pytest.fixture(scope='module')
def config(plain):
  return with_steps(plain, PRUNE, TRAIN, ROUND)


def compress(config, folder, stop=None):
  console = quiet_screen()
  found = command.compress(
    config, str(folder), stop or preemption.Stop(), console
  )
  return found, console.console.file.getvalue()


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp('small')
  return folder, *compress(config, folder)


def size_of(folder):
  return sum(
    (folder / name).stat().st_size
    for name in (artefact.WEIGHTS, artefact.MANIFEST)
  )


def contents(folder):
  """Bytes and times of all files but the lock, which says who holds it."""
  return {
    path: (path.read_bytes(), path.stat().st_mtime_ns)
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name != 'lock'
  }


# Controls.


def test_controls_lack_one_idea_each():
  rows = recipe.read([PRUNE, TRAIN, ROUND])
  found = command.controls(rows)
  assert tuple(found) == CONTROLS
  prune, train, last = rows
  assert found['untrained'] == (prune, last)
  assert found['no_teacher'] == (
    prune, dataclasses.replace(train, lesson=step_kinds.LABELS), last,
  )  # fmt: skip
  assert found['random'] == (
    dataclasses.replace(prune, score='random', batches=8), train, last,
  )  # fmt: skip
  assert found['nearest'] == (
    prune, train, dataclasses.replace(last, method='nearest', batches=8),
  )  # fmt: skip
  assert step_kinds.LABELS.hard == 1
  assert step_kinds.LABELS.soft == step_kinds.LABELS.states == 0


@pytest.mark.parametrize(
  ('rows', 'names'),
  [
    ([{'do': 'round'}], ()),
    ([{'do': 'drop_layers', 'keep': [0]}, {'do': 'round'}], ()),
    ([{**PRUNE, 'score': 'random', 'batches': 8}], ()),
    ([{'do': 'train', 'steps': 3, 'learning_rate': 1.0}], ()),
    ([{'do': 'choose_bits', 'budget': 0.2}], ('uniform',)),
    ([PRUNE, {'do': 'choose_bits', 'budget': 0.2}], ('random', 'uniform')),
    ([{'do': 'round', 'pattern': [2, 4]}], ('dense',)),
    (
      [{'do': 'round', 'pattern': [2, 4], 'method': 'gptq'}],
      ('nearest', 'dense'),
    ),
    (
      [TRAIN, {'do': 'round', 'method': 'smooth'}],
      ('untrained', 'no_teacher', 'nearest'),
    ),
  ],
)
def test_only_what_a_recipe_has_is_left_out(rows, names):
  assert tuple(command.controls(recipe.read(rows))) == names


def test_the_uniform_control_is_within_the_budget():
  rows = recipe.read([{'do': 'choose_bits', 'budget': 5 / 32, 'batches': 3}])
  ((last,),) = command.controls(rows).values()
  assert (last.bits, last.group, last.tile, last.rule) == (
    4,
    'tile',
    32,
    'clip',
  )
  assert (last.tables, last.method, last.batches) == (0, 'gptq', 3)


@pytest.mark.parametrize(
  ('row', 'bits'),
  [
    # 2 (8 + 2) / 4, 2 (4 + 2) / 4, 1 (8 + 2) / 4, 3 (3 + 3) / 8.
    ({'pattern': [2, 4]}, 5),
    ({'pattern': [2, 4], 'bits': 4}, 3),
    ({'pattern': [1, 4]}, 2),
    # There are no fewer than two.
    ({'pattern': [1, 8], 'bits': 4}, 2),
    ({'pattern': [2, 4], 'bits': 2, 'rule': 'ternary', 'tables': 0}, 2),
    # Nor more than the rule has: 7 (8 + 3) / 8, 3 (2 + 2) / 4.
    ({'pattern': [7, 8]}, 8),
    ({'pattern': [3, 4], 'bits': 2, 'rule': 'ternary', 'tables': 0}, 2),
  ],
)
def test_the_dense_control_has_as_many_bytes(row, bits):
  rows = recipe.read([{'do': 'round', 'method': 'gptq', 'batches': 3, **row}])
  found = command.controls(rows)
  (dense,) = found['dense']
  assert dense == dataclasses.replace(rows[0], bits=bits, pattern=())
  # The other keeps the pattern, of the greatest weights.
  (nearest,) = found['nearest']
  assert (nearest.grid, nearest.method) == (rows[0].grid, 'nearest')


def test_tables_of_the_dense_control_keep_their_bits():
  first = recipe.Round(8, pattern=(2, 4), tables=0)
  assert first.table_grid == (first.dense.table_grid or first.dense.grid)
  assert first.dense.bits == 5
  first = recipe.Round(2, rule='ternary', pattern=(2, 4), tables=0)
  assert first.table_grid == first.dense.grid


# A whole compression.


@pytest.mark.slow
def test_the_folder_is_as_it_is_described(finished):
  folder, _, printed = finished
  assert {path.name for path in folder.iterdir()} == {
    'config.json', 'lock', 'parent', 'recipe', 'controls', 'model',
    'compression.json', 'data.json',
  }  # fmt: skip
  for place in (folder / 'recipe', *(folder / 'controls').iterdir()):
    names = {'step_0_prune', 'step_1_train', 'step_2_round'}
    if place.name == 'untrained':
      names = {'step_0_prune', 'step_1_round'}
    assert {path.name for path in place.iterdir()} == {'recipe.json', *names}
  assert {path.name for path in (folder / 'controls').iterdir()} == {*CONTROLS}
  assert [run.folder for run in runs.find([folder])] == [folder / 'parent']
  for name in CONTROLS:
    assert f'control: {name}' in printed


@pytest.mark.slow
def test_the_model_is_that_of_the_last_step(finished):
  folder, _, _ = finished
  model, last = (
    artefact.load(folder / name) for name in ('model', 'recipe/step_2_round')
  )
  jax.tree.map(np.testing.assert_array_equal, model.params, last.params)
  assert [row['do'] for row in model.steps] == ['prune', 'train', 'round']
  for name in (artefact.WEIGHTS, artefact.MANIFEST):
    path = folder / 'recipe/step_2_round' / name
    assert (folder / 'model' / name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_what_is_measured(finished):
  folder, found, printed = finished
  assert json.loads((folder / 'compression.json').read_text()) == json.loads(
    json.dumps(found)
  )
  rows = {row['model']: row for row in found['models']}
  assert [*rows] == [
    'parent', '0: prune', '1: train', '2: round',
    *(f'control: {name}' for name in CONTROLS),
  ]  # fmt: skip
  assert found['final'] == '2: round'
  places = {
    '0: prune': 'recipe/step_0_prune',
    '1: train': 'recipe/step_1_train',
    '2: round': 'model',
    **{f'control: {n}': f'controls/{n}/step_2_round' for n in CONTROLS[1:]},
    'control: untrained': 'controls/untrained/step_1_round',
  }
  for name, place in places.items():
    assert rows[name]['disk_bytes'] == size_of(folder / place), name
    assert rows[name]['parameters'] < rows['parent']['parameters']
  assert rows['2: round']['disk_bytes'] < rows['1: train']['disk_bytes']
  assert rows['2: round']['parameters'] == rows['1: train']['parameters']
  parent = json.loads((folder / 'parent/result.json').read_text())
  score = rows['parent']['quality']
  assert score['score'] == pytest.approx(parent['test']['accuracy'])
  assert (score['change'], score['kl'], score['agreement']) == (0, 0, 1)
  # The test of a training step is of the very parameters that it left.
  trained = json.loads(
    (folder / 'recipe/step_1_train/run/result.json').read_text()
  )
  score = rows['1: train']['quality']
  assert score['score'] == pytest.approx(trained['test']['accuracy'])
  assert rows['2: round']['quality']['kl'] > 0
  assert found['examples'] == 7
  assert found['searches'] == []
  assert found['machine'] == latency_table.machine()
  assert found['floors'] == parent['floors']
  assert found['steps'][2] == {
    'do': 'round', 'bits': 4, 'group': 'tile', 'tile': 5, 'method': 'gptq',
    'batches': 1,
  }  # fmt: skip
  for words in (
    f'bytes on disk    {rows["2: round"]["disk_bytes"]:,}  of',
    'real data, 7 examples',
    f'written to {folder / "compression.json"}',
  ):
    assert words in printed, words


@pytest.mark.slow
def test_what_is_timed(finished):
  _, found, _ = finished
  assert [
    (row['model'], row['batch'], row['length']) for row in found['speed']
  ] == [
    (name, 1, 16)
    for name in ('parent', 'compressed', 'compressed, as numbers', 'control')
  ]
  parent, small, numbers, control = (
    row['multiply_adds'] for row in found['speed']
  )
  assert small == numbers < parent == control


@pytest.mark.slow
def test_the_plan_has_every_matrix(finished):
  folder, found, _ = finished
  shown = {row['part']: (row['shape'], row['bits']) for row in found['plan']}
  four = '4 a tile of 5'
  assert shown == {
    **{f'layer {n} mixer': ('full, 3 heads', four) for n in (0, 1)},
    **{f'layer {n} mlp': ('6 columns, gelu', four) for n in (0, 1)},
    'embedding/embedding': ('257 x 12', '8 a channel'),
    'head_out/kernel': ('12 x 2', four),
  }
  before = measuring.plan(artefact.load(folder / 'recipe/step_1_train'))
  assert {row['bits'] for row in before} == {'float32'}


@pytest.mark.slow
def test_again_it_says_what_it_found_and_changes_nothing(config, finished):
  folder, found, _ = finished
  before = contents(folder)
  again, printed = compress(config, folder)
  assert contents(folder) == before
  assert again == json.loads(json.dumps(found))
  assert f'{folder} holds a finished compression:' in printed
  assert '\n'.join(measuring.lines(found)) in printed


@pytest.mark.slow
def test_other_shapes_are_timed_and_nothing_else_is_made(config, finished):
  folder, found, _ = finished
  before = contents(folder / 'recipe')
  other = config_lib.changed(config, {'compress.shapes': ('2x9',)})
  again, printed = compress(other, folder)
  assert 'compress.shapes is now ["2x9"]' in printed
  assert {(row['batch'], row['length']) for row in again['speed']} == {(2, 9)}
  assert again['models'] == found['models']
  assert contents(folder / 'recipe') == before
  # Back to what it was, for the other tests.
  assert compress(config, folder)[0]['models'] == found['models']


@pytest.mark.slow
def test_another_recipe_in_the_folder_is_refused(config, finished):
  folder, _, _ = finished
  before = contents(folder)
  for key, value in (
    ('compress.steps.2.bits', 3), ('compress.controls', False),
    ('compress.parent', 'elsewhere'),
  ):  # fmt: skip
    other = config_lib.changed(config, {key: value})
    with pytest.raises(errors.ConfigError, match=key.replace('.', r'\.')):
      compress(other, folder)
  assert contents(folder) == before


@pytest.mark.slow
def test_stopped_again_and_again_it_ends_in_the_same_model(
  config, finished, tmp_path
):
  alone = config_lib.changed(config, {'compress.controls': False})
  # More questions than measuring asks, which is done in one go.
  found, printed = again_and_again(
    lambda stop: compress(alone, tmp_path, stop), 7
  )
  assert 'done before' in printed
  assert not (tmp_path / 'controls').exists()
  for name in (artefact.WEIGHTS, artefact.MANIFEST):
    path = finished[0] / 'model' / name
    assert (tmp_path / 'model' / name).read_bytes() == path.read_bytes()
  assert found['models'] == finished[1]['models'][:4]


@pytest.mark.slow
def test_the_parent_may_be_a_run_of_before(plain, finished, tmp_path):
  parent = finished[0] / 'parent'
  before = contents(parent)
  own = with_steps(plain, {'do': 'round'}, parent=str(parent))
  found, printed = compress(own, tmp_path)
  assert contents(parent) == before
  assert {path.name for path in tmp_path.iterdir()} == {
    'config.json', 'lock', 'recipe', 'model', 'compression.json', 'data.json',
  }  # fmt: skip
  assert 'control:' not in printed
  assert found['parent_sha256'] == finished[1]['parent_sha256']
  other = config_lib.changed(own, {'model.mlp_width': 11})
  with pytest.raises(errors.ConfigError, match=r'model\.mlp_width: 10 -> 11'):
    compress(other, tmp_path / 'other')
  nowhere = config_lib.changed(own, {'compress.parent': str(tmp_path / 'x')})
  with pytest.raises(errors.CheckpointError, match='holds no run'):
    compress(nowhere, tmp_path / 'another')


@pytest.mark.slow
def test_vectors_of_a_model_that_is_not_trained(tmp_path):
  config = similarity_config(tmp_path)
  config = with_steps(
    config_lib.changed(config, {'train.num_steps': 0}),
    {'do': 'round', 'bits': 3},
    shapes=('2x7',),
  )
  found, printed = compress(config, tmp_path / 'small')
  parent, small = (row['quality'] for row in found['models'])
  assert parent['name'] == 'spearman'
  assert (parent['change'], parent['nearest']) == (0, 1)
  assert 0.5 < small['cosine_mean'] < 0.99999
  assert parent['cosine_mean'] == pytest.approx(1, abs=1e-6)
  assert found['floors'].keys() == {'shared_subwords', 'lengths'}
  assert (found['examples'], found['floor_score']) == (
    COUNTS['test'],
    'pearson',
  )
  assert 'test spearman' in printed
  model = artefact.load(tmp_path / 'small/model')
  assert model.kind == 'embedder'


# Refused, and left out.


def test_without_steps_there_is_nothing_to_do(plain, tmp_path):
  with pytest.raises(errors.ConfigError, match='this config has none'):
    compress(plain, tmp_path / 'small')
  assert not (tmp_path / 'small').exists()


def test_an_order_that_cannot_be_is_found_before_the_parent(plain, tmp_path):
  config = with_steps(plain, ROUND, PRUNE)
  with pytest.raises(errors.ConfigError, match='comes after round'):
    compress(config, tmp_path / 'small')
  assert not (tmp_path / 'small').exists()


def test_steps_that_do_not_fit_are_found_before_the_parent(plain, tmp_path):
  config = with_steps(plain, {'do': 'swap', 'mechanism': 'linformer'}, ROUND)
  with pytest.raises(errors.ConfigError, match='step 1, round: layer 0 is lin'):
    compress(config, tmp_path / 'small')
  assert not (tmp_path / 'small').exists()


def test_the_parent_is_a_run_like_any_other(plain, config):
  words = 'seed,compress.steps.0.ratio,model.width,compress.shapes'
  own = config_lib.changed(
    config, {'overridden': words, 'compress.recipe': 'tiny'}
  )
  found = command.without_steps(own)
  assert found.overridden == 'seed,model.width'
  assert config_lib.changed(found, {'overridden': ''}) == plain
  assert command.without_steps(plain) == plain


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_other_modes_refuse_the_config_of_a_compression(capsys, finished, mode):
  folder = finished[0]
  before = contents(folder)
  code = main.main(['effformer', f'--mode={mode}', f'--workdir={folder}'])
  assert code == 2
  assert 'Add --mode=compress.' in capsys.readouterr().err
  assert contents(folder) == before


@pytest.mark.slow
def test_the_command_line_leaves_a_report(capsys, finished):
  folder = finished[0]
  code = main.main(['effformer', '--mode=compress', f'--workdir={folder}'])
  assert code == 0
  assert f'report: {folder / "report.html"}' in capsys.readouterr().out
  assert 'control: nearest' in (folder / 'report.html').read_text()


@pytest.mark.slow
def test_the_compressed_model_answers(config, finished):
  folder, _, _ = finished
  console = quiet_screen()
  [first, second] = command.predict(
    config, str(folder), ['good good film', 'bad film'], console
  )
  model = artefact.load(folder / 'model')
  task = tasks.make(model.config)
  ids_T = task.encode(b'bad film', 16)
  batch = {
    'ids_BT': np.pad(ids_T, (0, 16 - len(ids_T)))[None],
    'lengths_B': np.array([len(ids_T)], 'i4'),
  }
  probability_C = np.asarray(task.predict(model.numbers, batch))[0]
  found = second['probabilities']
  names = task.dataset.classes
  np.testing.assert_allclose(
    [found[name] for name in names], probability_C, atol=1e-5
  )
  assert first['probabilities'] != found
  assert 'bad film (8 tokens)' in console.console.file.getvalue()
  with pytest.raises(errors.CheckpointError, match='no compressed model'):
    command.predict(config, str(folder / 'parent'), ['bad'], console)
