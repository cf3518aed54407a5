"""python -m effformer.report FOLDER ... [--out=runs/report]

Reads run folders, at any depth below the named ones, and writes report.md,
report.html (one page that needs nothing else) and the plots. Exit codes: 0
done, 2 bad usage, 4 a damaged run folder.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from effformer.errors import UserError
from effformer.report import (
  compression,
  document,
  efficiency,
  groups,
  plots,
  runs,
  tables,
)

TITLE = 'Runs of effformer'


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m effformer.report',
    description=__doc__.split('\n\n')[1],
  )
  parser.add_argument('folder', nargs='+', help='of runs')
  parser.add_argument('--out', type=pathlib.Path, default='runs/report')
  parser.add_argument('--no-plots', action='store_true')
  options = parser.parse_args(arguments)
  try:
    measured = efficiency.find(options.folder)
    small = compression.find(options.folder)
    found = runs.find(options.folder, may_be_none=bool(measured or small))
    with_plots = not options.no_plots
    blocks = content(found, measured, with_plots=with_plots)
    blocks += compression.content(small, with_plots)
    document.write(options.out, TITLE, blocks)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  except OSError as error:
    print(f'error: cannot write the report: {error}', file=sys.stderr)
    return 4
  more = f', {len(measured)} measurements' if measured else ''
  more += f', {len(small)} compressions' if small else ''
  print(f'{len(found)} runs{more}; written to {options.out / "report.html"}')
  return 0


def content(
  found: Sequence[runs.Run],
  measured: Sequence[dict] = (),
  with_plots: bool = True,
) -> list[document.Block]:
  """The whole report."""
  finished = groups.gather(found)
  count = sum(len(group.runs) for group in finished)
  left = sum(run.result is not None for run in found) - count
  stand_ins = sum(
    len(group.runs) for group in finished if group.first['stand_in']
  )
  text = f'{len(found)} runs were read; {count} finished ones are counted.'
  if left:
    text += f' {left} repeat a seed of the same config and are left out.'
  if stand_ins:
    text += (
      f' {stand_ins} are on generated stand-ins, which are no scores and '
      'enter no table of the arena.'
    )
  blocks: list[document.Block] = [
    document.Heading(TITLE, 1),
    document.Text(text),
    *tables.arena(finished),
  ]
  if with_plots:
    blocks += plots.bubbles(finished)
  blocks += tables.details(finished)
  blocks += efficiency.tables(measured)
  if with_plots:
    blocks += plots.curves(found)
  return blocks


if __name__ == '__main__':
  sys.exit(main())
