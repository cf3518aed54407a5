"""Compressed models: bytes, quality and speed beside their parent.

From the files compression.json that `--mode=compress` writes.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from effformer import durable
from effformer.errors import ConfigError
from effformer.report import document, found, frontiers, plots, searches
from effformer.report.document import Block, Heading, Table, Text
from effformer.train import workdir

_COMPONENTS = ('embedding', 'attention', 'feed_forward', 'norms', 'head')
_NEEDED = {
  *('task', 'recipe', 'final', 'models', 'speed', 'plan', 'device', 'steps'),
  *('seed', 'stand_in', 'origin', 'versions', 'commit', 'overridden'),
  *('parent_sha256', 'examples', 'floors', 'floor_score'),
  *('searches', 'machine'),
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
    blocks += frontiers.pictures(compressions)
  for one in compressions:
    blocks += _section(one)
  return blocks


def _section(one) -> list[Block]:
  what = f'{frontiers.recipe(one)} of {one["task"]}, seed {one["seed"]}'
  if one['stand_in']:
    what += ' (STAND-IN data, not a score)'
  versions = ', '.join(f'{k} {v}' for k, v in one['versions'].items())
  changed = f' Changed: {one["overridden"]}.' if one['overridden'] else ''
  return [
    Heading(what),
    Text(
      f'Parent {one["parent_sha256"][:16]}; {one["origin"]}; '
      f'{frontiers.machine(one)}; {versions}; '
      f'commit {(one["commit"] or "unknown")[:10]}.{changed}'
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
    *(block for own in one['searches'] for block in searches.blocks(own)),
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
    flops, is_control = row['xla_flops'], row['model'] == frontiers.CONTROL
    counted = '' if not flops else f'{flops / 2 / row["multiply_adds"]:.2f}'
    rows.append(
      [
        f'{row["batch"]} x {row["length"]}',
        'parent again (control)' if is_control else row['model'],
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


def _percent(value: float) -> str:
  return f'{100 * value:.2f}'


def _mega(size: int) -> str:
  return f'{size / 1e6:,.2f}'


def _mebi(size: int | None) -> str:
  return '' if size is None else f'{size / 2**20:,.1f}'
