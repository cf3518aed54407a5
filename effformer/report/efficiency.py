"""The efficiency table: models beside exact softmax, over the number of tokens.

From the files efficiency.json that `--mode=efficiency` writes.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from effformer.report import found
from effformer.report.document import Block, Heading, Table, Text
from effformer.train import workdir

_NEEDED = ('task', 'mechanism', 'batch_size', 'rows', 'device')
_EXACT = ('naive', 'fused')
_KINDS = {'train': 'training step', 'forward': 'forward'}


def find(places: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
  """See `found.find`."""
  return found.find(places, workdir.EFFICIENCY, _NEEDED, 'efficiency')


def tables(measured: Sequence[dict[str, Any]]) -> list[Block]:
  """For each task, preset, batch and device: speed and memory over tokens.

  A cell is steps a second, and how many times those of naive and of fused
  softmax, measured in the same rounds.
  """
  blocks: list[Block] = []
  sections: dict[str, list[dict]] = {}
  for one in measured:
    sections.setdefault(_title(one), []).append(one)
  for title in sorted(sections):
    group = sections[title]
    lengths = sorted({row['length'] for one in group for row in one['rows']})
    header = ['model', *(f'{length:,} tokens' for length in lengths)]
    blocks.append(Heading(f'Efficiency: {title}'))
    for kind, name in _KINDS.items():
      rows = [
        [model, *(_speed(one, model, length, kind) for length in lengths)]
        for one, model in _models(group)
      ]
      blocks += [Text(f'Of the {name}: {_EXPLAINED}'), Table(header, rows)]
    rows = [
      [model, *(_memory(one, model, length) for length in lengths)]
      for one, model in _models(group)
    ]
    blocks += [
      Text('Temporary memory of the training step, MiB on a device:'),
      Table(header, rows),
    ]
  return blocks


_EXPLAINED = (
  'steps a second (times naive softmax, times fused softmax); medians of '
  'interleaved rounds; a dash where it does not fit the memory.'
)


def _title(one):
  quick = ', quick' if one.get('quick') else ''
  return (
    f'{one["task"]}, preset {one.get("preset")}{quick}, batch of '
    f'{one["batch_size"]}, {one["device"]}'
  )


def _models(group):
  """The exact ones once, of the first file; then each mechanism."""
  yield from ((group[0], name) for name in _EXACT)
  for one in sorted(group, key=lambda one: one['mechanism']):
    yield one, one['mechanism']


def _cell(one, model, length, kind):
  for row in one['rows']:
    if (row['model'], row['length'], row['kind']) == (model, length, kind):
      return row
  return None


def _speed(one, model, length, kind):
  row = _cell(one, model, length, kind)
  if row is None:
    return ''
  if row['milliseconds'] is None:
    return '-'
  text = f'{1000 / row["milliseconds"]:.3g}'
  if model in _EXACT:
    return text
  ratios = []
  for name in _EXACT:
    other = _cell(one, name, length, kind)
    known = other is not None and other['milliseconds'] is not None
    ratio = other['milliseconds'] / row['milliseconds'] if known else None
    ratios.append('-' if ratio is None else f'{ratio:.2f}')
  return f'{text} ({", ".join(ratios)})'


def _memory(one, model, length):
  row = _cell(one, model, length, 'train')
  return '' if row is None else f'{row["temporary_bytes"] / 2**20:,.0f}'
