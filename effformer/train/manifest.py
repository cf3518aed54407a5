"""The manifest of a folder: what every file in it must hold.

Orbax returns damaged array data without a word, so each checkpoint carries
`manifest.json` with the size and SHA-256 of every other file in its folder.
The manifest also holds its own checksum and is compared with its canonical
text, so that one changed bit anywhere in the folder is found.
"""

import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
from typing import Any

from effformer import durable

NAME = 'manifest.json'


class DamagedError(Exception):
  """A file of the folder is not what the manifest says; names the file."""


def write(folder: pathlib.Path, body: dict[str, Any]) -> None:
  """Hashes and syncs all files below the folder and writes its manifest.

  Args:
    folder: complete, and written by nobody any more.
    body: JSON values to keep with the files, without the key 'files'.

  Raises:
    OSError: a file cannot be read, or not be forced to the disk.
  """
  files = {}
  # The disk writes one file while the processor hashes the next.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    syncs = []
    for name in _list_files(folder):
      syncs.append(pool.submit(durable.sync, folder / name))
      size = (folder / name).stat().st_size
      files[name] = {'size': size, 'sha256': _digest(folder / name)}
    for done in syncs:
      done.result()
  durable.write_new(folder / NAME, _encode({**body, 'files': files}))
  for parent, _, _ in os.walk(folder):
    durable.sync(parent)


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the body and its 'files', proven to be as they were written.

  Raises:
    DamagedError: the manifest is missing or changed.
    OSError: the manifest cannot be read for a reason that is no damage.
  """
  path = folder / NAME
  if not path.is_file():
    raise DamagedError(f'{NAME} is missing')
  try:
    data = _reading(path, path.read_bytes)
    body = json.loads(data)
    body.pop('sha256')
    is_whole = _encode(body) == data
  except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
    is_whole = False
  if not is_whole:
    raise DamagedError(f'{NAME} was changed')
  return body


def verify(folder: pathlib.Path) -> dict[str, Any]:
  """Returns `read(folder)` after comparing every file with it.

  Raises:
    DamagedError: a file is missing, extra, of another size or changed.
    OSError: a file cannot be read for a reason that is no damage.
  """
  body = read(folder)
  found = set(_list_files(folder))
  for name in sorted(found - set(body['files'])):
    raise DamagedError(f'{name} does not belong there')
  for name, facts in body['files'].items():
    path = folder / name
    if name not in found:
      raise DamagedError(f'{name} is missing')
    size = path.stat().st_size
    if size != facts['size']:
      raise DamagedError(f'{name} has {size} bytes, not {facts["size"]}')
    if _reading(path, lambda path=path: _digest(path)) != facts['sha256']:
      raise DamagedError(f'{name} was changed')
  return body


def _list_files(folder):
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if (path.is_symlink() or not path.is_dir()) and path != folder / NAME
  )


def _digest(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _encode(body):
  text = durable.dumps(body, indent=1)
  checksum = hashlib.sha256(text.encode()).hexdigest()
  return (durable.dumps({'sha256': checksum, **body}, indent=1)).encode()


def _reading(path, read_it):
  """Calls `read_it`; an unreadable sector is damage, a lost right is not."""
  try:
    return read_it()
  except OSError as error:
    if error.errno == errno.EIO:
      raise DamagedError(f'{path.name} cannot be read from the disk') from error
    raise
