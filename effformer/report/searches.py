"""What a policy chose, and what else it tried."""

import collections
from collections.abc import Mapping
from typing import Any

from effformer.report.document import Block, Heading, Table, Text

# Name of the step -> title, unit of costs, costs in one unit, what is chosen.
_KINDS = {
  'choose_bits': ('Choice of bits', 'MB', 1e6, 'bits'),
  'choose_units': ('Choice of units', 'ms', 1, 'units that stay'),
}


def blocks(found: Mapping[str, Any]) -> list[Block]:
  """The frontier of a search, and the loss of every option alone.

  Args:
    found: a row of `searches` of compression.json.
  """
  title, unit, size, what = _KINDS[found['step']]
  frontier = []
  for row in found['frontier']:
    counts = collections.Counter(row['plan'].values())
    plan = '; '.join(f'{name}: {counts[name]}' for name in sorted(counts))
    is_best = row['cost'] == found['best']['cost']
    frontier.append(
      [
        f'{row["cost"] / size:.2f}',
        f'{-row["score"]:.3g}',
        f'{row["predicted"]:.3g}',
        f'{plan}{" (chosen)" * is_best}',
      ]
    )
  names = list(
    dict.fromkeys(
      option['name'] for row in found['options'].values() for option in row
    )
  )
  rows = []
  for group, options in found['options'].items():
    losses = {option['name']: f'{option["loss"]:.2g}' for option in options}
    rows.append([group, *(losses.get(name, '-') for name in names)])
  return [
    Heading(title, 3),
    Text(
      f'{found["why"]}. Losses are the mean KL to the model before in nats, '
      'of vectors 1 - cosine, on batches of the train split. First the plans '
      'that no other plan beats in both, then each group with an option '
      'alone, all others as they were.'
    ),
    Table((unit, 'loss', 'predicted', f'{what}: groups'), frontier),
    Table(('group', *names), rows),
  ]
