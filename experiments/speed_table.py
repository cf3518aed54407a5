"""docs/speed.md: what the benchmark measured, beside the bars of the house.

  python -m experiments.speed_table           writes it
  python -m experiments.speed_table --check   exit code 1 if it differs

Reads experiments/results/attention_cpu.csv and attention_peers.csv, which
`python -m experiments.bench_attention` makes.
"""

import pathlib
import sys

from experiments import page, table
from experiments.bench_attention import WIDTH

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / 'docs' / 'speed.md'
# Highest ratio of ours to theirs: (pass, whether exact attention) -> bar.
BARS = {
  ('forward', False): 1.0,
  ('gradient', False): 1.1,
  ('forward', True): 0.95,
  ('gradient', True): 1.0,
}
STEP_BARS = {'encoder small': 1.1, 'encoder lra': 1.2}
LEAST_SHARE = 0.75
# Of a causal recurrence to its own bidirectional form.
CAUSAL_BAR = 1.5
RECURRENT = ('linear', 'performer', 'retnet', 'gla', 'gated_deltanet', 'mamba2')
# Of chunked exact attention, forward and backward, in T x width x 4 bytes.
MEMORY_BAR = 12
PASS_WORDS = {'forward': 'forward', 'gradient': 'forward + backward'}

ABOUT = """\
# Speed

Made by `python -m experiments.speed_table` from the tables in
[experiments/results](../experiments/results), which
`python -m experiments.bench_attention` makes: one layer of width 256 with 4
heads, float32, default settings, batch 1, no dropout. All programs of one
length run in turn, round after round; medians. On a CPU: CPU time of one
thread. A ratio is ours / theirs, so below 1 ours is faster; **bold** is beyond
the bar that we set ourselves. Cells move by some percent from run to run,
and those of a package by more where its memory is large or paged in anew
(`ratio_low` and `ratio_high` of the table).
"""


def _number(value: float) -> str:
  return f'{value:.3g}' if value < 1000 else f'{value:,.0f}'


def _grid(heading: list[str], rows: list[list[str]]) -> list[str]:
  lines = [
    f'| {" | ".join(heading)} |',
    '| --- |' + ' --- |' * len(rows[0][1:]),
  ]
  return [*lines, *(f'| {" | ".join(row)} |' for row in rows), '']


def _judged(value: float, bar: float, places: int = 2) -> str:
  text = f'{value:.{places}f}'
  return f'**{text}**' if float(text) > bar else text


def _machine(rows: list[dict]) -> str:
  first = rows[0]
  torch = f', torch {first["torch"]}' if 'torch' in first else ''
  lengths: dict[str, set[int]] = {}
  for row in rows:
    lengths.setdefault(row['commit'][:10], set()).add(int(row['length']))
  commits = '; '.join(
    f'{commit} (T = {", ".join(f"{n:,}" for n in sorted(of_commit))})'
    for commit, of_commit in lengths.items()
  )
  return (
    f'{first["device"]}, {first["threads"]} thread(s), jax {first["jax"]}'
    f'{torch}; commits: {commits}.'
  )


def peers(rows: list[dict]) -> list[str]:
  """Ratios to the packages, a row each, and training steps."""
  layers = [row for row in rows if row['pass'] in PASS_WORDS]
  lengths = sorted({int(row['length']) for row in layers})
  cells = {
    (row['peer'], row['pass'], int(row['length'])): row for row in layers
  }
  names = list(dict.fromkeys(row['peer'] for row in layers))
  lines = ['## Beside PyTorch packages', '', _machine(rows), '']
  for which, words in PASS_WORDS.items():
    lines += [
      f'{words[0].upper()}{words[1:]}, ratio (ours / theirs, ms); bar '
      f'{BARS[which, False]}, exact attention {BARS[which, True]}:',
      '',
    ]
    body = []
    for name in names:
      row_cells = []
      for length in lengths:
        row = cells.get((name, which, length))
        if row is None:
          row_cells.append('')
          continue
        bar = BARS[which, name.startswith('sdpa')]
        times = f'{_number(float(row["ours_ms"]))} / '
        times += _number(float(row['peer_ms']))
        row_cells.append(f'{_judged(float(row["ratio"]), bar)} ({times})')
      package = cells[name, which, lengths[0]]['package']
      body.append([f'{name} ({package})', *row_cells])
    lines += _grid(['peer', *(f'T = {t:,}' for t in lengths)], body)
  notes = dict.fromkeys(
    f'{row["peer"]}: {row["note"]}' for row in layers if row['note']
  )
  lines += [f'- {note}.' for note in notes] + ['']
  shares = [row for row in layers if row['share_of_matrix_rate']]
  shares = [row for row in shares if row['peer'] == 'sdpa']
  if shares:
    lines += [
      'Exact attention, the whole layer, as a share of the rate of a matrix '
      f'product in the same rounds (bar {LEAST_SHARE}):',
      '',
    ]
    lines += _grid(
      ['pass', *(f'T = {t:,}' for t in lengths)],
      [
        [
          words,
          *(_share(cells.get(('sdpa', which, length))) for length in lengths),
        ]
        for which, words in PASS_WORDS.items()
      ],
    )
  steps = [row for row in rows if row['pass'] == 'step']
  if steps:
    lines += ['A training step beside `torch.nn.TransformerEncoder`:', '']
    lines += _grid(
      ['encoder', 'tokens', 'ours, ms', 'theirs, ms', 'ratio', 'bar'],
      [
        [
          row['note'],
          f'{row["batch"]} x {row["length"]}',
          _number(float(row['ours_ms'])),
          _number(float(row['peer_ms'])),
          _judged(float(row['ratio']), STEP_BARS[row['peer']]),
          str(STEP_BARS[row['peer']]),
        ]
        for row in steps
      ],
    )
  return lines


def _share(row: dict | None) -> str:
  if row is None:
    return ''
  share = float(row['share_of_matrix_rate'])
  return f'{share:.2f}' if share >= LEAST_SHARE else f'**{share:.2f}**'


def lengths_of(rows: list[dict]) -> list[str]:
  """Milliseconds over length, exponents and crossovers."""
  lengths = sorted({int(row['length']) for row in rows})
  cells = {(row['layer'], row['pass'], int(row['length'])): row for row in rows}
  lines = [
    '## Over length', '', _machine(rows), '',
    'Milliseconds forward and backward; the exponent is the slope of log time '
    'over log T of the longer half;',
    'the crossover is the least T from which the layer stays faster than '
    '`full` (causal: than `full causal`).',
    '',
  ]  # fmt: skip
  body = []
  for name in dict.fromkeys(row['layer'] for row in rows):
    own = [cells.get((name, 'gradient', length)) for length in lengths]
    any_row = next(row for row in own if row is not None)
    body.append(
      [
        name,
        *(_number(float(row['ms'])) if row else '' for row in own),
        any_row['exponent'],
        _crossover(name, any_row['crossover'], lengths),
      ]
    )
  heading = ['layer', *(f'T = {length:,}' for length in lengths)]
  return lines + _grid([*heading, 'exponent', 'crossover'], body)


def _crossover(name, value, lengths) -> str:
  if name.startswith('full'):
    return ''
  if not value:
    return f'above {lengths[-1]:,}'
  return f'{int(value):,}' if int(value) > lengths[0] else f'≤ {lengths[0]:,}'


def causal(rows: list[dict]) -> list[str]:
  """Causal recurrences beside their own bidirectional form."""
  lengths = sorted({int(row['length']) for row in rows})
  times = {
    (row['layer'], row['pass'], int(row['length'])): float(row['ms'])
    for row in rows
  }
  body = []
  for name in RECURRENT:
    for which, words in PASS_WORDS.items():
      pairs = [
        (times.get((f'{name} causal', which, t)), times.get((name, which, t)))
        for t in lengths
      ]
      if all(None in pair for pair in pairs):
        continue
      body.append(
        [
          f'{name}, {words}',
          *(
            '' if None in pair else _judged(pair[0] / pair[1], CAUSAL_BAR)
            for pair in pairs
          ),
        ]
      )
  heading = ['layer', *(f'T = {length:,}' for length in lengths)]
  return [
    '## Causal, in terms of the bidirectional form',
    '',
    f'Bar {CAUSAL_BAR}:',
    '',
    *_grid(heading, body),
  ]


def memory(rows: list[dict]) -> list[str]:
  """Temporary memory of every layer, in T x width x 4 bytes."""
  lengths = sorted({int(row['length']) for row in rows})
  cells = {
    (row['layer'], int(row['length'])): float(row['temp_mib'])
    for row in rows
    if row['pass'] == 'gradient'
  }
  body = []
  for name in dict.fromkeys(row['layer'] for row in rows):
    bar = MEMORY_BAR if name.startswith('full') else float('inf')
    units = [
      cells[name, t] * 2**20 / (4 * t * WIDTH) if (name, t) in cells else None
      for t in lengths
    ]
    body.append(
      [name, *('' if unit is None else _judged(unit, bar, 1) for unit in units)]
    )
  heading = ['layer', *(f'T = {length:,}' for length in lengths)]
  return [
    '## Temporary memory',
    '',
    'Of the compiled forward and backward pass, in units of one activation, '
    f'T x {WIDTH} x 4 bytes (bar of exact attention: {MEMORY_BAR}):',
    '',
    *_grid(heading, body),
  ]


def streaming(rows: list[dict]) -> list[str]:
  """One token after a prefix."""
  tokens = [row for row in rows if row['pass'] == 'token']
  lengths = sorted({int(row['length']) for row in tokens})
  lengths = [lengths[0], lengths[-1]]
  cells = {(row['layer'], int(row['length'])): row for row in tokens}
  body = []
  for name in dict.fromkeys(row['layer'] for row in tokens):
    own = [cells.get((name, length)) for length in lengths]
    body.append(
      [
        name,
        *(_number(float(row['ms'])) if row else '' for row in own),
        *(_kib(row['state_bytes']) if row else '' for row in own),
      ]
    )
  return [
    '## Streaming',
    '',
    'One token after a prefix of T tokens: milliseconds, and KiB of state.',
    '',
    *_grid(
      ['layer', *(f'ms, T = {t:,}' for t in lengths),
       *(f'KiB, T = {t:,}' for t in lengths)],
      body,
    ),
  ]  # fmt: skip


def _kib(value: str) -> str:
  return _number(int(value) / 1024)


def rendered() -> str:
  """The whole page."""
  over = table.read(table.RESULTS / 'attention_cpu.csv')
  beside = table.read(table.RESULTS / 'attention_peers.csv')
  lines = [ABOUT]
  if over:
    lines += [
      '![time over length](plots/attention_ms_bidirectional.svg)',
      '![memory over length](plots/attention_temp_mib_bidirectional.svg)',
      '',
    ]
    lines += lengths_of(over) + causal(over) + memory(over) + streaming(over)
  if beside:
    lines += peers(beside)
  return '\n'.join(lines).rstrip() + '\n'


if __name__ == '__main__':
  sys.exit(page.main(__doc__, TARGET, rendered()))
