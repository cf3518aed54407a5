"""The notebooks as files; that they run is shown by .ci/run."""

import ast
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


def test_all_begin_with_the_same_setup_that_keeps_jax():
  (setup,) = {''.join(code_cells(path)[0]['source']) for path in PATHS}
  assert '-c /tmp/kept.txt' in setup
  assert "'jax'" in setup
