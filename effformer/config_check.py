"""What a config may hold: its keys, their types, values and combinations.

Whatever is wrong is refused with a sentence that names key and value and one
that says what to do. `schema` is always the module `configs.common`.
"""

import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import ml_collections

from effformer import config_compress, config_layers
from effformer.config_task import check_task
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
  config_compress.check(config)
  model = config.model
  if model.position == 'sinusoidal' and model.width % 2:
    refuse(
      f'model.width={model.width} is odd, but model.position=sinusoidal '
      'needs an even one',
      f'use for example {FLAG}model.width={model.width + 1}',
    )
  if model.reversible:
    _check_reversible(model)
  check_task(config, schema)
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
  if step_fact := config_compress.fact_of(key):
    fact, facts = step_fact, config_compress.facts(settings)
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
  is_section = any(k.startswith(f'{key}.') for k in plain)
  if is_section or key in ('model.layers', 'compress.steps'):
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
  """The keys of the layer or step that a key like model.layers.0.XYZ means."""
  index = re.match(r'(.*?\.\d+\.)', key)
  return [f'{index[1]}{f}' for f in facts] if index else []


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
