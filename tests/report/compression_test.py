"""Reports of compressions, from files as --mode=compress writes them."""

import builtins
import json
import re

import pytest

from effformer.errors import CheckpointError
from effformer.report import __main__, compression, document, frontiers
from tests.report import compressions
from tests.report.folders import write_run


def write(folder, **facts):
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(compressions.compression(**facts))
  (folder / 'compression.json').write_text(text)
  return folder


def text_of(*found, with_plots=False):
  return document.markdown(compression.content(found, with_plots))


def scores_of(one):
  """The table of the scores."""
  (table,) = (
    block
    for block in compression.content([one], with_plots=False)
    if isinstance(block, document.Table) and 'change' in block.header
  )
  return table


# Files.


def test_files_at_any_depth_are_found_once_and_in_order(tmp_path):
  write(tmp_path / 'b', seed=1)
  write(tmp_path / 'a/deep/er', seed=0)
  found = compression.find([tmp_path, tmp_path / 'a/../b'])
  assert [one['seed'] for one in found] == [0, 1]
  assert compression.find([tmp_path / 'a/deep/er'])[0] == found[0]
  assert compression.find([tmp_path / 'nowhere']) == []


@pytest.mark.parametrize('content', ['{"task": ', '[]', '{}', '{"task": "x"}'])
def test_a_damaged_file_is_named(tmp_path, content):
  path = write(tmp_path / 'one') / 'compression.json'
  path.write_text(content)
  with pytest.raises(CheckpointError, match=re.escape(str(path))):
    compression.find([tmp_path])


@pytest.mark.parametrize('key', sorted(compressions.compression()))
def test_what_is_read_is_there_or_the_file_is_refused(tmp_path, key):
  found = compressions.compression()
  del found[key]
  path = tmp_path / 'compression.json'
  path.write_text(json.dumps(found))
  if key == 'dataset':
    text_of(*compression.find([tmp_path]))
    return
  with pytest.raises(CheckpointError, match='is not what --mode=compress'):
    compression.find([tmp_path])


# Sections.


def test_a_section_says_what_was_made_of_what():
  one = compressions.compression(overridden='seed,compress.steps.2.bits')
  text = text_of(one)
  assert text.startswith('## tiny of text, seed 3\n')
  for words in (
    'Parent 0123456789abcdef; IMDb, prepared; cpu x 1, 3 threads of some '
    'chip; jax 9.8.7; commit fedcba9876. Changed: seed,compress.steps.2.bits.',
    'Steps: drop_layers (keep 0 3); train (steps 70, lesson hard 0.5, states '
    '1.0); round (bits 4, method gptq).',
    'Of the 1,234 examples of the test split',
    'Floors, accuracy x 100: majority 50.00, bag of bytes 67.89.',
    '| layer 0 mixer | full, 3 heads | 4 a tile |',
    '| embedding | 31 x 12 | 8 a channel |',
  ):
    assert words in text, words
  assert 'STAND-IN' not in text
  plain = text_of(compressions.compression(recipe='', commit=None))
  assert plain.startswith('## own steps of text')
  assert 'commit unknown.\n' in plain
  stand_in = text_of(compressions.compression(stand_in=True))
  assert '## tiny of text, seed 3 (STAND-IN data, not a score)' in stand_in


def test_what_the_policy_tried_is_shown():
  text = text_of(compressions.compression(searches=[compressions.SEARCH]))
  assert 'the best of the 2 plans measured reaches the floor. Losses' in text
  for row in (
    '| 5.43 | 0.0567 | 0.0456 | 4: 2 |',
    '| 7.65 | 0.0123 | 0.0112 | 4: 1; 8: 1 (chosen) |',
    '| group | 8 | 4 |',
    '| a | 0.0012 | 0.035 |',
    '| b | 0.00067 | 0.0099 |',
  ):
    assert text.count(row) == 1, row
  assert 'Choice of bits' not in text_of(compressions.compression())


def test_units_are_chosen_by_milliseconds():
  row = {'cost': 1.25, 'predicted': 0.5, 'score': -0.25,
         'plan': {'a': 'none', 'b': 'mlp 3'}}  # fmt: skip
  options = {
    'a': [
      {'name': 'mlp 3', 'cost': 1.25, 'loss': 0.1},
      {'name': 'none', 'cost': 0.0, 'loss': 0.2},
    ],
    'b': [{'name': 'mlp 3', 'cost': 1.25, 'loss': 0.3}],
  }
  found = {
    'step': 'choose_units', 'why': 'enough', 'best': row, 'frontier': [row],
    'options': options,
  }  # fmt: skip
  both = [found, compressions.SEARCH]
  text = text_of(compressions.compression(searches=both))
  for words in (
    '### Choice of units\n', '### Choice of bits\n',
    '| ms | loss | predicted | units that stay: groups |',
    '| 1.25 | 0.25 | 0.5 | mlp 3: 1; none: 1 (chosen) |',
    '| group | mlp 3 | none |', '| a | 0.1 | 0.2 |', '| b | 0.3 | - |',
  ):  # fmt: skip
    assert text.count(words) == 1, words


def test_flags_of_the_compiler_are_named():
  machine = {'threads': 3, 'processor': 'x', 'flags': '--xla_y=1'}
  text = text_of(compressions.compression(machine=machine))
  assert 'cpu x 1, 3 threads of x, XLA_FLAGS --xla_y=1; jax' in text


def test_scores_have_intervals_and_changes():
  text = text_of(compressions.compression())
  rest = '91.24 | 1,111 | 2,222 | 0.044 | 0.0567 | 0.093'
  change = '-1.23 [-3.45, +0.67]'
  for row in (
    f'| parent | 81.00 [79.00, 84.00] | {change} | {rest} |',
    f'| 2: round | 77.00 [75.00, 80.00] | {change} | {rest} |',
    f'| control: no_teacher | 83.00 [81.00, 86.00] | {change} | {rest} |',
  ):
    assert text.count(row) == 1, row
  assert 'Matthews' not in text


def test_of_two_classes_there_are_two_measures_more():
  def quality(score):
    return compressions.quality_of_classes(score, matthews=0.4567, f1=0.6543)

  table = scores_of(compressions.compression(quality))
  assert [*table.header][-2:] == ['Matthews', 'F1']
  assert {tuple(row[-2:]) for row in table.rows} == {('0.457', '0.654')}
  assert {len(row) for row in table.rows} == {len(table.header)}


def test_vectors_have_cosines_and_neighbours():
  one = compressions.compression(compressions.quality_of_vectors)
  table = scores_of(one)
  assert [*table.header][1] == 'spearman x 100'
  assert table.rows[3] == [
    '2: round', '77.00 [75.00, 80.00]', '-1.23 [-3.45, +0.67]', '0.9912',
    '0.8134', '0.8456', '0.938', '0.919',
  ]  # fmt: skip
  assert {len(row) for row in table.rows} == {len(table.header)}


def test_sizes_are_those_of_every_model():
  text = text_of(compressions.compression())
  rest = '7,654,321 | 7,054,321 | 0.11 | 0.22 | 0.33 | 0.44 | 0.55'
  for row in (
    f'| parent | 8.00 | 1.00 | 10.00 | {rest} |',
    f'| 2: round | 0.62 | 12.90 | 0.78 | {rest} |',
    f'| control: no_teacher | 0.61 | 13.11 | 0.76 | {rest} |',
  ):
    assert text.count(row) == 1, row


def test_times_stand_beside_the_control():
  text = text_of(compressions.compression())
  rest = '4.3 | 1.05 | 3.0 | 2.5'
  for row in (
    f'| 1 x 32 | parent | 1.00 [0.89, 1.12] | 12.34 | 15.43 | 81 | {rest} |',
    f'| 1 x 32 | compressed | 2.00 [1.89, 2.12] | 6.17 | 7.71 | 162 | {rest} |',
    '| 1 x 32 | parent again (control) | 0.98 [0.87, 1.10] | 12.50 | 15.62 | '
    f'80 | {rest} |',
  ):
    assert text.count(row) == 1, row
  assert 'XLA counts more' not in text


def test_what_xla_does_not_say_is_left_empty():
  row = {
    **compressions.timed('parent', 10.0, 1.0), 'xla_flops': None,
    'temporary_bytes': None, 'argument_bytes': None, 'counts_agree': None,
  }  # fmt: skip
  text = text_of(compressions.compression(speed=[row]))
  assert '| 10.00 | 12.50 | 100 | 4.3 |  |  |  |' in text
  assert 'XLA counts more' not in text
  row |= {'xla_flops': 1e9, 'counts_agree': False}
  text = text_of(compressions.compression(speed=[row]))
  assert 'XLA counts more than a tenth more' in text


def test_without_shapes_there_are_no_times():
  one = compressions.compression(speed=[])
  text = text_of(one, with_plots=True)
  assert 'Nothing was timed' in text
  assert 'rows/s' not in text
  assert text.count('![') == 1


# Plots.


def test_the_frontier_is_what_nothing_beats():
  points = [(3, 5.0), (1, 2.0), (2, 1.0), (4, 5.0), (1, 1.0), (5, 7.0), (2, 3)]
  assert frontiers._frontier(points) == [(1, 2.0), (2, 3), (3, 5.0), (5, 7.0)]


def test_controls_are_not_on_the_frontier(monkeypatch):
  found = []
  frontier = frontiers._frontier

  def watch(points):
    found.append(frontier(points))
    return found[-1]

  monkeypatch.setattr(frontiers, '_frontier', watch)
  frontiers.pictures([compressions.compression()])
  of_bytes, of_time = (
    [(x, pytest.approx(y)) for x, y in row]
    for row in (
      [(0.62, 77.0), (4.2, 79.0), (8.0, 81.0)],
      # Of the parent and the last model, with codes as they are.
      [(6.17, 77.0), (12.34, 81.0)],
    )
  )
  assert found == [of_bytes, of_time]


def names(*found):
  return [picture.name for picture in frontiers.pictures(found)]


def test_recipes_of_a_task_share_its_plots():
  one, other = (
    compressions.compression(recipe=name) for name in ('tiny', 'int8-storage')
  )
  assert names(one, other) == [
    'compressed_text_bytes', 'compressed_text_milliseconds_0',
  ]  # fmt: skip
  both, _ = frontiers.pictures([one, other])
  alone, _ = frontiers.pictures([one])
  for words in (b'tiny', b'int8-storage', b'>parent<', b'accuracy x 100, test'):
    assert words in both.svg, words
  assert b'int8-storage' not in alone.svg
  own = compressions.compression(recipe='')
  assert b'own steps' in frontiers.pictures([own])[0].svg


def test_tasks_devices_and_stand_ins_have_plots_of_their_own():
  first = compressions.compression()
  pair = compressions.compression(task='pair')
  assert names(first, pair) == [
    'compressed_pair_bytes', 'compressed_pair_milliseconds_0',
    'compressed_text_bytes', 'compressed_text_milliseconds_0',
  ]  # fmt: skip
  gpu = compressions.compression(device='gpu x 1')
  machine = {**compressions.FACTS['machine'], 'threads': 4}
  cores = compressions.compression(machine=machine)
  assert names(first, cores)[-1] == 'compressed_text_milliseconds_1'
  longer = compressions.compression(
    speed=[
      compressions.timed(name, 3.0, 1.0, 2, 64)
      for name in ('parent', 'compressed')
    ]
  )
  found = frontiers.pictures([first, gpu, longer])
  assert [picture.about for picture in found] == [
    'text: score over MB on disk',
    'text: score over milliseconds of 1 x 32, cpu x 1, 3 threads of some chip',
    'text: score over milliseconds of 1 x 32, gpu x 1, 3 threads of some chip',
    'text: score over milliseconds of 2 x 64, cpu x 1, 3 threads of some chip',
  ]
  assert len({picture.name for picture in found}) == 4
  stand_in = compressions.compression(stand_in=True)
  found = frontiers.pictures([first, stand_in])
  assert len({picture.name for picture in found}) == 4
  is_said = [b'STAND-IN data, not a score' in own.svg for own in found]
  assert is_said == [False, False, True, True]


def test_the_same_files_make_the_same_plots():
  one = compressions.compression()
  first, second = (frontiers.pictures([one]) for _ in range(2))
  assert [own.svg for own in first] == [own.svg for own in second]


# Pages.


def without_matplotlib(monkeypatch):
  plain = builtins.__import__

  def no_matplotlib(name, *rest):
    if name.startswith('matplotlib'):
      raise ImportError(name)
    return plain(name, *rest)

  monkeypatch.setattr(builtins, '__import__', no_matplotlib)


@pytest.mark.parametrize('has_plots', [True, False])
def test_one_page(tmp_path, monkeypatch, has_plots):
  folder = write(tmp_path / 'one')
  if not has_plots:
    without_matplotlib(monkeypatch)
  path = compression.write([folder], tmp_path / 'out')
  assert path == tmp_path / 'out/report.html'
  page = path.read_text()
  assert '<h1>Compressed models</h1>' in page
  assert '<td>77.00 [75.00, 80.00]</td>' in page
  assert page.count('src="data:image/svg+xml;base64,') == 2 * has_plots
  assert ('pip install matplotlib' in page) != has_plots
  assert len([*path.parent.glob('*.svg')]) == 2 * has_plots


def test_a_page_that_cannot_be_written(tmp_path):
  write(tmp_path / 'one')
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='cannot write'):
    compression.write([tmp_path], tmp_path / 'file')


def test_the_report_has_runs_and_compressions(tmp_path, capsys):
  root = tmp_path / 'runs'
  root.mkdir()
  write_run(root)
  write(root / 'small')
  out = tmp_path / 'out'
  assert __main__.main([str(root), f'--out={out}']) == 0
  assert '1 runs, 1 compressions; written' in capsys.readouterr().out
  text = (out / 'report.md').read_text()
  assert '| linear | modern | 70.0 (1) |' in text
  assert '## tiny of text, seed 3' in text
  assert (out / 'compressed_text_bytes.svg').exists()
  assert __main__.main([str(root), f'--out={out}2', '--no-plots']) == 0
  assert not (tmp_path / 'out2/compressed_text_bytes.svg').exists()
  capsys.readouterr()
  # Without a run it is a report, too.
  assert __main__.main([str(root / 'small'), f'--out={out}']) == 0
  assert '0 runs, 1 compressions' in capsys.readouterr().out


def test_a_damaged_one_is_exit_4(tmp_path, capsys):
  write(tmp_path)
  (tmp_path / 'compression.json').write_text('{}')
  assert __main__.main([str(tmp_path), f'--out={tmp_path / "out"}']) == 4
  assert 'compression.json is not what' in capsys.readouterr().err
