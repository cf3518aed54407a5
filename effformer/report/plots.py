"""The plots: scores over steps, and scores over speed and memory."""

import io
from collections.abc import Sequence

from effformer.errors import ConfigError
from effformer.report import published
from effformer.report.document import Picture
from effformer.report.groups import Group, in_words
from effformer.report.runs import Run

# Letters stay letters, and the same runs make the same file.
_STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'effformer'}


def load_pyplot():
  """matplotlib.pyplot without a display; ConfigError where it is absent."""
  try:
    import matplotlib
  except ImportError:
    raise ConfigError(
      'plots need matplotlib: pip install matplotlib, '
      'or leave them out with --no-plots.'
    ) from None
  matplotlib.use('Agg')
  from matplotlib import pyplot

  return pyplot


def picture(pyplot, figure, name: str, about: str) -> Picture:
  """The figure as `Picture`, which is then closed."""
  svg, png = io.BytesIO(), io.BytesIO()
  with pyplot.rc_context(_STYLE):
    figure.savefig(
      svg, format='svg', bbox_inches='tight', metadata={'Date': None}
    )
  figure.savefig(png, format='png', bbox_inches='tight', dpi=150)
  pyplot.close(figure)
  return Picture(name, about, svg.getvalue(), png.getvalue())


def curves(runs: Sequence[Run]) -> list[Picture]:
  """For each task: validation score over steps, a line a run."""
  pyplot, pictures = load_pyplot(), []
  for task in sorted({run.config['task'] for run in runs}):
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    colours = pyplot.colormaps['tab20'].colors
    own = [run for run in runs if run.config['task'] == task]
    score = own[0].score
    names = sorted({run.config['mixer']['name'] for run in own})
    shown = set()
    for run in own:
      points = [
        (row['step'], 100 * row[score])
        for row in run.rows
        if row.get('split') == 'validation'
      ]
      if not points:
        continue
      name = run.config['mixer']['name']
      x, y = zip(*points, strict=True)
      axes.plot(
        x, y, marker='.', linewidth=1.2,
        color=colours[names.index(name) % len(colours)],
        linestyle='-' if run.result else ':',
        label=None if name in shown else name,
      )  # fmt: skip
      shown.add(name)
    if not shown:
      pyplot.close(figure)
      continue
    title = published.TASKS.get(task, task)
    axes.set_xlabel('step')
    axes.set_title(f'{title}: validation {in_words(score)} (dotted: not done)')
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5))
    pictures.append(
      picture(pyplot, figure, f'curves_{task}', f'{title}: {score} over steps')
    )
  return pictures


def bubbles(groups: Sequence[Group]) -> list[Picture]:
  """For each task and protocol: score over speed; area is memory.

  Only groups that know speed and memory, on one kind of device, and only where
  there are two or more: a single bubble compares nothing.
  """
  pyplot, pictures = load_pyplot(), []
  found: dict[tuple, list[tuple[Group, float, float]]] = {}
  for group in groups:
    first = group.first
    rate = group.median('steps_per_second')
    memory = group.median('cost', 'temporary_bytes')
    if rate is None or memory is None:
      continue
    key = tuple(
      first[name] for name in ('task', 'stand_in', 'preset', 'quick', 'device')
    )
    found.setdefault(key, []).append((group, rate, memory))
  for number, (key, points) in enumerate(sorted(found.items())):
    task, stand_in, preset, quick, device = key
    if len(points) < 2:
      continue
    figure, axes = pyplot.subplots(figsize=(7.5, 5))
    largest = max(memory for _, _, memory in points)
    colours = pyplot.colormaps['tab20'].colors
    for place, (group, rate, memory) in enumerate(points):
      axes.scatter(
        rate, group.mean, s=30 + 1500 * memory / largest, alpha=0.6,
        color=colours[place % len(colours)], edgecolors='black', linewidths=0.5,
      )  # fmt: skip
      axes.annotate(group.name, (rate, group.mean), fontsize=8, ha='center')
    floor = max(group.floor[1] for group, _, _ in points)
    axes.axhline(floor, linestyle='--', color='grey', linewidth=1)
    axes.set_xlabel(f'training steps per second, {device}')
    measure = points[0][0].measure
    axes.set_ylabel(f'test {in_words(measure)}')
    title = published.TASKS.get(task, task)
    title += ', stand-in' if stand_in else ''
    title += f', preset {preset}{", quick" if quick else ""}'
    axes.set_title(f'{title}\narea: temporary memory; dashed: highest floor')
    axes.grid(True, alpha=0.3)
    axes.margins(0.15)
    about = f'{title}: {measure} over speed, area is memory'
    pictures.append(picture(pyplot, figure, f'bubbles_{task}_{number}', about))
  return pictures
