"""The plot of the README: how far rounded MiniLMs are from it, over bytes.

  python -m experiments.compress.frontier

Reads experiments/results/compress_rounding.csv and compress_mixed.csv, writes
docs/plots/compress_frontier.svg.
"""

import pathlib
import sys

from effformer.report import plots
from experiments import table

OUT = table.RESULTS.parents[1] / 'docs/plots/compress_frontier.svg'
_MARKS = {
  'nearest': 'o', 'AWQ': 's', 'GPTQ': '^', 'the policy, GPTQ': '*',
  'the same bits, GPTQ': 'v',
}  # fmt: skip


def points() -> list[tuple[str, float, float, str]]:
  """Way of rounding, MB of all that is rounded, 1 - cosine, and a label."""
  found = []
  for row in table.read(table.RESULTS / 'compress_rounding.csv')[1:]:
    name = row['variant']
    if 'inputs' in name:
      continue
    bits, _, way = name.rpartition(', ')
    if not bits:
      bits, way = name, 'nearest'
    found.append((way, int(row['bytes']), row, bits))
  for row in table.read(table.RESULTS / 'compress_mixed.csv'):
    is_policy = row['plan'] == 'policy'
    way = 'the policy, GPTQ' if is_policy else 'the same bits, GPTQ'
    found.append((way, int(row['bytes']), row, row['budget']))
  return [
    (way, size / 1e6, 1 - float(row['cosine_mean']), label)
    for way, size, row, label in found
  ]


def draw() -> bytes:
  """The plot, as SVG."""
  pyplot, found = plots.load_pyplot(), points()
  figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
  for number, (way, mark) in enumerate(_MARKS.items()):
    own = [point for point in found if point[0] == way]
    if not own:
      continue
    axes.plot(
      [point[1] for point in own], [point[2] for point in own],
      marker=mark, markersize=11 if mark == '*' else 6, linestyle='none',
      color=pyplot.colormaps['tab10'].colors[number], label=way,
    )  # fmt: skip
    for _, size, loss, label in own:
      axes.annotate(
        label, (size, loss), fontsize=7, xytext=(5, 4),
        textcoords='offset points',
      )  # fmt: skip
  axes.set_yscale('log')
  axes.set_xlabel('MB on disk (policy, same bits: of codes and scales)')
  axes.set_ylabel('1 - cosine to the parent, held-out sentences')
  axes.set_title('all-MiniLM-L6-v2 (90.3 MB), rounded; lower left is better')
  axes.grid(True, which='both', alpha=0.3)
  axes.legend(fontsize=8)
  return plots.picture(pyplot, figure, OUT.stem, 'frontier').svg


def main() -> int:
  pathlib.Path(OUT).write_bytes(draw())
  return 0


if __name__ == '__main__':
  sys.exit(main())
