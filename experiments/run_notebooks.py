"""Executes the notebooks of colab/, as somebody would who runs all cells.

  python -m experiments.run_notebooks [NAME ...]

Needs the extra `colab` (nbclient, ipykernel). They work in runs/colab, which is
emptied before. Prints the seconds of each; exit code 1 if a cell fails. Nothing
is written back: the notebooks are kept without outputs.
"""

import pathlib
import shutil
import sys
import time
from collections.abc import Sequence

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'colab'
WORK = ROOT / 'runs' / 'colab'
TIMEOUT_SECONDS = 600


def run(path: pathlib.Path) -> None:
  """Executes a notebook; raises what nbclient does where a cell fails."""
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook,
    timeout=TIMEOUT_SECONDS,
    kernel_name='python3',
    resources={'metadata': {'path': str(FOLDER)}},
    # Of its port it would warn otherwise.
    extra_arguments=['--Application.log_level=ERROR'],
  ).execute()


def main(names: Sequence[str]) -> int:
  paths = [FOLDER / f'{name}.ipynb' for name in names]
  failed = []
  for path in paths or sorted(FOLDER.glob('*.ipynb')):
    shutil.rmtree(WORK, ignore_errors=True)
    start = time.monotonic()
    try:
      run(path)
    except (
      nbclient.exceptions.CellControlSignal,
      nbclient.exceptions.DeadKernelError,
    ) as error:
      print(error)
      failed.append(path.name)
    print(f'{path.name}: {time.monotonic() - start:.0f} s', flush=True)
  if failed:
    print(f'failed: {", ".join(failed)}')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
