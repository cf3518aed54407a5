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
  assert names == {'quickstart', 'mechanisms', 'read_a_run'}


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
