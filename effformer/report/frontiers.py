"""Scores of compressed models over their bytes and their milliseconds."""

from collections.abc import Mapping, Sequence
from typing import Any

from effformer.report import plots
from effformer.report.document import Picture

PARENT, CONTROL, COMPRESSED = 'parent', 'control', 'compressed'


def recipe(one: Mapping[str, Any]) -> str:
  """Its name."""
  return one['recipe'] or 'own steps'


def machine(one: Mapping[str, Any]) -> str:
  """What its times are of."""
  own = one['machine']
  flags = f', XLA_FLAGS {own["flags"]}' if own['flags'] else ''
  return (
    f'{one["device"]}, {own["threads"]} threads of {own["processor"]}{flags}'
  )


def pictures(compressions: Sequence[Mapping[str, Any]]) -> list[Picture]:
  """For each task the score over bytes, and over the milliseconds of a shape.

  What is on generated stand-ins is a task of its own; times of another shape or
  machine are not in one plot.
  """
  tasks: dict[tuple, list] = {}
  for one in compressions:
    tasks.setdefault((one['task'], one['stand_in']), []).append(one)
  return [
    picture
    for (task, stand_in), group in sorted(tasks.items())
    for picture in _of_task(f'{task}{"_stand_in" * stand_in}', group)
  ]


def _of_task(task, group):
  yield _over_bytes(task, group)
  places: dict[tuple, list] = {}
  for one in group:
    # The first shape.
    for row in one['speed'][:1]:
      place = (row['batch'], row['length'], machine(one))
      places.setdefault(place, []).append(one)
  for number, (place, own) in enumerate(sorted(places.items())):
    yield _over_time(task, own, place, number)


def _over_bytes(task, group) -> Picture:
  points = []
  for one in group:
    for model in one['models']:
      points.append((model['disk_bytes'] / 1e6, model['quality'], model, one))
  return _plot(task, points, 'MB on disk', 'bytes')


def _over_time(task, group, place, number) -> Picture:
  batch, length, machine = place
  points = []
  for one in group:
    by_name = {row['model']: row for row in one['models']}
    for name, own in ((PARENT, PARENT), (COMPRESSED, one['final'])):
      row = next(
        row
        for row in one['speed']
        if (row['model'], row['batch'], row['length']) == (name, batch, length)
      )
      points.append((row['p50_ms'], by_name[own]['quality'], by_name[own], one))
  x = f'milliseconds of {batch} x {length}, {machine}'
  return _plot(task, points, x, f'milliseconds_{number}')


def _plot(task, points, x_label, name) -> Picture:
  pyplot = plots.load_pyplot()
  figure, axes = pyplot.subplots(figsize=(7.5, 5))
  colours = pyplot.colormaps['tab10'].colors
  recipes = sorted({recipe(one) for *_, one in points})
  shown = set()
  for x, quality, model, one in points:
    score, low, high = (100 * quality[k] for k in ('score', 'low', 'high'))
    kind = model['model'].partition(':')[0]
    is_parent, is_control = kind == PARENT, kind == CONTROL
    label = PARENT if is_parent else recipe(one)
    axes.errorbar(
      x, score, [[max(score - low, 0)], [max(high - score, 0)]], capsize=2,
      marker='*' if is_parent else 'o', markersize=12 if is_parent else 6,
      color='black' if is_parent else colours[recipes.index(label) % 10],
      markerfacecolor='white' if is_control else None, linestyle='none',
      linewidth=0.8, label=None if label in shown or is_control else label,
    )  # fmt: skip
    if not is_control:
      shown.add(label)
  front = _frontier(
    [
      (x, 100 * quality['score'])
      for x, quality, model, _ in points
      if not model['model'].startswith(CONTROL)
    ]
  )
  axes.step(*zip(*front, strict=True), where='post', color='grey', linewidth=1)
  axes.set_xscale('log')
  axes.set_xlabel(x_label)
  axes.set_ylabel(f'{points[0][1]["name"]} x 100, test')
  title = task.replace('_stand_in', ' (STAND-IN data, not a score)')
  axes.set_title(f'{title}\nhollow are controls, the line is the frontier')
  axes.grid(True, alpha=0.3, which='both')
  axes.legend(fontsize=8)
  about = f'{task}: score over {x_label}'
  return plots.picture(pyplot, figure, f'compressed_{task}_{name}', about)


def _frontier(points):
  """Those that no other beats in both, by x."""
  best = []
  for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
    if not best or y > best[-1][1]:
      best.append((x, y))
  return best
