"""Plots of the benchmark: time and memory over length, log-log."""

import math
import pathlib

from effformer.report import plots

MEASURES = {'ms': 'milliseconds', 'temp_mib': 'temporary memory, MiB'}


def over_length(rows: list[dict], folder: pathlib.Path) -> None:
  """One SVG a measure: gradient of every bidirectional layer over length."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = [row for row in rows if row['pass'] == 'gradient']
  for measure, label in MEASURES.items():
    for causal in (False, True):
      chosen = [r for r in rows if r['layer'].endswith(' causal') == causal]
      if chosen:
        kind = 'causal' if causal else 'bidirectional'
        _plot(chosen, measure, f'{label}, forward and backward, {kind}',
              folder / f'attention_{measure}_{kind}.svg')  # fmt: skip


def _plot(rows, measure, title, path) -> None:
  pyplot = plots.load_pyplot()
  figure, axes = pyplot.subplots(figsize=(8, 5.5))
  last = {}
  names = sorted({row['layer'] for row in rows})
  colours = pyplot.colormaps['tab20'].colors
  for number, name in enumerate(names):
    points = sorted(
      (int(row['length']), float(row[measure]))
      for row in rows
      if row['layer'] == name
    )
    x, y = zip(*points, strict=True)
    style = {'color': colours[number % len(colours)], 'linewidth': 1.2}
    if name.startswith('full'):
      style = {'color': 'black', 'linewidth': 2.5}
    axes.plot(x, y, marker='o', markersize=3, label=name, **style)
    last[name] = math.log(y[-1])
  axes.set_xscale('log', base=2)
  axes.set_yscale('log')
  axes.set_xlabel('tokens')
  axes.set_title(title)
  axes.grid(True, which='major', alpha=0.3)
  handles, labels = axes.get_legend_handles_labels()
  order = sorted(range(len(labels)), key=lambda i: -last[labels[i]])
  axes.legend(
    [handles[i] for i in order],
    [labels[i] for i in order],
    fontsize=7,
    loc='center left',
    bbox_to_anchor=(1.0, 0.5),
  )
  path.write_bytes(plots.picture(pyplot, figure, path.stem, title).svg)
