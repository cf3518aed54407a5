"""--mode=predict: classes of single examples, or how alike two texts are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from effformer import config as config_lib
from effformer import data, errors, tasks
from effformer.data.dataset import TEXTS, MemorySource
from effformer.data.sentence_pairs import HIGHEST
from effformer.tasks import similarity
from effformer.tasks.task import Task
from effformer.train import (
  identity,
  preemption,
  runs,
  screen,
  setup,
  sharding,
)


def predict(
  config: ml_collections.ConfigDict,
  path: str,
  given: Sequence[str],
  stop: preemption.Stop,
  console: screen.Screen,
) -> list[dict[str, Any]]:
  """Probabilities of classes or scores, by the parameters the test is of.

  Needs the run folder only, not its data; one device does it.

  Args:
    config: of the run.
    path: its folder.
    given: inputs, see `data.read_input`; for pairs two by two.
    stop, console: as in `session.train`.

  Returns:
    For each input (or pair) `input`, `tokens` (of each text, those beyond
    `data.max_length` are not read) and `probabilities`, class -> probability,
    the most probable first; of a task of vectors `cosine` and `score`.

  Raises:
    ConfigError: no input, half a pair, or several processes.
    DataError: an input cannot be read.
    CheckpointError: the folder holds no evaluated run.
  """
  task, params, mesh = trained(config, path, stop, console)
  compute = task.predict or task.embed
  if compute is None:
    raise errors.ConfigError(
      f'{config.task} has no classes to predict.\n'
      'Let it write instead: --mode=generate.'
    )
  compiled = jax.jit(compute)

  def of_rows(rows):
    return compiled(params, sharding.to_devices(mesh, rows, 1))

  return said(task, of_rows, given, config.data.max_length, console)


def said(
  task: Task,
  compute: Callable[[data.Batch], Any],
  given: Sequence[str],
  max_length: int,
  console: screen.Screen,
) -> list[dict[str, Any]]:
  """What `predict` gives, by any function of a batch of one example.

  Args:
    task: of the data.
    compute: batch -> probabilities [1, C], or unit vectors [1, 2, D].
    given: see `predict`.
    max_length: tokens that are read.
    console: what people see.

  Raises:
    ConfigError, DataError: see `predict`.
  """
  examples, found = _read(task, given), []
  with data.eval_batches(
    MemorySource(examples),
    task.encode,
    batch_size=1,
    max_length=max_length,
    num_threads=0,
    encode_pair=task.encode_pair,
  ) as batches:
    for example, rows in zip(examples, batches, strict=True):
      found.append(_outcome(task, example, np.asarray(compute(rows))))
      console.say(*_lines(found[-1], max_length))
  return found


def trained(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
  *,
  adapt: Callable[[Task], Task] | None = None,
) -> tuple[Task, Any, jax.sharding.Mesh]:
  """Task, parameters and mesh of a run, on one device and without its data.

  The parameters are those that the test is of. The folder has to be free, and
  is left as it is but for damaged checkpoints, which are set aside.

  Args:
    config: of the run.
    path: its folder.
    stop, console: as in `session.train`.
    adapt: what the task was made of there, as far as it changes the parameters
      that there are.

  Raises:
    ConfigError: there are several processes.
    CheckpointError: the folder holds no evaluated run.
  """
  if jax.process_count() > 1:
    raise errors.ConfigError('this mode needs one process.\nStart one.')
  with runs.opened(config, path, console, must_exist=True) as folder:
    task = tasks.make(config, identity.known_data(folder, config.task))
    if adapt:
      task = adapt(task)
    alone = config_lib.changed(config, {'mesh.data': 1, 'mesh.fsdp': 1})
    program = setup.build(alone, task, jax.local_devices()[:1])
    run, current = runs.resume(
      alone, task, program, folder, stop, console, is_writer=False
    )
    runs.require_evaluated(run, folder)
    row, params = runs.selected(run, current)
  console.say(f'by the parameters of step {row["step"]}')
  if task.dataset.stand_in:
    console.say('trained on a STAND-IN: generated, not the real data')
  return task, params, program.mesh


def _read(task: Task, given: Sequence[str]) -> list[data.Example]:
  width = task.num_texts
  if not given or len(given) % width:
    raise errors.ConfigError(
      f'--mode=predict of {task.name} takes {width} --input for each example, '
      f'but {len(given)} are given.\n'
      'Write --input once for each text, expression or image file.'
    )
  texts = [data.read_input(task.name, word) for word in given]
  return [
    {
      **dict(zip(TEXTS, texts[at : at + width], strict=False)),
      'label': 0,
      'id': ' and '.join(given[at : at + width]),
    }
    for at in range(0, len(given), width)
  ]


def _outcome(
  task: Task, example: data.Example, computed: np.ndarray
) -> dict[str, Any]:
  texts = [example[name] for name in TEXTS if name in example]
  outcome = {
    'input': example['id'],
    # No token is shorter than a byte.
    'tokens': [len(task.encode(text, len(text))) for text in texts],
  }
  if task.predict is None:
    cosine = float(np.vdot(*computed[0]))
    return {**outcome, 'cosine': cosine, 'score': similarity.in_points(cosine)}
  [probability_C] = computed
  return {
    **outcome,
    'probabilities': {
      task.dataset.classes[c]: float(probability_C[c])
      for c in np.argsort(-probability_C, kind='stable')
    },
  }


def _lines(outcome: dict[str, Any], max_length: int) -> list[str]:
  # Bytes that are no UTF-8 cannot be printed.
  shown = outcome['input'].encode('utf-8', 'backslashreplace').decode()
  shown = shown if len(shown) <= 70 else f'{shown[:67]}...'
  counts = ' and '.join(f'{count:,}' for count in outcome['tokens'])
  cut = max(outcome['tokens']) > max_length
  of = f', of which the first {max_length:,} are read' if cut else ''
  lines = [f'{shown} ({counts} tokens{of})']
  if 'cosine' in outcome:
    cosine, score = outcome['cosine'], outcome['score']
    return [*lines, f'  cosine {cosine:.2f}, score {score:.1f} of {HIGHEST}']
  return lines + [
    f'  {100 * probability:6.2f} %  {name}'
    for name, probability in outcome['probabilities'].items()
  ]
