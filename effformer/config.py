"""Reading and explaining a config; what it may hold: `config_check`.

A config file is Python that gives `get_config(arg)` and builds on
`configs.common`. It is found by path, so any folder will do. What is wrong
with it or with the flags is found here, before anything is compiled.
"""

import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import ml_collections

from effformer import errors
from effformer.config_check import (
  FLAG,
  check,
  closest,
  default_of,
  hint,
  leaves,
  mechanism_of,
  read_value,
  refuse,
)

__all__ = [
  'Tracked',
  'check',
  'explain',
  'load',
  'split_flags',
  'to_json_dict',
  'tracked',
]

# Keys that only name what the argument chose, and how the argument says it.
_CHOSEN = {'preset': 'preset=repo', 'quick': 'quick', 'mixer.name': 'local'}


def load(
  argument: str, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """The config that a command line asks for, checked and locked.

  Args:
    argument: value of --config: `FILE.py` or `FILE.py:ARGUMENT`.
    overrides: of --config.KEY=VALUE, as ['KEY=VALUE', ...] (with or without
      the flag's name in front) or {KEY: VALUE}; text is read by the key's
      type, other values must have it.

  Returns:
    The config, and the overridden keys in the order given.

  Raises:
    ConfigError: anything that cannot be used.
  """
  path, found, arg = argument.partition('.py:')
  module = _import_file(pathlib.Path(f'{path}.py' if found else path))
  config = _get_config(module, arg, argument)
  given = {}
  for key, value in _pairs(overrides):
    if key in given:
      refuse(f'{FLAG}{key}={value} is given a second time', 'leave one out')
    given[key] = value
  try:
    for key, value in given.items():
      _override(config, key, value, module.common)
    check(config, module.common)
  except errors.ConfigError as error:
    place = f'In the config of --config={argument}.'
    raise errors.ConfigError(f'{error}\n{place}') from None
  return config.lock(), list(given)


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
    for key, value in leaves(_untracked(config))
  ]


def to_json_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as nested dicts that JSON gives back unchanged."""
  return {
    key: to_json_dict(value)
    if isinstance(value, ml_collections.ConfigDict)
    else list(value)
    if isinstance(value, tuple)
    else value
    for key, value in sorted(_untracked(config).items())
  }


class Tracked:
  """A view of a config that records which keys are read.

  It is read like the ConfigDict: by attribute, by item, `get`, `items`, `**`.
  `explain` and `to_json_dict` do not count as reading.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    prefix: str = '',
    read: set[str] | None = None,
  ):
    self._config, self._prefix = config, prefix
    self._read = set() if read is None else read

  def unread(self) -> list[str]:
    """Keys of this section that hold a value nobody has read, sorted."""
    keys = [key for key, _ in leaves(self._config, self._prefix)]
    return [key for key in keys if key not in self._read]

  def __getitem__(self, name: str) -> Any:
    value, key = self._config[name], f'{self._prefix}{name}'
    if isinstance(value, ml_collections.ConfigDict):
      return Tracked(value, f'{key}.', self._read)
    self._read.add(key)
    return value

  def __getattr__(self, name: str) -> Any:
    # Underscored names are asked for by copy and pickle before __init__.
    if name.startswith('_') or name not in self._config:
      raise AttributeError(f'no key {name!r}')
    return self[name]

  def __contains__(self, name: str) -> bool:
    return name in self._config

  def __iter__(self) -> Iterator[str]:
    return iter(self._config)

  def __len__(self) -> int:
    return len(self._config)

  def keys(self) -> list[str]:
    return list(self._config.keys())

  def values(self) -> list[Any]:
    return [self[name] for name in self]

  def items(self) -> list[tuple[str, Any]]:
    return [(name, self[name]) for name in self]

  def get(self, name: str, default: Any = None) -> Any:
    return self[name] if name in self._config else default

  def to_dict(self) -> dict[str, Any]:
    return {
      name: value.to_dict() if isinstance(value, Tracked) else value
      for name, value in self.items()
    }


def tracked(config: ml_collections.ConfigDict) -> Tracked:
  """A view of `config` whose `unread()` lists what nobody has read."""
  return Tracked(config)


def _untracked(config) -> ml_collections.ConfigDict:
  return config._config if isinstance(config, Tracked) else config


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


def _override(config, key: str, value: Any, schema: ModuleType) -> None:
  if key in _CHOSEN:
    refuse(
      f'{FLAG}{key}={value} would change a name, not what it stands for',
      f'choose it in the argument, --config=FILE.py:{_CHOSEN[key]}',
    )
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
