"""What a run says of itself before its first step."""

import jax
import ml_collections

from effformer.tasks.task import Task
from effformer.train import identity, result, setup, sharding, state


def lines(
  config: ml_collections.ConfigDict, task: Task, program: setup.Program
) -> list[str]:
  """What is about to run, on what, with what."""
  train, size = config.train, len(task.dataset.splits['train'])
  shape = dict(zip(sharding.AXES, program.mesh.devices.shape, strict=True))
  per_device = train.batch_size // program.mesh.size
  parts = train.accumulate_steps
  said = [
    *_stand_in(task),
    ', '.join(f'{n} {version}' for n, version in identity.versions().items()),
    f'devices: {result.device()} in {jax.process_count()} process(es), '
    f'mesh {shape}',
    *_data(task),
    f'parameters of {config.mixer.name}:',
    *state.table(program.abstract.params),
    f'{train.num_steps:,} steps of {train.batch_size} = '
    f'{train.num_steps * train.batch_size / max(size, 1):.1f} epochs; '
    f'{per_device} rows per device and step'
    + (f' in {parts} parts' if parts > 1 else ''),
  ]
  if not config.quick:
    said += [
      'This is the full recipe. For one of minutes add `quick` to the argument '
      'of --config,',
      f'  for example FILE.py:{config.mixer.name},quick',
    ]
  return said


def _stand_in(task: Task) -> list[str]:
  if not task.dataset.stand_in:
    return []
  return [
    '*' * 78,
    'STAND-IN DATA: the real data set could not be had, so this run uses',
    f'generated examples. Its scores say nothing about the task {task.name}.',
    '*' * 78,
  ]


def _data(task: Task) -> list[str]:
  dataset = task.dataset
  return [
    f'data: {dataset.origin}',
    *(f'  {note}' for note in dataset.notes),
    *(
      f'  {split:<10} {len(source):>7,} examples  sha256 '
      f'{dataset.fingerprints[split][:16]}'
      for split, source in dataset.splits.items()
    ),
  ]
