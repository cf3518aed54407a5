"""A run of seconds on generated text, for experiments about the loop itself."""

import json
import os
import pathlib
import random
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write_data(folder: pathlib.Path) -> None:
  """Texts of random words; the label is which of two words occurs more."""
  folder.mkdir(parents=True, exist_ok=True)
  generator = random.Random(0)
  words = ['good', 'bad', 'film', 'the', 'a', 'and', 'it', 'was']
  for split, count in (('train', 200), ('validation', 40), ('test', 40)):
    rows = []
    for _ in range(count):
      text = generator.choices(words, k=generator.randint(5, 30))
      label = int(text.count('good') > text.count('bad'))
      rows.append(json.dumps({'text': ' '.join(text), 'label': label}))
    (folder / f'{split}.jsonl').write_text('\n'.join(rows) + '\n')


def command(workdir: pathlib.Path, data: pathlib.Path, **keys) -> list[str]:
  """The command line of the run; `keys` have __ in place of the dot."""
  settings = {
    'data.train': data / 'train.jsonl',
    'data.validation': data / 'validation.jsonl',
    'data.test': data / 'test.jsonl',
    'data.max_length': 128,
    'train.warmup_steps': 10,
    'train.batch_size': 8,
    'train.eval_batch_size': 16,
    'train.log_every_steps': 1,
    'model.dropout': 0.1,
    **{key.replace('__', '.'): value for key, value in keys.items()},
  }
  return [
    sys.executable,
    '-m',
    'effformer.main',
    f'--config={ROOT}/configs/lra_text.py:linear,quick',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in settings.items()),
  ]


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
  """Starts a command line in the repository, its output captured."""
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def result(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / 'result.json').read_text())


def rows(workdir: pathlib.Path, split: str) -> list[dict]:
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['split'] == split]
