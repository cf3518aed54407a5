"""--mode=efficiency: a model beside exact softmax, at 1K to 4K tokens.

The measurement that made LRA known (Tay et al. 2021, table 2), of any task and
sizes: forward and training step of the configured model, and of the same model
with exact attention, naive (all logits at once) and fused (tile by tile, or the
device's own kernel), in rounds (`timing`).
"""

import os
import statistics
from typing import Any

import jax
import ml_collections
import numpy as np

from effformer import config as config_lib
from effformer import errors, tasks, timing
from effformer.train import records, result, screen, setup, sharding, workdir

LENGTHS = (1024, 2048, 3072, 4096)
ROUNDS = 5
# Share of the memory that a program may take.
_FITTING = 0.8


def measure(
  config: ml_collections.ConfigDict,
  path: str,
  console: screen.Screen,
  lengths: tuple[int, ...] = LENGTHS,
  rounds: int = ROUNDS,
) -> dict[str, Any]:
  """Times the programs, writes efficiency.json, returns its content.

  No data are read: the tokens are random, all rows are full. What does not fit
  the memory is not run, and has its bytes all the same.

  Args:
    config: of a model of one text or two; its lengths are not used.
    path: folder that the file is written to, beside a run or alone.
    console: what people see.
    lengths: of the rows, in tokens.
    rounds: of which the medians are taken.

  Raises:
    ConfigError: there are several processes, or the model cannot be built.
    CheckpointError: the file cannot be written.
  """
  if jax.process_count() > 1:
    raise errors.ConfigError('--mode=efficiency needs one process.\nStart one.')
  with workdir.open_workdir(path) as folder:
    rows = []
    for length in lengths:
      rows += _at_length(config, length, rounds, console)
    outcome = {
      'task': config.task,
      'mechanism': config.mixer.name,
      'preset': config.preset,
      'quick': config.quick,
      'batch_size': config.train.batch_size,
      'rounds': rounds,
      'rows': rows,
      'device': result.device(),
      'commit': result.commit(),
    }
    records.write_json(folder / workdir.EFFICIENCY, outcome)
    console.say(*lines(outcome), f'written to {folder / workdir.EFFICIENCY}')
  return outcome


def lines(outcome: dict[str, Any]) -> list[str]:
  """The rows for people."""
  return [
    f'{row["model"]:<14} T {row["length"]:>5,}  {row["kind"]:<8} '
    + (
      f'{row["milliseconds"]:>10,.1f} ms'
      if row['milliseconds'] is not None
      else '  does not fit'
    )
    + f'  {row["temporary_bytes"] / 2**20:>10,.0f} MiB temporary'
    for row in outcome['rows']
  ]


def _at_length(config, length, rounds, console) -> list[dict[str, Any]]:
  rows, programs = [], []
  for name, own in _models(config, length).items():
    with console.heartbeat(f'compiling {name} at {length:,} tokens'):
      for kind, compiled, run in _compiled(own):
        memory = compiled.memory_analysis()
        needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        rows.append(
          {
            'model': name,
            'length': length,
            'kind': kind,
            'milliseconds': None,
            'temporary_bytes': memory.temp_size_in_bytes,
          }
        )
        if needed <= _FITTING * _memory():
          programs.append((rows[-1], run))
  with console.heartbeat(f'measuring at {length:,} tokens'):
    times = timing.rounds([run for _, run in programs], rounds)
  for own, (row, _) in zip(times, programs, strict=True):
    row['milliseconds'] = round(1000 * statistics.median(own), 3)
  return rows


def _models(config, length) -> dict[str, ml_collections.ConfigDict]:
  """Name -> config of the model itself, and of those with exact attention."""
  # The kernels of CPUs are ours.
  is_cpu = jax.default_backend() == 'cpu'
  exact = {'naive': 'dense', 'fused': 'chunked' if is_cpu else 'fused'}
  mixers = {config.mixer.name: None} | {
    name: {'name': 'full', 'form': form} for name, form in exact.items()
  }
  made = {}
  for name, mixer in mixers.items():
    values = {'data.max_length': length, 'mesh.data': 1, 'mesh.fsdp': 1}
    if mixer:
      values |= {'mixer': mixer, 'model.layers': {}}
    if mixer and mixer['form'] == 'fused':
      values['model.attention_dropout'] = 0.0
    made[name] = config_lib.changed(config, values)
  return made


def _compiled(config):
  """(kind, compiled program, () -> its result) of both steps of a model."""
  task = tasks.without_data(config)
  program = setup.build(config, task, jax.local_devices()[:1])
  first = program.first_state()
  train = program.trace_train_step().lower().compile()
  forward = program.lower_eval_step().compile()
  batches = [
    random_batch(config, task, program.mesh, size)
    for size in (config.train.batch_size, config.train.eval_batch_size)
  ]
  state = [first]

  def step():
    # The state is donated.
    state[0], metrics = train(state[0], batches[0])
    return state[0], metrics

  yield 'train', train, step
  yield 'forward', forward, lambda: forward(state[0].params, batches[1])


def random_batch(
  config: ml_collections.ConfigDict,
  task: tasks.Task,
  mesh: jax.sharding.Mesh,
  size: int,
) -> dict[str, jax.Array]:
  """A batch of `size` full rows of random tokens and labels, on the devices."""
  generator = np.random.default_rng(0)
  length = config.data.max_length
  abstract = setup.abstract_batch(mesh, size, length, task.inputs)
  highest = task.model.vocabulary_size
  batch = {}
  for name, like in abstract.items():
    if name.endswith('ids_BT'):
      value = generator.integers(1, highest, like.shape)
    elif name.endswith('lengths_B'):
      value = np.full(like.shape, length)
    elif name == 'label_B':
      value = generator.integers(0, task.dataset.num_classes, like.shape)
    else:
      value = np.ones(like.shape) if name == 'weight_B' else np.arange(size)
    batch[name] = value.astype(like.dtype)
  return sharding.to_devices(mesh, batch, size)


def _memory() -> int:
  """Bytes of memory of the first device."""
  stats = jax.local_devices()[0].memory_stats() or {}
  pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return stats.get('bytes_limit', pages)
