"""What a config may hold: its keys, their types, values and combinations.

Whatever is wrong is refused with a sentence that names key and value and one
that says what to do. `schema` is always the module `configs.common`.
"""

import math
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import ml_collections

from effformer import config_layers
from effformer.config_words import (
  FLAG,
  TYPES,
  closest,
  hint,
  refuse,
)


def check(config: ml_collections.ConfigDict, schema: ModuleType) -> None:
  """Refuses a config that no run can obey; needs no device and no data.

  Raises:
    ConfigError: the first thing that is wrong.
  """
  _check_keys(config, schema)
  for key, value in leaves(config):
    _check_value(key, value, schema)
  config_layers.check(config, schema)
  model = config.model
  if model.position == 'sinusoidal' and model.width % 2:
    refuse(
      f'model.width={model.width} is odd, but model.position=sinusoidal '
      'needs an even one',
      f'use for example {FLAG}model.width={model.width + 1}',
    )
  if model.reversible:
    _check_reversible(model)
  if model.zero_is_padding and config.task not in schema.IMAGE_TASKS:
    refuse(
      f'model.zero_is_padding=true is for {", ".join(schema.IMAGE_TASKS)}, not '
      f'task={config.task!r}',
      f'use {FLAG}model.zero_is_padding=false',
    )
  _check_token_head(config, schema)
  _check_patches(config, schema)
  _check_pairs(config, schema)
  _check_causal(config, schema)
  if config.mesh.data == config.mesh.fsdp == -1:
    refuse(
      'mesh.data=-1 and mesh.fsdp=-1 both ask for all devices that are left',
      'give one of them a number',
    )
  _check_split(config, 'train.batch_size', 'train.accumulate_steps')
  for axis in ('mesh.data', 'mesh.fsdp'):
    _check_split(config, 'train.batch_size', axis)
    _check_split(config, 'train.eval_batch_size', axis)


def _check_reversible(model: ml_collections.ConfigDict) -> None:
  for key, value, needed in (
    ('norm_order', model.norm_order, 'pre'),
    ('remat', model.remat, False),
    ('layer_drop', model.layer_drop, 0.0),
  ):
    if value != needed:
      needed = str(needed).lower()
      refuse(
        f'model.reversible=true goes with model.{key}={needed} only',
        f'use {FLAG}model.{key}={needed}',
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
  if has_pairs != (config.model.pair_head != 'none'):
    refuse(
      f'model.pair_head={config.model.pair_head!r} does not fit '
      f'task={config.task!r}',
      f"'nli' or 'concat' is for {pairs}, 'none' for the others",
    )
  if config.data.documents and not has_pairs:
    refuse(
      f'data.documents={config.data.documents!r} has no use with '
      f'task={config.task!r}',
      f'it holds the texts of own pairs, for {pairs}',
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


def leaves(
  config: ml_collections.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """(key, value) of every key that holds a value, sorted by key."""
  for name in sorted(config.keys()):
    value = config[name]
    if isinstance(value, ml_collections.ConfigDict):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def default_of(key: str, mechanism: str, schema: ModuleType) -> Any:
  """A value of the type of `key` in a config of `mechanism`.

  Raises:
    ConfigError: there is no such key.
  """
  plain = dict(leaves(schema.base(schema.Choice(mechanism))))
  if key in plain:
    return plain[key]
  settings = {k: v for row in schema.MIXERS.values() for k, v in row.items()}
  facts = {**config_layers.FACTS, **settings}
  fact = config_layers.fact_of(key)
  if fact in facts:
    return facts[fact]
  section, _, name = key.rpartition('.')
  if section == 'mixer' and name in settings:
    owners = [m for m, row in schema.MIXERS.items() if name in row]
    refuse(
      f'mixer.{name} is a setting of {" and ".join(owners)}, but the '
      f'mechanism is {mechanism}',
      f'choose it in the argument, --config=FILE.py:{owners[0]}',
    )
  if key == 'model.layers' or any(k.startswith(f'{key}.') for k in plain):
    refuse(f'{key} is a section of keys', f'set one key, {FLAG}{key}.KEY=VALUE')
  known = {*plain, *_layer_keys(key, facts)}
  names = sorted(
    k.rpartition('.')[2] for k in known if k.rpartition('.')[0] == section
  )
  if not names or not section:
    section, names = '', sorted({k.partition('.')[0] for k in plain})
  guess = closest(key, known)
  refuse(
    f'unknown key {key!r}',
    (f'did you mean {guess!r}? ' if guess else '')
    + f'Known in {section or "a config"}: {", ".join(names)}',
  )


def _layer_keys(key: str, facts: Iterable[str]) -> list[str]:
  """The keys of the layer that a key like model.layers.0.XYZ is about."""
  index = re.search(r'\.(\d+)\.', key)
  return [f'model.layers.{index[1]}.{f}' for f in facts] if index else []


def mechanism_of(config, schema: ModuleType) -> str:
  """`mixer.name`, which decides what other keys there are.

  Raises:
    ConfigError: it is missing, or a member is no row of `schema.MIXERS`.
  """
  name = config.get('mixer', {}).get('name')
  for member in schema.members(str(name)):
    if member not in schema.MIXERS:
      refuse(f'mixer.name={name!r} is unknown', hint(member, schema.MIXERS))
  return name


def _check_keys(config, schema: ModuleType) -> None:
  mechanism = mechanism_of(config, schema)
  expected = dict(leaves(schema.base(schema.Choice(mechanism))))
  given = dict(leaves(config))
  for key, value in given.items():
    if key in expected:
      default = expected[key]
    else:
      default = default_of(key, mechanism, schema)
    if type(value) is not type(default):
      refuse(
        f'{key}={value!r} is not {TYPES[type(default)]}',
        f'give it a value like {default!r}',
      )
  for key in expected:
    if key not in given:
      refuse(
        f'the config has no key {key!r}', 'start from common.assemble(...)'
      )


def _check_value(key: str, value: Any, schema: ModuleType) -> None:
  rule = config_layers.rule_of(key)
  if key == 'mixer.name':
    # Hybrids are no row; `mechanism_of` has looked at their members.
    return
  choices = schema.CHOICES.get(rule)
  if choices and value not in choices:
    refuse(f'{key}={value!r} is unknown', hint(value, choices))
  numbers = schema.RANGES.get(rule)
  if numbers and value not in numbers:
    refuse(f'{key}={value} is out of range', f'it has to be {numbers}')


def _check_split(config, size_key: str, parts_key: str) -> None:
  sizes = dict(leaves(config))
  size, parts = sizes[size_key], sizes[parts_key]
  if size % parts:
    refuse(
      f'{size_key}={size} does not divide into {parts_key}={parts} equal parts',
      f'use a multiple of {parts}, for example {-(-size // parts) * parts}',
    )
