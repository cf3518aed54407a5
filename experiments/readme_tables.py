"""The generated blocks of README.md: the catalogue, and the measured results.

  python -m experiments.readme_tables           writes them
  python -m experiments.readme_tables --check   exit code 1 if they differ

The catalogue comes from the mechanisms themselves (docstring, capabilities,
parameters of one layer), results from the CSV files in experiments/results.
"""

import dataclasses
import inspect
import pathlib
import re
import statistics
import sys

import jax
import jax.numpy as jnp

from effformer import attention, shapes
from effformer.report import published
from experiments import page, table
from experiments.compress import readme

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / 'README.md'
# The layer whose parameters the catalogue counts.
LENGTH, WIDTH, HEADS = 1024, 256, 4
# Of a row that is not a first look.
SEEDS = 3
# Capability -> word of the catalogue.
CAPABILITIES = {
  'bidirectional': 'both ways',
  'causal': 'causal',
  'cross': 'cross',
  'streaming': 'stream',
  'packing': 'packing',
  'rotary': 'rotary',
  'relative_bias': 'bias',
  'grouped': 'grouped',
}


def catalogue() -> list[str]:
  """One row a mechanism: paper, cost, capabilities, parameters."""
  sizes = {name: _parameters(name) for name in attention.TABLE}
  lines = [
    '| mechanism | what it is | cost in T | can | parameters |',
    '| --- | --- | --- | --- | --- |',
  ]
  for name, mechanism in attention.TABLE.items():
    module = inspect.getmodule(mechanism)
    about = ' '.join(module.__doc__.split('\n\n')[0].split()).rstrip('.')
    cost = re.search(r'Cost:\s+(.*?)\.\s', module.__doc__, re.DOTALL)
    supports = dataclasses.asdict(mechanism.supports)
    words = [word for c, word in CAPABILITIES.items() if supports[c]]
    path = pathlib.Path(module.__file__).relative_to(ROOT)
    lines.append(
      f'| [`{name}`]({path}) | {about} | {" ".join(cost[1].split())} | '
      f'{", ".join(words)} | {sizes[name]:,} |'
    )
  lines += [
    '',
    'Both ways: bidirectional; cross: keys from a context; stream: token by '
    'token with a state; packing: several texts in a row;',
    'bias: ALiBi and T5; grouped: fewer heads of keys and values.',
    f'Parameters: of one layer of width {WIDTH} with {HEADS} heads for '
    f'{LENGTH:,} tokens, at the',
    'default settings. What is not declared raises `NotImplementedError` with '
    'the name of the capability.',
  ]
  return lines


def _parameters(name: str) -> int:
  heads = (
    {'num_heads': HEADS} if 'num_heads' in attention.settings(name) else {}
  )
  module = attention.build(name, **heads)
  tokens = shapes.Tokens.from_lengths(jnp.array([LENGTH]), LENGTH)
  x_BTD = jax.ShapeDtypeStruct((1, LENGTH, WIDTH), jnp.float32)
  params = jax.eval_shape(
    lambda x: module.init(jax.random.key(0), x, tokens=tokens), x_BTD
  )
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def results() -> list[str]:
  """Scores of the quick and longer runs, then what was measured of the loop."""
  lines = []
  quick, longer = _real('quick'), _real('longer')
  if quick:
    lines += _scores(quick)
  if longer:
    lines += _longer(longer)
  if quick or longer:
    lines += _distance([*quick, *longer])
  lines += _reliability()
  return lines


def _real(prefix: str) -> list[dict[str, str]]:
  """The rows of the tables of that name; a stand-in is no score."""
  names = sorted(path.stem for path in table.RESULTS.glob(f'{prefix}_*.csv'))
  rows = [row for name in reversed(names) for row in _read(name)]
  return [row for row in rows if row['stand_in'] == 'False']


def speed() -> list[str]:
  """Plots over length, and the ratios to PyTorch packages."""
  beside = [row for row in _read('attention_peers') if row['pass'] != 'step']
  if not beside:
    return []
  lengths = sorted({int(row['length']) for row in beside})
  lines = [
    '![milliseconds over length](docs/plots/attention_ms_bidirectional.svg)',
    '![memory over length](docs/plots/attention_temp_mib_bidirectional.svg)',
    '',
    'One layer of width 256, forward and backward, one thread of a CPU. Beside '
    'PyTorch packages with the same settings, in',
    'turn in one process, CPU time of ours over theirs, forward / forward and '
    'backward:',
    '',
    '| peer |' + ''.join(f' T = {length:,} |' for length in lengths),
    '| --- |' + ' --- |' * len(lengths),
  ]
  ratios = {
    (r['peer'], r['pass'], int(r['length'])): r['ratio'] for r in beside
  }
  packages = {row['peer']: row['package'] for row in beside}
  for peer, package in packages.items():
    cells = [
      ' / '.join(
        f'{float(ratios[peer, which, length]):.2f}'
        for which in ('forward', 'gradient')
        if (peer, which, length) in ratios
      )
      for length in lengths
    ]
    lines.append(f'| {peer} ({package}) | ' + ' | '.join(cells) + ' |')
  return [
    *lines,
    '',
    '[docs/speed.md](docs/speed.md) has every mechanism over length, memory, '
    'streaming, training steps, and what is beyond',
    'the bars we set ourselves (`python -m experiments.bench_attention`).',
  ]


def _scores(rows: list[dict[str, str]]) -> list[str]:
  lines = [
    'The quick runs (`quick` shrinks the recipe to minutes on two CPU cores: '
    'these are checks, not LRA scores), on real data,',
    'test accuracy in percent, mean ± standard deviation over seeds '
    '(`python -m experiments.run_lra --quick`).',
    'Most ran on one core beside each other: their steps/s are for the order '
    'of magnitude, [docs/speed.md](docs/speed.md) for speed.',
    '',
    '| task | mechanism | test | highest floor | majority | seeds | '
    'parameters | GFLOP a step | steps | steps/s |',
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
  for row in rows:
    groups.setdefault((row['task'], _name(row)), []).append(row)
  for (task, mechanism), group in groups.items():
    tests = [float(row['test_accuracy']) for row in group]
    score = f'{statistics.mean(tests):.1f}'
    if len(tests) > 1:
      score += f' ± {statistics.stdev(tests):.1f}'
    first = group[0]
    floor = statistics.mean(float(row['floor']) for row in group)
    rate = max(float(row['steps_per_second']) for row in group)
    lines.append(
      f'| {task} | {mechanism} | {score} | '
      f'{floor:.1f} ({first["floor_name"].replace("_", " ")}) | '
      f'{first["majority"]} | {len(group)} | {int(first["num_params"]):,} | '
      f'{float(first["products_per_step"]) / 1e9:.3g} | '
      f'{first["steps"]} of {first["batch_size"]} | {rate:.2f} |'
    )
  waiting = max(float(row['waiting_share']) for row in rows)
  lines += [
    '',
    *_left_out(groups),
    'A score at its floor or below it has learnt nothing that a trivial model '
    'does not know: so few steps of Pathfinder and Retrieval.',
    'A row of one seed has no spread. Steps per second: of the fastest seed, '
    'on one or two cores that other work may have shared',
    '(see the table of speed for fair ratios).',
    f'At most {100 * waiting:.1f}% of the training time went into waiting for '
    'data.',
  ]
  return [*lines, '']


def _left_out(groups) -> list[str]:
  """How much of the grid was run, so that its gaps are seen."""
  total = sum(row.supports.bidirectional for row in attention.TABLE.values())
  parts = []
  for task in dict.fromkeys(task for task, _ in groups):
    own = [len(group) for (name, _), group in groups.items() if name == task]
    whole = sum(count >= SEEDS for count in own)
    parts.append(f'{task} {len(own)} ({whole})')
  return [
    f'Run were, of {total} mechanisms (with {SEEDS} seeds or more): '
    f'{", ".join(parts)}.',
    'The rest was left out, to stay within some hours of computing.',
  ]


def _longer(rows: list[dict[str, str]]) -> list[str]:
  lines = [
    'Longer runs of what did best there: the same small model, more of each '
    'text or more steps, one seed.',
    '',
    '| task | mechanism | test | highest floor | quick | budget | minutes | '
    'command |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  quick = {
    (row['task'], row['mechanism'], row['variant'], row['seed']): row
    for row in _real('quick')
  }
  for row in rows:
    same = quick.get(
      (row['task'], row['mechanism'], row['variant'], row['seed'])
    )
    # Where its result goes is the reader's.
    command = ' '.join(
      word
      for word in row['command'].split()
      if not word.startswith('--workdir')
    )
    short = f'{float(same["test_accuracy"]):.1f}' if same else ''
    lines.append(
      f'| {row["task"]} | {_name(row)} | {float(row["test_accuracy"]):.1f} | '
      f'{float(row["floor"]):.1f} ({row["floor_name"].replace("_", " ")}) | '
      f'{short} | {_budget(row)} | {float(row["train_seconds"]) / 60:.0f} | '
      f'`{command}` |'
    )
  return [*lines, '']


def _budget(row: dict[str, str]) -> str:
  return f'{row["steps"]} x {row["batch_size"]} x {row["max_length"]}'


def _name(row: dict[str, str]) -> str:
  """The mechanism, and what else the run differs in from a plain one."""
  notes = row['preset'] * (row['preset'] != 'modern'), row['variant']
  note = ', '.join(filter(None, notes))
  return row['mechanism'] + (f' ({note})' if note else '')


def _distance(rows: list[dict[str, str]]) -> list[str]:
  """Our best row of each task of LRA beside the best published score."""
  tests: dict[tuple[str, str, str], list[float]] = {}
  for row in rows:
    key = row['task'], _name(row), _budget(row)
    tests.setdefault(key, []).append(float(row['test_accuracy']))
  means = {key: statistics.mean(values) for key, values in tests.items()}
  averages = ' and '.join(
    f'{name} {published.average(name):.2f}' for name in ('mega', 's5')
  )
  lines = [
    'How far these are from the best that is published, which is of other '
    'code, larger models and up to thousands of times the',
    f'examples. Its averages over all six tasks: {averages}; a run of ours at '
    'full budget',
    'needs an accelerator and is not made yet. Pathfinder is of our generator, '
    'Retrieval of abstracts: not the files that',
    'the published figures are of.',
    '',
    '| task | our best here | budget | published best | distance |',
    '| --- | --- | --- | --- | --- |',
  ]
  for task, title in published.TASKS.items():
    ours = [key for key in means if key[0] == task]
    if not ours:
      continue
    key = max(ours, key=means.get)
    value, name, source = published.best(task)
    lines.append(
      f'| {title} | {key[1]} {means[key]:.1f} | {key[2]} | '
      f'{name} {value:.2f} ({source}) | {means[key] - value:+.1f} |'
    )
  return [*lines, '']


def _reliability() -> list[str]:
  lines = []
  for row in _read('kill_campaign'):
    has_stage = row['pretrain_steps'] != '0'
    stage = ' with a stage of self-pretraining' if has_stage else ''
    lines.append(
      f'- **{row["kills"]} random SIGKILLs over {row["runs"]} runs{stage}: '
      f'{row["divergences"]} divergences** in state, scores or metrics '
      '(`python -m experiments.kill_campaign`).'
    )
  devices = [row for row in _read('devices') if row['restored_on']]
  if devices:
    worst = max(
      float(row['largest_relative_loss_difference']) for row in devices
    )
    lines.append(
      f'- {len(devices)} pairs of device counts and processes, saved on one '
      f'and restored on the other: losses agree to {worst:.0e} '
      '(`python -m experiments.devices`).'
    )
  full = [r for r in _read('disk_full') if r['first_exit_code'] == '4']
  if full:
    same = sum(row['same_bytes'] == 'True' for row in full)
    lines.append(
      f'- {same} of {len(full)} runs that met a full disk went on to the same '
      'bytes once there was room (`python -m experiments.disk_full`).'
    )
  if overhead := _read('loop_overhead'):
    ratios = ', '.join(
      f'{row["task"]} {float(row["median_ratio"]):.3f}' for row in overhead
    )
    waiting = max(float(row['waiting_share']) for row in overhead)
    lines.append(
      '- The loop over the bare compiled step, steps a second: '
      f'{ratios}; at most {100 * waiting:.1f}% of it is waiting for data '
      f'({overhead[0]["mechanism"]}, quick; '
      '`python -m experiments.loop_overhead`).'
    )
  if path_x := _read('path_x'):
    peaks = ', '.join(
      f'{row["mechanism"]} {int(row["peak_resident_mb"]) / 1000:.2f} GB'
      for row in path_x
    )
    lines.append(
      f'- Path-X, a training step of {path_x[0]["batch_size"]} rows of '
      f'{int(path_x[0]["tokens"]):,} tokens, peak memory of the whole process: '
      f'{peaks} (`python -m experiments.path_x`).'
    )
  return lines


def _read(name: str) -> list[dict[str, str]]:
  return table.read(table.RESULTS / f'{name}.csv')


def rendered(text: str) -> str:
  """The README with fresh blocks."""
  blocks = {
    'mechanisms': catalogue(),
    'speed': speed(),
    'compressed': readme.block(),
    'results': results(),
  }
  for name, block in blocks.items():
    pattern = rf'(<!-- {name}: .*? -->\n).*?(<!-- end -->)'
    body = '\n'.join(block)
    text, count = re.subn(
      pattern,
      lambda match, body=body: f'{match[1]}\n{body}\n\n{match[2]}',
      text,
      count=1,
      flags=re.DOTALL,
    )
    assert count == 1, f'README.md has no block {name}'
  return text


if __name__ == '__main__':
  sys.exit(page.main(__doc__, README, rendered(README.read_text())))
