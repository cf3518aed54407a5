"""Compressed models: bytes, quality and speed beside their parent.

From the files compression.json that `--mode=compress` writes.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from effformer import durable
from effformer.errors import ConfigError
from effformer.report import document, found, plots
from effformer.report.document import Block, Heading, Picture, Table, Text
from effformer.train import workdir

PARENT, CONTROL, COMPRESSED = 'parent', 'control', 'compressed'
_COMPONENTS = ('embedding', 'attention', 'feed_forward', 'norms', 'head')
_OWN = 'own steps'
_NEEDED = {
  *('task', 'recipe', 'final', 'models', 'speed', 'plan', 'device', 'steps'),
  *('seed', 'stand_in', 'origin', 'versions', 'commit', 'overridden'),
  *('parent_sha256', 'examples', 'floors', 'floor_score'),
}


def find(places: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
  """See `found.find`."""
  return found.find(places, workdir.COMPRESSION, _NEEDED, 'compress')


def write(
  places: Iterable[str | os.PathLike], out: str | os.PathLike
) -> pathlib.Path:
  """The page of these folders; the path of its HTML.

  Raises:
    CheckpointError: a file cannot be read, or the page not written.
  """
  out = pathlib.Path(out)
  blocks: list[Block] = [Heading(_TITLE, 1)]
  try:
    plots.load_pyplot()
    has_plots = True
  except ConfigError as error:
    has_plots = False
    blocks.append(Text(str(error)))
  blocks += content(find(places), has_plots)
  try:
    document.write(out, _TITLE, blocks)
  except OSError as error:
    raise durable.not_written(out, error) from error
  return out / 'report.html'


_TITLE = 'Compressed models'


def content(
  compressions: Sequence[Mapping[str, Any]], with_plots: bool = True
) -> list[Block]:
  """For each task the plots, then a section for each compression."""
  blocks: list[Block] = []
  if compressions and with_plots:
    blocks += pictures(compressions)
  for one in compressions:
    blocks += _section(one)
  return blocks


def _section(one) -> list[Block]:
  what = f'{one["recipe"] or _OWN} of {one["task"]}, seed {one["seed"]}'
  if one['stand_in']:
    what += ' (STAND-IN data, not a score)'
  versions = ', '.join(f'{k} {v}' for k, v in one['versions'].items())
  changed = f' Changed: {one["overridden"]}.' if one['overridden'] else ''
  return [
    Heading(what),
    Text(
      f'Parent {one["parent_sha256"][:16]}; {one["origin"]}; {one["device"]}; '
      f'{versions}; commit {(one["commit"] or "unknown")[:10]}.{changed}'
    ),
    Text(f'Steps: {"; ".join(map(_step, one["steps"]))}.'),
    Heading('Quality', 3),
    *_quality(one),
    Heading('Size', 3),
    *_size(one),
    Heading('Speed', 3),
    *_speed(one),
    Heading('Plan', 3),
    Table(
      ('part', 'what it is', 'bits'),
      [(row['part'], row['shape'], row['bits']) for row in one['plan']],
    ),
  ]


def _step(step) -> str:
  words = []
  for key, value in step.items():
    if isinstance(value, dict):
      value = ', '.join(f'{name} {x}' for name, x in value.items())
    elif isinstance(value, list):
      value = ' '.join(map(str, value))
    if key != 'do':
      words.append(f'{key} {value}')
  return f'{step["do"]} ({", ".join(words)})'


def _quality(one) -> list[Block]:
  models, rows = one['models'], []
  name = models[0]['quality']['name']
  of_classes = 'kl' in models[0]['quality']
  # Of two classes.
  more = {k: w for k, w in _BINARY.items() if k in models[0]['quality']}
  for model in models:
    own = model['quality']
    rows.append(
      [
        model['model'],
        f'{_percent(own["score"])} [{_percent(own["low"])}, '
        f'{_percent(own["high"])}]',
        f'{100 * own["change"]:+.2f} [{100 * own["change_low"]:+.2f}, '
        f'{100 * own["change_high"]:+.2f}]',
        *(_of_classes(own) if of_classes else _of_vectors(own)),
        *(f'{own[key]:.3f}' for key in more),
      ]
    )
  floors = ', '.join(
    f'{key.replace("_", " ")} {_percent(value)}'
    for key, value in one['floors'].items()
  )
  header = ['model', f'{name} x 100', 'change']
  header += _OF_CLASSES if of_classes else _OF_VECTORS
  header += more.values()
  return [
    Text(
      f'Of the {one["examples"]:,} examples of the test split, with 95 % '
      'intervals over examples (bootstrap; of the change over the same '
      f'examples). Floors, {one["floor_score"]} x 100: {floors}. Calibration, '
      'choices and training have seen other splits only. Rows with a number '
      'are the model after that step, controls the recipe without one of its '
      'ideas.'
    ),
    Table(header, rows),
  ]


_OF_CLASSES = ['same class', 'to right', 'to wrong', 'p', 'KL', 'calibration']
_BINARY = {'matthews': 'Matthews', 'f1': 'F1'}
_OF_VECTORS = ['cosine', 'least', '1st percentile', 'same neighbour', 'of ten']


def _of_classes(own):
  return [
    _percent(own['agreement']),
    f'{own["to_right"]:,}',
    f'{own["to_wrong"]:,}',
    f'{own["p_value"]:.3f}',
    f'{own["kl"]:.4f}',
    f'{own["calibration_after"]:.3f}',
  ]


def _of_vectors(own):
  return [
    *(
      f'{own[name]:.4f}' for name in ('cosine_mean', 'cosine_min', 'cosine_p01')
    ),
    *(f'{own[name]:.3f}' for name in ('nearest', 'nearest_10')),
  ]


def _size(one) -> list[Block]:
  first, rows = one['models'][0]['disk_bytes'], []
  for model in one['models']:
    rows.append(
      [
        model['model'],
        _mega(model['disk_bytes']),
        f'{first / model["disk_bytes"]:.2f}',
        _mega(model['memory_bytes']),
        f'{model["parameters"]:,}',
        f'{model["nonzero"]:,}',
        *(
          _mega(model['components'][name]['packed_bytes'])
          for name in _COMPONENTS
        ),
      ]
    )
  header = ['model', 'MB on disk', 'times smaller', 'MB in memory']
  header += ['parameters', 'not 0', *(f'{n} MB' for n in _COMPONENTS)]
  return [
    Text(
      'Bytes of all files as written; in memory a code of any number of bits '
      'takes a byte. Components are bytes as stored.'
    ),
    Table([name.replace('_', '-') for name in header], rows),
  ]


def _speed(one) -> list[Block]:
  if not one['speed']:
    return [Text('Nothing was timed: compress.shapes was empty.')]
  rows = []
  for row in one['speed']:
    flops = row['xla_flops']
    counted = '' if not flops else f'{flops / 2 / row["multiply_adds"]:.2f}'
    rows.append(
      [
        f'{row["batch"]} x {row["length"]}',
        'parent again (control)' if row['model'] == CONTROL else row['model'],
        f'{row["ratio"]:.2f} [{row["ratio_p25"]:.2f}, {row["ratio_p75"]:.2f}]',
        f'{row["p50_ms"]:.2f}',
        f'{row["p90_ms"]:.2f}',
        f'{row["rows_per_second"]:,.0f}',
        f'{row["multiply_adds"] / 1e6:,.1f}',
        counted,
        _mebi(row['temporary_bytes']),
        _mebi(row['argument_bytes']),
      ]
    )
  disagree = any(row['counts_agree'] is False for row in one['speed'])
  more = (
    ' XLA counts more than a tenth more or less than the shapes say: beside '
    'products it counts what is done to single numbers.'
    if disagree
    else ''
  )
  return [
    Text(
      'Compiled forward passes in turns on this device; the ratio is the '
      "parent's time over that of the row in the same round, median and "
      'quartiles. A ratio within the quartiles of the control is none. Codes '
      'without integer products are decoded in each call: they are a matter '
      f'of size.{more}'
    ),
    Table(
      (
        *('batch x length', 'model', 'times as fast', 'ms (median)'),
        *('ms (90 %)', 'rows/s', 'million multiply-adds'),
        *('XLA / counted', 'MiB temporary', 'MiB arguments'),
      ),
      rows,
    ),
  ]


def pictures(compressions: Sequence[Mapping[str, Any]]) -> list[Picture]:
  """For each task the score over bytes, and over the milliseconds of a shape.

  What is on generated stand-ins is a task of its own; times of another shape or
  device are not in one plot.
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
      place = (row['batch'], row['length'], one['device'])
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
  batch, length, device = place
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
  x = f'milliseconds of {batch} x {length}, {device}'
  return _plot(task, points, x, f'milliseconds_{number}')


def _plot(task, points, x_label, name) -> Picture:
  pyplot = plots.load_pyplot()
  figure, axes = pyplot.subplots(figsize=(7.5, 5))
  colours = pyplot.colormaps['tab10'].colors
  recipes = sorted({one['recipe'] or _OWN for *_, one in points})
  shown = set()
  for x, quality, model, one in points:
    score, low, high = (100 * quality[k] for k in ('score', 'low', 'high'))
    kind = model['model'].partition(':')[0]
    is_parent, is_control = kind == PARENT, kind == CONTROL
    label = PARENT if is_parent else one['recipe'] or _OWN
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


def _percent(value: float) -> str:
  return f'{100 * value:.2f}'


def _mega(size: int) -> str:
  return f'{size / 1e6:,.2f}'


def _mebi(size: int | None) -> str:
  return '' if size is None else f'{size / 2**20:,.1f}'
