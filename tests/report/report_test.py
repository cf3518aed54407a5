"""The report: what counts, what is kept apart, what is refused."""

import builtins
import html.parser
import json

import pytest

from effformer.report import (
  __main__,
  document,
  groups,
  plots,
  published,
  runs,
  tables,
)
from tests.report.folders import write_run


@pytest.fixture
def report(tmp_path, capsys):
  """Runs the command; its exit code, Markdown, and what it printed."""

  def call(*arguments):
    out = tmp_path / 'out'
    places = arguments or (str(tmp_path / 'runs'),)
    code = __main__.main([*places, f'--out={out}', '--no-plots'])
    page = out / 'report.md'
    return code, page.read_text() if page.exists() else '', capsys.readouterr()

  (tmp_path / 'runs').mkdir()
  return call


def gathered(root):
  return groups.gather(runs.find([root]))


def cells(blocks):
  return [
    row for b in blocks if isinstance(b, document.Table) for row in b.rows
  ]


# Which runs belong together.


def test_seeds_are_averaged(tmp_path):
  for seed, accuracy in enumerate((0.70, 0.72, 0.77)):
    write_run(tmp_path, seed=seed, accuracy=accuracy)
  (group,) = gathered(tmp_path)
  assert group.mean == pytest.approx(73.0)
  assert group.spread == pytest.approx(3.6056, abs=1e-3)
  assert tables.score(group) == '73.0 ± 3.6 (3)'
  assert group.floor == ('bag_of_bytes', 62.0)
  assert group.median('cost', 'temporary_bytes') == 3 << 20
  assert group.median('cost', 'unknown') is None


def test_another_setting_is_another_row_and_says_which(tmp_path):
  write_run(tmp_path)
  write_run(tmp_path, seed=1, settings={'train.learning_rate': 0.2})
  found = gathered(tmp_path)
  assert [group.name for group in found] == [
    'linear (train.learning_rate=0.1)', 'linear (train.learning_rate=0.2)',
  ]  # fmt: skip
  assert tables.score(found[0]) == '70.0 (1)'


def test_other_data_are_another_row(tmp_path):
  write_run(tmp_path)
  write_run(tmp_path, seed=1, fingerprints={'train': 'abcdefghij'})
  first, second = (group.name for group in gathered(tmp_path))
  assert first != second
  assert first.startswith('linear (data=')


def test_no_two_groups_of_a_task_have_one_name(tmp_path):
  """Of one name only one would be in the table of the arena."""
  write_run(tmp_path)
  write_run(tmp_path, settings={'train.learning_rate': 0.2})
  write_run(tmp_path, fingerprints={'train': '1234567890', 'test': 'x'})
  found = gathered(tmp_path)
  assert len({group.name for group in found}) == 3
  assert len([r for r in cells(tables.arena(found)) if r[1] == 'ours']) == 3


def test_how_a_run_went_makes_no_group(tmp_path):
  write_run(tmp_path)
  write_run(tmp_path, seed=1, settings={'data.prefetch': 7})
  write_run(tmp_path, seed=2, settings={'mesh.data': 8})
  (group,) = gathered(tmp_path)
  assert len(group.runs) == 3


def test_a_seed_counts_once(report, tmp_path):
  write_run(tmp_path / 'runs', accuracy=0.7)
  write_run(tmp_path / 'runs', accuracy=0.9)
  _, text, _ = report()
  assert '2 runs were read; 1 finished ones are counted.' in text
  assert '1 repeat a seed' in text
  assert '| linear | modern | 70.0 (1) | +8.0 |' in text


def test_an_unfinished_run_has_no_score(report, tmp_path):
  write_run(tmp_path / 'runs', finished=False)
  code, text, _ = report()
  assert code == 0
  assert '1 runs were read; 0 finished' in text
  assert 'linear' not in text


# The table of the arena.


def test_ours_and_published_are_rows_of_their_own(tmp_path):
  write_run(tmp_path, 'linear', accuracy=0.654)
  write_run(tmp_path, 'nystromformer')
  rows = cells(tables.arena(gathered(tmp_path)))
  assert rows == [
    ['linear', 'ours', '65.4 (1)', ''],
    ['linear', f'published: {published.LRA_SOURCE}', '65.90', ''],
    ['nystromformer', 'ours', '70.0 (1)', ''],
  ]


def test_published_figures():
  assert published.score('performer', 'pathfinder32')[0] == 77.05
  assert published.score('performer', 'pathfinder128') is None
  assert published.score('s5', 'pathfinder128')[0] == 98.58
  assert published.score('nsa', 'text') is None
  assert published.best('text')[:2] == (90.43, 'mega')
  assert published.best('pathfinder128')[:2] == (98.58, 's5')
  # As the papers print them.
  assert round(published.average('mega'), 2) == 88.21
  assert round(published.average('s5'), 2) == 87.46
  assert published.average('linear') is None
  # As printed in the paper, but for Sinkhorn, whose columns give 51.48.
  printed = {
    'full': 54.39, 'local': 46.06, 'sparse': 51.24, 'longformer': 53.46,
    'linformer': 51.36, 'reformer': 50.67, 'synthesizer': 52.88,
    'bigbird': 55.01, 'linear': 50.55, 'performer': 51.41,
  }  # fmt: skip
  for name, average in printed.items():
    values = [published.score(name, task)[0] for task in tables.AVERAGED]
    assert sum(values) / 5 == pytest.approx(average, abs=0.011), name


def test_the_average_needs_all_five(tmp_path):
  for task in tables.AVERAGED[:-1]:
    write_run(tmp_path, task=task)
  write_run(tmp_path, task='pathfinder128', accuracy=0.1)
  assert cells(tables.arena(gathered(tmp_path)))[0][-1] == ''
  write_run(tmp_path, task=tables.AVERAGED[-1], accuracy=0.8)
  assert cells(tables.arena(gathered(tmp_path)))[0][-1] == '72.0'


def test_what_is_not_of_the_preset_is_in_the_name(tmp_path):
  own = {'overridden': 'data.train,seed,train.batch_size'}
  for seed, size in ((0, 3), (1, 3), (0, 5)):
    write_run(
      tmp_path, 'linear', seed=seed, settings={'train.batch_size': size}, **own
    )
  write_run(tmp_path, 'linear', settings={'train.batch_size': 9})
  rows = [r for r in cells(tables.arena(gathered(tmp_path))) if r[1] == 'ours']
  assert [row[0] for row in rows] == [
    'linear', 'linear (train.batch_size=3)', 'linear (train.batch_size=5)',
  ]  # fmt: skip


def test_stand_ins_enter_no_arena(report, tmp_path):
  write_run(tmp_path / 'runs', stand_in=True)
  _, text, _ = report()
  assert 'Long Range Arena' not in text
  assert '1 are on generated stand-ins' in text
  assert '## Text (stand-in, not a score of the task)' in text


def test_quick_runs_and_presets_have_their_own_tables(report, tmp_path):
  write_run(tmp_path / 'runs', quick=True)
  write_run(tmp_path / 'runs', preset='paper')
  _, text, _ = report()
  assert '## Long Range Arena, preset modern, quick\n' in text
  assert '## Long Range Arena, preset paper\n' in text


def test_other_data_are_marked(report, tmp_path):
  write_run(tmp_path / 'runs', origin='own files: train x')
  write_run(
    tmp_path / 'runs', task='pathfinder32', origin='x, by our generator, seed 0'
  )
  _, text, _ = report()
  assert '| linear | ours | 70.0 (1)† | 70.0 (1)‡ |  |' in text
  assert '† own files' in text
  assert '‡ images of our generator' in text


# The details.


def test_details_say_what_it_cost(tmp_path):
  write_run(tmp_path)
  (row,) = cells(tables.details(gathered(tmp_path)))
  assert row == [
    'linear', 'modern', '70.0 (1)', '+8.0', '12,345', '2.5', '4',
    '10 x 8 x 512', '4', '0.0', 'cpu x 1', 'abcdef0123',
  ]  # fmt: skip


def test_results_without_a_cost_are_fine(tmp_path):
  write_run(tmp_path, cost=None, steps_per_second=None)
  (row,) = cells(tables.details(gathered(tmp_path)))
  assert row[5] == row[6] == row[8] == row[9] == ''


def test_the_best_comes_first(tmp_path):
  write_run(tmp_path, 'full', accuracy=0.6)
  write_run(tmp_path, 'linear', accuracy=0.7)
  assert [row[0] for row in cells(tables.details(gathered(tmp_path)))] == [
    'linear', 'full',
  ]  # fmt: skip


def test_another_score_than_accuracy_is_named(report, tmp_path):
  write_run(
    tmp_path / 'runs', task='similarity', score='pearson', accuracy=0.827,
    floors={'shared_subwords': 0.55, 'lengths': -0.004},
  )  # fmt: skip
  write_run(tmp_path / 'runs')
  _, text, _ = report()
  assert '## similarity: pearson x 100\n' in text
  assert 'Floors, pearson x 100: lengths -0.4, shared subwords 55.0.' in text
  assert '| linear | modern | 82.7 (1) | +27.7 |' in text
  assert '## Text\n' in text
  assert 'Floors, in percent: bag of bytes 62.0, majority 50.0.' in text


# Plots and pages.


class _Tags(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.open, self.seen = [], []

  def handle_starttag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_one_page_that_needs_nothing_else(tmp_path):
  root = tmp_path / 'runs'
  root.mkdir()
  write_run(root, 'full')
  write_run(root, 'linear', accuracy=0.8)
  write_run(root, '<script>', finished=False)
  assert __main__.main([str(root), f'--out={tmp_path / "out"}']) == 0
  names = {path.name for path in (tmp_path / 'out').iterdir()}
  assert names == {
    'report.md', 'report.html', 'bubbles_text_0.svg', 'bubbles_text_0.png',
    'curves_text.svg', 'curves_text.png',
  }  # fmt: skip
  page = (tmp_path / 'out/report.html').read_text()
  parser = _Tags()
  parser.feed(page)
  assert parser.open == []
  tags = [tag for tag, _ in parser.seen]
  assert 'script' not in tags
  sources = [attrs['src'] for tag, attrs in parser.seen if tag == 'img']
  assert len(sources) == 2
  assert all(s.startswith('data:image/svg+xml;base64,') for s in sources)
  assert '![' in (tmp_path / 'out/report.md').read_text()


def test_the_same_runs_make_the_same_files(tmp_path):
  write_run(tmp_path, 'full')
  write_run(tmp_path, 'linear')
  found = runs.find([tmp_path])
  first, second = (plots.curves(found)[0] for _ in range(2))
  assert first.svg == second.svg
  assert b'linear' in first.svg
  (bubble,) = plots.bubbles(groups.gather(found))
  assert b'temporary memory' in bubble.svg


@pytest.mark.parametrize('finished', [True, False])
def test_plots_name_another_score(tmp_path, finished):
  for mechanism in ('full', 'linear'):
    write_run(
      tmp_path, mechanism, task='similarity', score='pearson',
      finished=finished,
    )  # fmt: skip
  found = runs.find([tmp_path])
  (curve,) = plots.curves(found)
  assert curve.about == 'similarity: pearson over steps'
  assert b'validation pearson x 100' in curve.svg
  bubbles = plots.bubbles(groups.gather(found))
  assert len(bubbles) == finished
  for bubble in bubbles:
    assert b'test pearson x 100' in bubble.svg


def test_plots_of_accuracy_are_in_percent(tmp_path):
  write_run(tmp_path, 'full')
  write_run(tmp_path, 'linear')
  found = runs.find([tmp_path])
  (curve,) = plots.curves(found)
  assert curve.about == 'Text: accuracy over steps'
  words = b'Text: validation accuracy, percent (dotted: not done)'
  assert words in curve.svg
  (bubble,) = plots.bubbles(groups.gather(found))
  assert b'test accuracy, percent' in bubble.svg


def test_a_single_bubble_is_none(tmp_path):
  write_run(tmp_path)
  write_run(tmp_path, 'full', device='gpu x 1')
  assert plots.bubbles(gathered(tmp_path)) == []


def test_text_in_tables_is_text():
  table = document.Table(('a|b',), (('<b>\nx',),))
  assert document.markdown([table]) == '| a\\|b |\n| --- |\n| <b> x |\n'
  assert '&lt;b&gt;' in document.page('<t>', [table])
  assert '<title>&lt;t&gt;</title>' in document.page('<t>', [table])


def test_without_matplotlib_it_says_what_to_do(tmp_path, monkeypatch, capsys):
  write_run(tmp_path)
  plain = builtins.__import__

  def no_matplotlib(name, *rest):
    if name.startswith('matplotlib'):
      raise ImportError(name)
    return plain(name, *rest)

  monkeypatch.setattr(builtins, '__import__', no_matplotlib)
  assert __main__.main([str(tmp_path), f'--out={tmp_path / "out"}']) == 2
  assert 'pip install matplotlib' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


# Bad input.


def test_places_without_runs_are_named(report, tmp_path):
  code, _, printed = report(str(tmp_path / 'runs'))
  assert code == 2
  assert 'holds no run' in printed.err
  code, _, printed = report(str(tmp_path / 'nowhere'))
  assert code == 2
  assert 'is no folder' in printed.err


@pytest.mark.parametrize(
  ('file', 'content'),
  [
    ('result.json', '{"task": 1'),
    ('result.json', '{}'),
    ('result.json', '[]'),
    ('config.json', '\xff'),
    ('metrics.jsonl', '{"step": 1\n{"step": 2, "split": "train"}\n'),
  ],
)
def test_a_damaged_file_is_named(report, tmp_path, file, content):
  folder = write_run(tmp_path / 'runs')
  (folder / file).write_bytes(content.encode('latin-1'))
  code, _, printed = report()
  assert code == 4
  assert str(folder / file) in printed.err
  assert printed.err.count('\n') == 2


def test_a_row_that_is_being_written_is_left_out(tmp_path):
  folder = write_run(tmp_path, finished=False)
  with (folder / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 15, "spl')
  (run,) = runs.find([tmp_path])
  assert [row['step'] for row in run.rows] == [5, 5, 10]


def test_a_report_that_cannot_be_written(tmp_path, capsys):
  write_run(tmp_path)
  (tmp_path / 'file').write_text('')
  code = __main__.main(
    [str(tmp_path), f'--out={tmp_path / "file"}', '--no-plots']
  )
  assert code == 4
  assert 'cannot write the report' in capsys.readouterr().err


def test_a_run_of_ours_is_read(tmp_path):
  """The keys are those that a run writes (see session_test)."""
  folder = write_run(tmp_path)
  written = set(json.loads((folder / 'result.json').read_text()))
  from tests.train.session_test import RESULT_KEYS

  assert RESULT_KEYS - {'dataset', 'validation', 'versions'} <= written


def measurement(mechanism, milliseconds):
  return {
    'task': 'text',
    'mechanism': mechanism,
    'preset': 'modern',
    'quick': True,
    'batch_size': 32,
    'device': 'cpu x 1',
    'rows': [
      {
        'model': model,
        'length': length,
        'kind': kind,
        'milliseconds': None if (model, length) == ('naive', 4096) else time,
        'temporary_bytes': 3 << 20,
      }
      for model, time in (
        *((mechanism, milliseconds), ('naive', 800.0), ('fused', 500.0)),
      )
      for length in (1024, 4096)
      for kind in ('train', 'forward')
    ],
  }


def test_efficiency_is_beside_the_softmax_of_the_same_rounds(tmp_path, capsys):
  for mechanism, milliseconds in (('linear', 100.0), ('local', 250.0)):
    folder = tmp_path / mechanism
    folder.mkdir()
    text = json.dumps(measurement(mechanism, milliseconds))
    (folder / 'efficiency.json').write_text(text)
  assert __main__.main([str(tmp_path), f'--out={tmp_path / "out"}']) == 0
  assert '0 runs, 2 measurements' in capsys.readouterr().out
  text = (tmp_path / 'out' / 'report.md').read_text()
  assert 'Efficiency: text, preset modern, quick, batch of 32, cpu x 1' in text
  for row in (
    '| naive | 1.25 | - |',
    '| fused | 2 | 2 |',
    '| linear | 10 (8.00, 5.00) | 10 (-, 5.00) |',
    '| local | 4 (3.20, 2.00) | 4 (-, 2.00) |',
  ):
    assert text.count(row) == 2, row
  assert '| linear | 3 | 3 |' in text


def test_a_damaged_measurement_is_named(tmp_path, capsys):
  (tmp_path / 'efficiency.json').write_text('{}')
  assert __main__.main([str(tmp_path), f'--out={tmp_path / "out"}']) == 4
  assert 'efficiency.json' in capsys.readouterr().err


# Compressions.


def as_compression(folder):
  path = folder / 'config.json'
  config = json.loads(path.read_text())
  config['compress'] = {'steps': {'0': {'do': 'round'}}}
  path.write_text(json.dumps(config))


@pytest.mark.parametrize('has_begun', [True, False])
def test_only_the_parent_is_a_run(tmp_path, has_begun):
  """Not the compression, not the training of its steps and controls."""
  work = write_run(tmp_path, finished=False)
  as_compression(work)
  write_run(work).rename(work / 'parent')
  if has_begun:
    for recipe in ('recipe', 'controls/no_teacher'):
      step = work / recipe / 'step_1_train'
      step.mkdir(parents=True)
      (work / recipe / 'recipe.json').write_text('{}')
      write_run(step).rename(step / 'run')
  found = runs.find([tmp_path])
  assert [run.folder for run in found] == [work / 'parent']
