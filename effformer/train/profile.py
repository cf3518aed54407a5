"""--mode=profile: a trace of a few training steps."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import jax
import ml_collections

from effformer import errors
from effformer.train import (
  loop,
  runs,
  screen,
  setup,
  sharding,
  workdir,
)

# Not traced: the first steps touch memory for the first time.
WARM_UP = 2
STEPS = 5


def profile(
  config: ml_collections.ConfigDict, path: str, console: screen.Screen
) -> pathlib.Path:
  """Traces STEPS training steps from the first state, on the data of the run.

  The trace is for XProf and TensorBoard's profile plugin and, as
  `perfetto_trace.json.gz`, for https://ui.perfetto.dev. A run in the folder
  stays as it is.

  Args:
    config: of the run.
    path: its folder; the trace goes into `profile` in it.
    console: what people see.

  Returns:
    The folder `profile`.

  Raises:
    CheckpointError: the trace cannot be written.
    ConfigError: the run is too short.
  """
  if config.train.num_steps < WARM_UP + STEPS:
    raise errors.ConfigError(
      f'train.num_steps={config.train.num_steps}, but --mode=profile takes '
      f'{WARM_UP + STEPS} steps.\n'
      f'Add --config.train.num_steps={WARM_UP + STEPS}.'
    )
  with workdir.open_workdir(path, locked=jax.process_index() == 0) as folder:
    place = folder / 'profile'
    if jax.process_count() > 1:
      # Processes on one machine would write into each other's folders.
      place = place / str(jax.process_index())
    task, program = runs.build(config, console)
    step = setup.compile_steps(program, console, screen.Clock()).train
    state = program.first_state()
    size, waiting = config.train.batch_size, 0.0
    with loop.batches_after(config, task, program.mesh, 0) as batches:

      def advance(state):
        start = time.monotonic()
        rows = next(batches)
        waited = time.monotonic() - start
        batch = sharding.to_devices(program.mesh, rows, size)
        return *step(state, batch), waited

      with console.heartbeat(f'{WARM_UP} steps before the trace'):
        for _ in range(WARM_UP):
          state, metrics, _ = advance(state)
        jax.block_until_ready((state, metrics))
      with console.heartbeat(f'tracing {STEPS} steps'), _trace(place):
        start = time.monotonic()
        for number in range(STEPS):
          with jax.profiler.StepTraceAnnotation('train', step_num=number):
            state, metrics, waited = advance(state)
            jax.block_until_ready((state, metrics))
            waiting += waited
        seconds = time.monotonic() - start
  console.say(
    f'{STEPS} steps in {seconds:.2f} s while traced, '
    f'{100 * waiting / seconds:.1f}% of it waiting for data',
    f'trace: {place}',
    'open *.json.gz in it at https://ui.perfetto.dev, or: tensorboard '
    f'--logdir={place} (with the package xprof)',
  )
  return place


@contextlib.contextmanager
def _trace(place: pathlib.Path) -> Iterator[None]:
  """Traces what runs in it; CheckpointError where that cannot be written."""

  def refuse(error):
    return errors.CheckpointError(
      f'no trace could be written to {place}: {error}\nGive another --workdir.'
    )

  try:
    jax.profiler.start_trace(str(place), create_perfetto_trace=True)
  except (OSError, RuntimeError, ValueError) as error:
    raise refuse(error) from error
  try:
    yield
  except BaseException:
    with contextlib.suppress(OSError, RuntimeError, ValueError):
      jax.profiler.stop_trace()
    raise
  try:
    jax.profiler.stop_trace()
  except (OSError, RuntimeError, ValueError) as error:
    raise refuse(error) from error
