"""Reading and explaining a config; what it may hold: `config_check`.

A config file is Python that gives `get_config(arg)` and builds on
`configs.common`, or the config.json of a run. It is found by path, so any
folder will do. What is wrong with it or with the flags is found here, before
anything is compiled.
"""

import functools
import importlib
import importlib.util
import json
import operator
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import ml_collections

from effformer import errors
from effformer.config_check import check, default_of, leaves, mechanism_of
from effformer.config_tracked import Tracked, untracked
from effformer.config_words import FLAG, closest, hint, read_value, refuse

__all__ = [
  'changed',
  'check',
  'explain',
  'leaves',
  'load',
  'neutral',
  'split_flags',
  'to_json_dict',
]

# Keys that only name what the argument chose, and how the argument says it.
_CHOSEN = {
  **{'preset': 'preset=repo', 'quick': 'quick', 'mixer.name': 'local'},
  'compress.recipe': 'int8-storage',
}


def load(
  argument: str, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """The config that a command line asks for, checked and locked.

  Args:
    argument: value of --config: `FILE.py`, `FILE.py:ARGUMENT`, or the
      `config.json` of a run.
    overrides: of --config.KEY=VALUE, as ['KEY=VALUE', ...] (with or without
      the flag's name in front) or {KEY: VALUE}; text is read by the key's
      type, other values must have it.

  Returns:
    The config, and the overridden keys in the order given.

  Raises:
    ConfigError: anything that cannot be used.
  """
  path, found, arg = argument.partition('.py:')
  if argument.endswith('.json'):
    config, schema = _stored(pathlib.Path(argument))
  else:
    module = _import_file(pathlib.Path(f'{path}.py' if found else path))
    config, schema = _get_config(module, arg, argument), module.common
  given = {}
  for key, value in _pairs(overrides):
    if key in given:
      refuse(f'{FLAG}{key}={value} is given a second time', 'leave one out')
    given[key] = value
  try:
    before = dict(leaves(config))
    for key, value in given.items():
      _override(config, key, value, schema)
    _note_overridden(config, before, given)
    check(config, schema)
  except errors.ConfigError as error:
    place = f'In the config of --config={argument}.'
    raise errors.ConfigError(f'{error}\n{place}') from None
  return config.lock(), list(given)


def neutral(
  values: Mapping[str, Any], mechanism: str = 'full'
) -> ml_collections.ConfigDict:
  """A locked config of neutral values, other than those that are given.

  It describes a model and no run: it has no task, and is not checked.

  Args:
    values: {'section.key': value}.
    mechanism: name of the mixer.
  """
  schema = _schema()
  return changed(schema.base(schema.Choice(mechanism)), values)


def changed(
  config: ml_collections.ConfigDict | Tracked, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A locked copy of a config with other values: {'section.key': value}."""
  # Not ConfigDict(config), whose sections would be those of `config`.
  copy = untracked(config).copy_and_resolve_references()
  with copy.unlocked():
    for key, value in values.items():
      *sections, name = key.split('.')
      place = functools.reduce(operator.getitem, sections, copy)
      if isinstance(value, Mapping):
        value = ml_collections.ConfigDict(value)
      place[name] = value
  return copy.lock()


def split_flags(argv: Iterable[str]) -> tuple[list[str], list[str]]:
  """Takes the overrides out of a command line.

  Returns:
    'KEY=VALUE' of every --config.KEY=VALUE, and the other words.

  Raises:
    ConfigError: --config.KEY without a value.
  """
  words = list(argv)
  flags = [word for word in words if word.startswith(FLAG)]
  overrides = [f'{key}={value}' for key, value in _pairs(flags)]
  return overrides, [word for word in words if not word.startswith(FLAG)]


def explain(
  config: ml_collections.ConfigDict, overridden: Iterable[str] = ()
) -> list[str]:
  """The final config as lines `KEY = VALUE`, overridden keys marked by `*`."""
  overridden = set(overridden)
  return [
    f'{"*" if key in overridden else " "} {key} = {value!r}'
    for key, value in leaves(untracked(config))
  ]


def to_json_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as nested dicts that JSON gives back unchanged."""
  return {
    key: to_json_dict(value)
    if isinstance(value, ml_collections.ConfigDict)
    else list(value)
    if isinstance(value, tuple)
    else value
    for key, value in sorted(untracked(config).items())
  }


def _import_file(path: pathlib.Path) -> ModuleType:
  start = 'start from a copy of configs/lra_text.py'
  if not path.is_file():
    guess = closest(path.stem, {p.stem for p in path.parent.glob('*.py')})
    near = f'did you mean {path.parent / guess}.py? ' if guess else ''
    refuse(
      f'--config={path} is no file',
      f'{near}Give FILE.py or FILE.py:MECHANISM,preset=PRESET,quick',
    )
  if path.suffix != '.py':
    refuse(f'--config={path} is no Python file', start)
  name = re.sub(r'\W', '_', f'effformer_config_{path.stem}')
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  # For `from configs import common`, wherever the command is started.
  root = str(path.resolve().parent.parent)
  sys.path.insert(0, root)
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    raise _failure(spec.origin, 'cannot be imported', error) from error
  finally:
    sys.path.remove(root)
  if not callable(getattr(module, 'get_config', None)):
    refuse(f'--config={path} has no function get_config(arg)', start)
  if not isinstance(getattr(module, 'common', None), ModuleType):
    refuse(f'--config={path} does not import configs.common', start)
  return module


def _stored(path: pathlib.Path) -> tuple[ml_collections.ConfigDict, ModuleType]:
  """The config that `to_json_dict` gave, and the module it was made with."""
  try:
    values = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError) as error:
    refuse(
      f'--config={path} cannot be read as the config of a run: {error}',
      'give the config.json of a run folder, or FILE.py',
    )
  if not isinstance(values, dict):
    refuse(f'--config={path} holds no JSON object', 'give that of a run folder')
  schema = _schema()
  sections = set(schema.SECTIONS)
  if not all(isinstance(values.get(name), dict) for name in sections) or any(
    '.' in key for key in _names(values)
  ):
    refuse(
      f'--config={path} is not the config of a run',
      f'it has the sections {", ".join(sorted(sections))}',
    )
  return _with_tuples(ml_collections.ConfigDict(values)), schema


def _schema() -> ModuleType:
  """The module that says what keys there are."""
  # That beside the package, wherever the command is started.
  root = str(pathlib.Path(errors.__file__).resolve().parents[1])
  sys.path.insert(0, root)
  try:
    return importlib.import_module('configs.common')
  finally:
    sys.path.remove(root)


def _names(values: dict[str, Any]) -> Iterator[str]:
  for name, value in values.items():
    yield name
    if isinstance(value, dict):
      yield from _names(value)


def _with_tuples(
  section: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """JSON has lists where configs have tuples."""
  for name, value in list(section.items()):
    if isinstance(value, ml_collections.ConfigDict):
      _with_tuples(value)
    elif isinstance(value, list):
      # A list that is set anew stays one, whatever it is set to.
      del section[name]
      section[name] = tuple(value)
  return section


def _get_config(module, arg: str, argument: str) -> ml_collections.ConfigDict:
  try:
    config = module.get_config(arg)
  except module.common.ArgumentError as error:
    remedy = hint(error.word, error.known) if error.known else ''
    remedy = remedy or 'write it like linear,preset=modern,quick'
    refuse(f'{error.what}, in --config={argument}', remedy)
  except Exception as error:
    path = module.__spec__.origin
    raise _failure(path, 'fails in get_config', error) from error
  if not isinstance(config, ml_collections.ConfigDict):
    refuse(
      f'get_config of --config={argument} returns {type(config).__name__}',
      'return what common.assemble(...) gives',
    )
  return config


def _failure(path: str, what: str, error: Exception) -> errors.ConfigError:
  """The message for an exception out of the config file `path`."""
  row, traceback = getattr(error, 'lineno', 0), error.__traceback__
  while traceback is not None:
    if traceback.tb_frame.f_code.co_filename == path:
      row = traceback.tb_lineno
    traceback = traceback.tb_next
  reason = (str(error).splitlines() or ['no message'])[0]
  return errors.ConfigError(
    f'the config file {what}: {type(error).__name__}: {reason}.\n'
    f'It happened at {path}:{row}.\n'
    'Mend that line; --debug shows the whole traceback.'
  )


def _pairs(overrides) -> Iterator[tuple[str, Any]]:
  if isinstance(overrides, Mapping):
    yield from overrides.items()
    return
  for item in overrides:
    key, equals, value = item.removeprefix(FLAG).partition('=')
    if not equals:
      refuse(f'{FLAG}{key} has no value', f'write {FLAG}{key}=VALUE')
    yield key, value


def _note_overridden(config, before, given) -> None:
  """A run goes by the name of its preset: what is not of it must be told."""
  after = dict(leaves(config))
  own = {key for key in given if before.get(key) != after.get(key)}
  with config.unlocked():
    own |= set(filter(None, config.get('overridden', '').split(',')))
    config.overridden = ','.join(sorted(own))


def _override(config, key: str, value: Any, schema: ModuleType) -> None:
  if key in _CHOSEN:
    refuse(
      f'{FLAG}{key}={value} would change a name, not what it stands for',
      f'choose it in the argument, --config=FILE.py:{_CHOSEN[key]}',
    )
  if key == 'overridden':
    refuse(f'{FLAG}{key}={value}: this key is written, not set', 'leave it out')
  mechanism = mechanism_of(config, schema)
  value = read_value(key, value, default_of(key, mechanism, schema))
  *sections, name = key.split('.')
  with config.unlocked():
    section = config
    for part in sections:
      if part not in section:
        section[part] = ml_collections.ConfigDict()
      section = section[part]
    section[name] = value
