"""docs/pathfinder.md: what does and does not tell the label of Pathfinder.

  python -m experiments.pathfinder_table           writes it
  python -m experiments.pathfinder_table --check   exit code 1 if it differs

Reads experiments/results/pathfinder.csv, which
`python -m experiments.pathfinder_evidence` makes.
"""

import pathlib
import sys

from effformer.data.pathfinder_settings import DIFFICULTIES
from experiments import page, table
from experiments.pathfinder_evidence import CONVOLUTION, EPOCHS

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / 'docs' / 'pathfinder.md'
SOURCE = table.RESULTS / 'pathfinder.csv'
COST = 'ms an image'
BALANCE = 'share of label 1'

ABOUT = """\
# Is it Pathfinder?

Made by `python -m experiments.pathfinder_table` from
[pathfinder.csv](../experiments/results/pathfinder.csv), which
`python -m experiments.pathfinder_evidence` makes.

The files of the Long Range Arena do not say with which seeds they were drawn,
so without them images come from a generator of our own
(`effformer/data/pathfinder.py`) that takes the published parameters: contours
of oriented paddles, distractors, two discs. Label 1: both discs lie on one
contour. Results of its images are marked as such and are no LRA scores. What
speaks for it:

![hard images of 32, 64, 128 and 256 pixels](plots/pathfinder.png)

Hard images of 32, 64, 128 and 256 pixels, a row each: four of label 1, then
four of label 0.
"""
READING = """\
Chance is 50. A single number is turned into a label by the best choice in each
of 40 equal parts of the training images; all figures are of images that nothing
was fitted to, with a standard error of {error:.1f} points. The convolution has
three layers of 3 x 3 and sees the contours; the bag of pixels knows the grey
values and not their places. In {epochs} passes over the images some seeds of
the convolution learn little. What tells the label best without a contour is,
of hard images, where the middle of the two discs lies; a model that finds no
more than that has not learnt the task.
"""


def rendered() -> str:
  """The whole page."""
  rows = table.read(SOURCE)
  values = {
    (row['difficulty'], row['quantity']): float(row['value']) for row in rows
  }
  known = {difficulty for difficulty, _ in values}
  shown = [difficulty for difficulty in DIFFICULTIES if difficulty in known]
  single = dict.fromkeys(row['quantity'] for row in rows)
  runs = [name for name in single if name.startswith(CONVOLUTION)]
  for name in (*runs, COST, BALANCE):
    single.pop(name)
  # What is nearest to telling the label comes last, above the convolution.
  single = sorted(
    single, key=lambda name: max(values[which, name] for which in shown)
  )

  def line(title, cells):
    return f'| {title} | ' + ' | '.join(cells) + ' |'

  def plain(name, places=1):
    return [f'{values[which, name]:.{places}f}' for which in shown]

  scores = [
    ', '.join(f'{values[which, name]:.1f}' for name in runs) for which in shown
  ]
  first = rows[0]
  error = 100 * (0.25 / int(first['test'])) ** 0.5
  commits = sorted({row['commit'][:10] for row in rows})
  lines = [
    ABOUT,
    f'Images of 32 x 32, {int(first["train"]):,} to fit and '
    f'{int(first["test"]):,} to test; accuracy in percent.',
    '',
    line('what', shown),
    '| --- |' + ' --- |' * len(shown),
    line('images of label 1', plain(BALANCE)),
    *(line(name, plain(name)) for name in single),
    line('three-layer convolution, a seed each', scores),
    line('CPU time to draw one, ms', plain(COST, 2)),
    '',
    READING.format(error=error, epochs=EPOCHS),
    f'Commit: {", ".join(commits)}.',
  ]
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  sys.exit(page.main(__doc__, TARGET, rendered()))
