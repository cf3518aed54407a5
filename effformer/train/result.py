"""result.json: what a finished run achieved, with all that qualifies it."""

import pathlib
import subprocess
from typing import Any

import jax

import effformer
from effformer import durable, errors, scores
from effformer.train import identity, loop, state

# What `lines` shows; a file without it was not written by `make`.
SHOWN = (
  *('task', 'mechanism', 'preset', 'quick', 'seed', 'num_params', 'steps'),
  *('stand_in', 'select', 'selected_step', 'validation', 'test', 'floors'),
)


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """The result of a finished run, None if there is none yet.

  Raises:
    CheckpointError: the file is not what `make` gave.
  """
  result = durable.read_json(path)
  if result is not None and not set(SHOWN) <= set(result):
    raise errors.CheckpointError(
      f'{path} is damaged: it is not the result of a run.\n'
      'Delete it: the same command then tests the run again.'
    )
  return result


def commit() -> str | None:
  """The commit of the checkout in use, '-dirty' if tracked files differ.

  None where the code does not run from a git checkout.
  """
  root = pathlib.Path(effformer.__file__).resolve().parent.parent
  if not (root / '.git').exists():
    return None

  def git(*arguments: str) -> str:
    command = ['git', '-C', str(root), *arguments]
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()

  try:
    name = git('rev-parse', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no')
  except (OSError, subprocess.SubprocessError):
    return None
  return f'{name}-dirty' if changed else name


def device() -> str:
  """Kind and number of the devices, such as `cpu x 1`."""
  kind = jax.devices()[0].device_kind
  return f'{kind} x {jax.device_count()}'


def make(
  run: loop.Run,
  final: state.TrainState,
  validation: dict[str, Any],
  test: dict[str, Any],
  floors: dict[str, float],
  cost: dict[str, float | int | None],
) -> dict[str, Any]:
  """The content of result.json.

  Args:
    run: the finished run.
    final: its last state.
    validation: the validation row of the parameters that were tested.
    test: their values on the test split.
    floors: scores of trivial models on the test split.
    cost: of a training step, see `setup.Steps`.
  """
  config, clock = run.config, run.clock
  dataset = run.task.dataset
  return {
    'task': run.task.name,
    'dataset': dataset.name,
    'origin': dataset.origin,
    'notes': list(dataset.notes),
    'stand_in': dataset.stand_in,
    'fingerprints': dict(dataset.fingerprints),
    'mechanism': config.mixer.name,
    'preset': config.preset,
    'quick': config.quick,
    'overridden': config.overridden,
    'seed': config.seed,
    'steps': config.train.num_steps,
    'batch_size': config.train.batch_size,
    'max_length': config.data.max_length,
    'num_params': state.num_params(run.abstract.params),
    'state_sha256': state.digest(final),
    'score': run.task.score,
    'select': config.train.select,
    'selected_step': validation['step'],
    'validation': {
      key: value
      for key, value in validation.items()
      if key not in ('step', 'split')
    },
    'test': test,
    'floors': floors,
    # Of a training step: operations on all devices, bytes on each.
    'cost': cost,
    # Of the last start; null where it had no step left to do.
    'steps_per_second': round(clock.steps_per_second(), 4) or None,
    'seconds_of_last_start': {
      'compilation': round(clock.compilation, 2),
      'train': round(clock.train, 2),
      'waiting_for_data': round(clock.waiting, 2),
      'evaluation': round(clock.evaluation, 2),
      'saving': round(clock.saving, 2),
    },
    'device': device(),
    'versions': identity.versions(),
    'commit': commit(),
  }


def lines(result: dict[str, Any]) -> list[str]:
  """The result for people: the score beside its floors, and what it is."""
  test, validation = result['test'], result['validation']
  score = scores.of_task(result['task'])
  data = 'STAND-IN DATA (not a score)' if result['stand_in'] else 'real data'
  bits, stage, start = [], result.get('pretrain'), result.get('start')
  if 'bits' in test:
    bits = [
      f'test bits a token   {test["bits"]:.4f}  over {test["tokens"]:,} tokens'
    ]
  return [
    *bits,
    f'{f"test {score}":<20}{100 * test[score]:.2f}  of {test["count"]} '
    f'examples, loss {test["loss"]:.4f}; {data}',
    f'{f"validation {score}":<20}{100 * validation[score]:.2f}  of '
    f'{validation["count"]} examples, step {result["selected_step"]} '
    f'({result["select"]})',
    *(
      f'floor               {100 * value:.2f}  {name}'
      for name, value in sorted(result['floors'].items(), key=lambda e: e[1])
    ),
    f'{result["task"]}, {result["mechanism"]}, preset {result["preset"]}'
    f'{", quick" if result["quick"] else ""}, seed {result["seed"]}, '
    f'{result["num_params"]:,} parameters, {result["steps"]} steps',
    *(
      [
        f'pretrained on its own inputs before: {stage["objective"]}, '
        f'{stage["num_steps"]} steps, {stage["validation"]["bits"]:.4f} bits a '
        'guessed token'
      ]
      if stage
      else []
    ),
    *([f'started from {start["origin"]}'] if start else []),
  ]
