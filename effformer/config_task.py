"""What a config may hold: what goes with its task, and what does not.

`schema` is always the module `configs.common`.
"""

import math
from types import ModuleType

import ml_collections

from effformer.config_words import FLAG, refuse


def check_task(config: ml_collections.ConfigDict, schema: ModuleType) -> None:
  """Refuses a model, data or a stage before that are not for the task.

  Raises:
    ConfigError: the first thing that is wrong.
  """
  if config.model.zero_is_padding and config.task not in schema.IMAGE_TASKS:
    refuse(
      f'model.zero_is_padding=true is for {", ".join(schema.IMAGE_TASKS)}, not '
      f'task={config.task!r}',
      f'use {FLAG}model.zero_is_padding=false',
    )
  _check_token_head(config, schema)
  _check_embedding(config)
  _check_patches(config, schema)
  _check_pairs(config, schema)
  _check_subwords(config, schema)
  _check_causal(config, schema)
  if config.model.pretrained and config.pretrain.num_steps:
    refuse(
      f'model.pretrained={config.model.pretrained!r} has been trained before, '
      f'and pretrain.num_steps={config.pretrain.num_steps} would begin anew',
      f'use {FLAG}pretrain.num_steps=0',
    )


def _check_token_head(config: ml_collections.ConfigDict, schema: ModuleType):
  """Only what guesses tokens has a head for them; tied, an embedding."""
  head, front_end = config.model.token_head, config.model.front_end
  if head == 'dense':
    return
  reason = ''
  if config.task not in schema.CAUSAL_TASKS and not config.pretrain.num_steps:
    tasks = ', '.join(schema.CAUSAL_TASKS)
    reason = f'is of models that guess tokens: task {tasks}, or pretrain'
  elif front_end != 'embedding':
    reason = f'is tied to an embedding, and model.front_end={front_end!r}'
  if reason:
    refuse(
      f'model.token_head={head!r} {reason}',
      f'use {FLAG}model.token_head=dense',
    )


def _check_embedding(config: ml_collections.ConfigDict):
  width, front_end = config.model.embedding_width, config.model.front_end
  if width and front_end != 'embedding':
    refuse(
      f'model.embedding_width={width} goes with model.front_end=embedding '
      f'only, not {front_end!r}',
      f'use {FLAG}model.embedding_width=0',
    )


def _check_patches(config: ml_collections.ConfigDict, schema: ModuleType):
  """Patches are of square images, and nothing guesses single pixels of them."""
  model = config.model
  if model.front_end != 'patches':
    for key in ('patch_size', 'channels'):
      if model[key] != 1:
        refuse(
          f'model.{key}={model[key]} goes with model.front_end=patches only',
          f'use {FLAG}model.{key}=1',
        )
    return
  if config.task not in schema.IMAGE_TASKS:
    refuse(
      f'model.front_end=patches is for {", ".join(schema.IMAGE_TASKS)}, not '
      f'task={config.task!r}',
      f'use {FLAG}model.front_end=embedding',
    )
  length, channels = config.data.max_length, model.channels
  side = math.isqrt(length // channels)
  if side * side * channels != length or side % model.patch_size:
    refuse(
      f'data.max_length={length} is no square image of model.channels='
      f'{channels} whose side is a multiple of model.patch_size='
      f'{model.patch_size}',
      f'use for example {FLAG}model.patch_size=1',
    )
  for key, none in (
    ('pretrain.num_steps', 0),
    ('model.zero_is_padding', False),
  ):
    section, name = key.split('.')
    if config[section][name] != none:
      refuse(
        f'{key}={config[section][name]} is about single pixels, and '
        'model.front_end=patches takes them together',
        f'use {FLAG}{key}={str(none).lower()}',
      )


def _check_pairs(config: ml_collections.ConfigDict, schema: ModuleType) -> None:
  """What is for two texts goes with a task of two texts, and only there."""
  has_pairs = config.task in schema.PAIR_TASKS
  pairs = ' or '.join(schema.PAIR_TASKS)
  has_head = config.model.pair_head != 'none'
  if has_pairs != has_head and config.task not in schema.ROW_TASKS:
    refuse(
      f'model.pair_head={config.model.pair_head!r} does not fit '
      f'task={config.task!r}',
      f"'nli' or 'concat' is for {pairs}, 'none' for the others",
    )
  if config.task in schema.ROW_TASKS and config.pretrain.num_steps:
    refuse(
      f'pretrain.num_steps={config.pretrain.num_steps} guesses tokens of '
      f'single texts, and task={config.task!r} has two in a row',
      f'use {FLAG}pretrain.num_steps=0',
    )
  if config.data.documents and not has_pairs:
    refuse(
      f'data.documents={config.data.documents!r} has no use with '
      f'task={config.task!r}',
      f'it holds the texts of own pairs, for {pairs}',
    )


def _check_subwords(config: ml_collections.ConfigDict, schema: ModuleType):
  """Tasks in subwords need a tokenizer, which the others do not read."""
  tasks = ', '.join(schema.SUBWORD_TASKS)
  has_subwords = config.task in schema.SUBWORD_TASKS
  given = config.data.tokenizer
  if has_subwords and not given:
    refuse(
      f'task={config.task!r} reads subwords, and data.tokenizer is empty',
      f'use {FLAG}data.tokenizer=FOLDER of a model, or a tokenizer.json',
    )
  if given and not has_subwords:
    refuse(
      f'data.tokenizer={given!r} has no use with task={config.task!r}',
      f'it is for {tasks}',
    )


def _check_causal(config: ml_collections.ConfigDict, schema: ModuleType):
  """What sees earlier tokens only needs mechanisms that can."""
  is_causal_task = config.task in schema.CAUSAL_TASKS
  if is_causal_task and config.pretrain.num_steps:
    refuse(
      f'pretrain.num_steps={config.pretrain.num_steps} goes with tasks that '
      f'have classes, and task={config.task!r} guesses tokens itself',
      f'use {FLAG}pretrain.num_steps=0',
    )
  is_causal_stage = (
    config.pretrain.num_steps and config.pretrain.objective == 'causal'
  )
  if not is_causal_task and not is_causal_stage:
    return
  if config.model.zero_is_padding:
    refuse(
      'pretrain.objective=causal guesses every pixel, and '
      'model.zero_is_padding=true leaves some out',
      f'use {FLAG}pretrain.objective=masked',
    )
  what = 'pretrain.objective=causal' if is_causal_stage else 'this task'
  mixers = {*schema.members(config.mixer.name)}
  mixers |= {
    row['mixer'] for row in config.model.layers.values() if 'mixer' in row
  }
  for name in sorted(mixers):
    if name not in schema.CAUSAL:
      refuse(
        f'{name} cannot be causal, which {what} needs',
        f'use one of {", ".join(schema.CAUSAL)}'
        + (', or pretrain.objective=masked' if is_causal_stage else ''),
      )
