"""A tiny run on generated text: config, data, task, stops, screen."""

import io
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterable
from typing import Any

import ml_collections
import rich.console

from configs import common
from effformer import data, errors, tasks
from effformer.data import dataset as dataset_lib
from effformer.models import build
from effformer.tasks import classification
from effformer.train import preemption, screen, session

LENGTH = 16
WORDS = (b'good', b'bad', b'the', b'film')


def tiny_config(mechanism='linear', **keys) -> ml_collections.ConfigDict:
  """A config of seconds; `keys` are dotted names with __ for the dot."""
  config = common.base(common.Choice(mechanism, 'modern', True))
  with config.unlocked():
    config.task = 'text'
  config.update_from_flattened_dict(
    {
      'model.num_layers': 1,
      'model.width': 12,
      'model.num_heads': 3,
      'model.mlp_width': 10,
      'model.dropout': 0.1,
      'data.max_length': LENGTH,
      'data.num_threads': 0,
      'train.num_steps': 12,
      'train.batch_size': 4,
      'train.eval_batch_size': 4,
      'train.learning_rate': 1e-2,
      'train.warmup_steps': 2,
      'train.eval_every_steps': 4,
      'train.checkpoint_every_steps': 3,
      'train.log_every_steps': 1,
      **{key.replace('__', '.'): value for key, value in keys.items()},
    }
  )
  return config.lock()


def examples(count: int, seed: int) -> dataset_lib.MemorySource:
  generator = random.Random(seed)
  rows = []
  for index in range(count):
    words = generator.choices(WORDS, k=generator.randint(1, 4))
    label = int(words.count(b'good') > words.count(b'bad'))
    rows.append(
      {'text': b' '.join(words), 'label': label, 'id': f'{seed}:{index}'}
    )
  return dataset_lib.MemorySource(rows)


def write_rows(path: pathlib.Path, rows: Iterable[dict]) -> str:
  """Writes one JSON object a line; the path, as a config has it."""
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def write_examples(folder: pathlib.Path, **counts: int) -> dict[str, str]:
  """Writes so many examples a split; the keys of `tiny_config` for them."""
  keys = {}
  for seed, (split, count) in enumerate(counts.items()):
    source = examples(count, seed)
    rows = (
      {'text': e['text'].decode(), 'label': e['label']}
      for e in (source[i] for i in range(count))
    )
    keys[f'data__{split}'] = write_rows(folder / f'{split}.jsonl', rows)
  return keys


def tiny_dataset() -> data.Dataset:
  splits = {
    'train': examples(20, 0),
    'validation': examples(10, 1),
    'test': examples(9, 2),
  }
  return data.Dataset(
    name='tiny',
    stand_in=False,
    origin='generated for a test',
    notes=(),
    num_classes=2,
    label_names=(),
    splits=splits,
    fingerprints={name: 'none' for name in splits},
  )


def tiny_task(config: ml_collections.ConfigDict) -> tasks.Task:
  dataset = tiny_dataset()
  model = build.sequence_classifier(config, 257, 2)
  return classification.make(
    'text', dataset, data.ByteTokenizer().encode, model, LENGTH, dict
  )


class StopAt:
  """A stop that is asked for when the loop reaches one of the steps."""

  def __init__(self, *steps: int):
    self._steps = steps
    self.requested = False

  def agree(self, step: int) -> bool:
    self.requested = step in self._steps
    return self.requested


class StopAfter(preemption.Stop):
  """A stop that is asked for at the n-th question."""

  def __init__(self, questions: int):
    super().__init__()
    self._questions = questions

  def agree(self, step: int) -> bool:
    self._questions -= 1
    if not self._questions:
      self._requested, self._name = True, 'a test'
    return self._requested


def again_and_again(
  start: Callable[[preemption.Stop], Any], questions: int
) -> Any:
  """What `start` gives in the end, stopped each time at the n-th question."""
  for _ in range(40):
    try:
      return start(StopAfter(questions))
    except errors.Preempted:
      pass
  raise AssertionError('it never came to its end')


def quiet_screen() -> screen.Screen:
  console = rich.console.Console(
    file=io.StringIO(), markup=False, soft_wrap=True, highlight=False
  )
  return screen.Screen(console)


def train(
  config: ml_collections.ConfigDict,
  folder: str | os.PathLike,
  stop: preemption.Stop | None = None,
  **values: Any,
) -> tuple[dict[str, Any], str]:
  """The result of `session.train`, and what was printed."""
  console = quiet_screen()
  result = session.train(
    config, str(folder), stop or preemption.Stop(), console, **values
  )
  return result, console.console.file.getvalue()
