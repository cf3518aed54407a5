"""A config that knows which of its keys were read, to find unused ones."""

from collections.abc import Iterator
from typing import Any

import ml_collections

from effformer.config_check import leaves


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


def untracked(
  config: ml_collections.ConfigDict | Tracked,
) -> ml_collections.ConfigDict:
  """The config itself, of which `config` may be a view."""
  return config._config if isinstance(config, Tracked) else config
