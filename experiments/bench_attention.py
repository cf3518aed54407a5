"""Time, operations, memory and streaming of every mechanism over length.

  python -m experiments.bench_attention \
    --csv=experiments/results/attention_cpu.csv --plots=docs/plots
  python -m experiments.bench_attention --peers --lengths=1024,4096,16384 \
    --csv=experiments/results/attention_peers.csv

One layer: projections, mechanism, output; batch 1, width 256, 4 heads, float32,
default settings, no dropout. `gradient` is forward and backward, to the weights
and the input. All layers of one length are timed in turn, round after round,
and the medians reported: CPU seconds of one thread on a CPU (--threads=1 binds
the process to one core), wall seconds on anything else.

  flops     counted from the jaxpr, times the length of scans (effformer.cost)
  xla_flops, xla_mib: operations and bytes accessed as XLA's cost analysis has
            them, which counts the body of a loop once, whatever its length
  temp_mib  temporary memory of the compiled program; XLA:CPU does not see that
            of a softmax(q k^T) v forward, the gradient is right
  exponent  slope of log(time) over log(T), of the longer half of the lengths
  crossover least T from which the layer is faster than `full`, in `gradient`

The table is written after each length, and rows that it holds of other lengths
and layers stay, so a run that was cut short is continued with the lengths left.

Streaming: one token after a prefix of T tokens; milliseconds and bytes of
state. Lengths that would need more than --max-gib of temporary memory are left
out. --peers times PyTorch packages on the same shapes, in turn with ours; the
ratio is ours / theirs, below 1 ours is faster (experiments/peers.py); and a
training step of a small encoder and of one of LRA's width.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH, HEADS = 256, 4
PASSES = ('forward', 'gradient')
# What the stream of single tokens has no counts of.
COUNTED = (
  *('flops', 'product_flops', 'xla_flops', 'xla_mib', 'temp_mib'),
  'parameters',
)
LENGTHS = '512,1024,2048,4096,8192,16384'


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--mechanisms', default='all', help='all, or a,b,...')
  parser.add_argument('--lengths', default=LENGTHS)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--threads', type=int, default=1, help='0: all cores')
  parser.add_argument('--max-gib', type=float, default=4.0)
  parser.add_argument('--max-seconds', type=float, default=20.0,
                      help='of one call; longer ones are left out')  # fmt: skip
  parser.add_argument('--peers', action='store_true')
  parser.add_argument('--csv', type=pathlib.Path)
  parser.add_argument('--plots', type=pathlib.Path, help='folder for plots')
  return parser.parse_args()


class Program:
  """A compiled layer at one length, and its times."""

  def __init__(self, row: dict, call):
    self.row, self._call, self.seconds = row, call, []

  def once(self, clock) -> float:
    start = clock()
    self._call()
    return clock() - start

  def measure(self, clock) -> None:
    # Short calls are repeated until a clock can see them.
    repeats = self.row.setdefault('repeats', 1)
    start = clock()
    for _ in range(repeats):
      self._call()
    self.seconds.append((clock() - start) / repeats)


def layers(options):
  """(name of the row, mechanism, settings) of every layer to be timed."""
  from effformer import attention

  names = list(attention.TABLE)
  if options.mechanisms != 'all':
    names = options.mechanisms.split(',')
  for name in names:
    known = attention.settings(name)
    shared = {'num_heads': HEADS, 'head_width': WIDTH // HEADS}
    shared = {k: v for k, v in shared.items() if k in known}
    supports = attention.TABLE[name].supports
    if supports.bidirectional:
      yield name, name, shared
    if supports.causal:
      yield f'{name} causal', name, {**shared, 'causal': True}


def compile_layer(
  row, name, settings, length, which, options
) -> Program | None:
  """The compiled layer, or None where its memory is beyond the limit."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from effformer import attention, cost
  from effformer.shapes import Tokens

  if 'max_length' in attention.settings(name):
    settings = {**settings, 'max_length': length}
  module = attention.build(name, **settings)
  tokens = Tokens.from_lengths(np.full(options.batch, length), length)
  shape = (options.batch, length, WIDTH)
  x_BTD = jax.random.normal(jax.random.key(1), shape, jnp.float32)
  variables = jax.jit(functools.partial(module.init, tokens=tokens))(
    jax.random.key(0), x_BTD
  )

  def forward(variables, x_BTD):
    return module.apply(variables, x_BTD, tokens=tokens)

  def loss(variables, x_BTD):
    return (forward(variables, x_BTD) * x_BTD).sum()

  function = forward
  if which == 'gradient':
    function = jax.grad(loss, argnums=(0, 1))
  counted = cost.count(function, variables, x_BTD)
  compiled = jax.jit(function).lower(variables, x_BTD).compile()
  analysis = compiled.cost_analysis() or {}
  temp = compiled.memory_analysis().temp_size_in_bytes
  if temp > options.max_gib * 2**30:
    return None
  facts = {
    'layer': row,
    'pass': which,
    'length': length,
    'batch': options.batch,
    'flops': f'{counted.total:.4g}',
    'product_flops': f'{counted.products:.4g}',
    'xla_flops': f'{analysis.get("flops", math.nan):.4g}',
    'xla_mib': f'{analysis.get("bytes accessed", math.nan) / 2**20:.4g}',
    'temp_mib': round(temp / 2**20, 2),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(variables)),
  }
  return Program(
    facts, lambda: jax.block_until_ready(compiled(variables, x_BTD))
  )


def compile_stream(row, name, settings, length, options) -> Program | None:
  """One token after a prefix of `length`; None where there is no stream."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from effformer import attention
  from effformer.shapes import Tokens

  if not (settings.get('causal') and attention.TABLE[name].supports.streaming):
    return None
  if 'max_length' in attention.settings(name):
    settings = {**settings, 'max_length': length + 1}
  module = attention.build(name, **settings)
  prefix = Tokens.from_lengths(np.full(options.batch, length), length)
  x_BTD = jax.random.normal(
    jax.random.key(1), (options.batch, length, WIDTH), jnp.float32
  )
  variables = jax.jit(functools.partial(module.init, tokens=prefix))(
    jax.random.key(0), x_BTD
  )
  state = module.apply(
    variables, options.batch, length + 1, method='init_state'
  )
  one = Tokens(
    jnp.ones((options.batch, 1), jnp.int32),
    jnp.full((options.batch, 1), length, jnp.int32),
    is_packed=False,
  )

  @jax.jit
  def extend(state, x_BTD, tokens):
    return module.apply(variables, x_BTD, state, tokens=tokens, method='extend')

  _, state = extend(state, x_BTD, prefix)
  token_B1D = x_BTD[:, :1]
  jax.block_until_ready(extend(state, token_B1D, one))
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  facts = {
    'layer': row,
    'pass': 'token',
    'length': length,
    'batch': options.batch,
    **dict.fromkeys(COUNTED, ''),
    'state_bytes': size,
  }
  return Program(
    facts, lambda: jax.block_until_ready(extend(state, token_B1D, one))
  )


def programs_at(length, options, dropped):
  for row, name, settings in layers(options):
    for which in PASSES:
      if (row, which) in dropped:
        continue
      program = compile_layer(row, name, settings, length, which, options)
      if program is None:
        dropped.add((row, which))
      else:
        yield program
    stream = compile_stream(row, name, settings, length, options)
    if stream is not None:
      yield stream


def timed(programs, options, clock, dropped) -> list[dict]:
  """Rounds of all programs in turn -> rows with medians."""
  kept = []
  for program in programs:
    program.once(clock)
    seconds = program.once(clock)
    program.row['repeats'] = max(1, min(100, int(0.02 / max(seconds, 1e-5))))
    if seconds > options.max_seconds:
      dropped.add((program.row['layer'], program.row['pass']))
    kept.append(program)
  for _ in range(options.rounds):
    for program in kept:
      program.measure(clock)
  rows = []
  for program in kept:
    seconds = statistics.median(program.seconds)
    tokens = program.row['length'] * program.row['batch']
    if program.row['pass'] == 'token':
      tokens = program.row['batch']
    low, high = min(program.seconds), max(program.seconds)
    rows.append(
      {
        **{k: v for k, v in program.row.items() if k != 'repeats'},
        'ms': round(1e3 * seconds, 4),
        'ms_low': round(1e3 * low, 4),
        'ms_high': round(1e3 * high, 4),
        'tokens_per_second': round(tokens / seconds),
        'state_bytes': program.row.get('state_bytes', ''),
      }
    )
  return rows


def exponents(rows: list[dict]) -> dict[tuple[str, str], float]:
  """Slope of log(ms) over log(T), of the longer half of the lengths."""
  import numpy as np

  result = {}
  for key in {(row['layer'], row['pass']) for row in rows}:
    points = sorted(
      (row['length'], row['ms'])
      for row in rows
      if (row['layer'], row['pass']) == key
    )
    points = points[-max(2, (len(points) + 1) // 2) :]
    if len(points) > 1:
      x, y = np.log(np.array(points, float)).T
      result[key] = round(float(np.polyfit(x, y, 1)[0]), 3)
  return result


def crossovers(rows: list[dict]) -> dict[str, int]:
  """Least length from which a layer's gradient stays faster than full's."""
  times = {
    (row['layer'], row['length']): row['ms']
    for row in rows
    if row['pass'] == 'gradient'
  }
  result = {}
  for layer in {layer for layer, _ in times}:
    base = 'full causal' if layer.endswith(' causal') else 'full'
    shared = sorted(
      length for name, length in times
      if name == layer and (base, length) in times
    )  # fmt: skip
    faster = None
    for length in reversed(shared):
      if times[layer, length] >= times[base, length]:
        break
      faster = length
    if layer != base and faster is not None:
      result[layer] = faster
  return result


def together(old: list[dict], new: list[dict]) -> list[dict]:
  """All rows, new ones in place of old ones, with exponents and crossovers."""
  rows = {}
  for row in [*old, *new]:
    row = {**row, 'length': int(row['length']), 'ms': float(row['ms'])}
    rows[row['layer'], row['pass'], row['length']] = row
  rows = list(rows.values())
  slopes, crossing = exponents(rows), crossovers(rows)
  for row in rows:
    row['exponent'] = slopes.get((row['layer'], row['pass']), '')
    row['crossover'] = crossing.get(row['layer'], '')
  return rows


def machine_facts(options) -> dict:
  import jax

  from effformer.train import result

  return {
    'threads': options.threads or os.cpu_count(),
    'device': result.device(),
    'jax': jax.__version__,
    'commit': result.commit(),
  }


def main() -> int:
  options = arguments()
  if options.threads:
    # Before jax counts the cores for its thread pools.
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)
  import jax

  from experiments import table

  on_cpu = jax.default_backend() == 'cpu'
  clock = time.process_time if on_cpu else time.perf_counter
  if options.peers:
    from experiments import peers

    facts = machine_facts(options)
    table.write(
      options.csv, ({**row, **facts} for row in peers.run(options, clock))
    )
    return 0
  facts = machine_facts(options)
  rows, dropped = table.read(options.csv), set()
  for length in sorted(map(int, options.lengths.split(','))):
    programs = list(programs_at(length, options, dropped))
    new = timed(programs, options, clock, dropped)
    for row in new:
      print(json.dumps(row), flush=True)
    rows = together(rows, [{**row, **facts} for row in new])
    table.write(options.csv, rows)
  if options.plots:
    from experiments import plots

    plots.over_length(rows, options.plots)
  return 0


if __name__ == '__main__':
  sys.exit(main())
