"""Official archives: where they come from, and reading them without harm.

An archive is downloaded once, checked by its SHA-256, and read as a stream:
nothing is unpacked to disk. One with links, devices, names that leave its
folder or files of implausible size is refused as a whole.
"""

import dataclasses
import hashlib
import http.client
import os
import pathlib
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator

from effformer.errors import DataError

_TIMEOUT_SECONDS = 10
_BLOCK_BYTES = 1 << 20


@dataclasses.dataclass
class Archive:
  """A .tar.gz file that somebody publishes.

  Attributes:
    title: what it is, for messages.
    url: from where it can be had.
    sha256: of the file.
    num_bytes: of the file.
    max_member_bytes, max_total_bytes, max_members: of what it holds; more is
      taken for an attack.
  """

  title: str
  url: str
  sha256: str
  num_bytes: int
  max_member_bytes: int = 1 << 28
  max_total_bytes: int = 1 << 30
  max_members: int = 200_000

  @property
  def name(self) -> str:
    """The name of the file."""
    return self.url.rpartition('/')[2]

  def bad(self, path: pathlib.Path, reason: str) -> DataError:
    """The error that `path` is not this archive."""
    return DataError(
      f'not the official {self.title} archive: {path}\n{reason}.\n'
      f'Delete it, and download {self.url} again.'
    )

  def check(self, path: pathlib.Path) -> None:
    """Raises DataError unless `path` is the archive, byte for byte."""
    digest = hashlib.sha256()
    try:
      with open(path, 'rb') as file:
        while block := file.read(_BLOCK_BYTES):
          digest.update(block)
    except OSError as error:
      raise self.bad(path, f'cannot be read ({error})') from error
    if digest.hexdigest() != self.sha256:
      raise self.bad(
        path, f'has SHA-256 {digest.hexdigest()}, not {self.sha256}'
      )

  def download(self, folder: pathlib.Path) -> pathlib.Path:
    """Downloads and checks the archive; `folder` holds it afterwards.

    Raises:
      DataError: no connection within ten seconds, or not the archive.
    """
    target = folder / self.name
    if target.exists():
      self.check(target)
      return target
    # Of this process alone: another one may download at the same time.
    part = folder / f'{self.name}.{os.getpid()}.part'
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise DataError(f'cannot write to {folder}: {error}') from error
    try:
      with (
        urllib.request.urlopen(self.url, timeout=_TIMEOUT_SECONDS) as response,
        open(part, 'wb') as file,
      ):
        num_bytes = 0
        while block := response.read(_BLOCK_BYTES):
          num_bytes += len(block)
          if num_bytes > self.num_bytes:
            raise DataError(
              f'{self.url} sends more than {self.num_bytes} bytes.'
            )
          file.write(block)
      self.check(part)
      part.rename(target)
    except (OSError, http.client.HTTPException) as error:
      raise DataError(f'cannot download {self.url}: {error}') from error
    finally:
      part.unlink(missing_ok=True)
    return target

  def members(
    self, path: pathlib.Path, max_bytes: int
  ) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of up to `max_bytes`, in order.

    Larger files are named with their first bytes cut to `max_bytes` + 1, so
    that a reader that needs one of them sees that it is too long.

    Raises:
      DataError: not a readable archive, or unsafe.
    """
    try:
      total = 0
      with tarfile.open(path, 'r|gz') as archive:
        for count, member in enumerate(archive):
          total += member.size
          self._check_member(path, member, count, total)
          if member.isfile():
            content = archive.extractfile(member).read(max_bytes + 1)
            yield member.name, content
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
      raise self.bad(path, f'cannot be read ({error})') from error

  def _check_member(self, path, member: tarfile.TarInfo, count, total):
    name = member.name
    if name.startswith('/') or '..' in name.split('/') or '\\' in name:
      raise self.bad(path, f'holds a file named {name[:80]!r}')
    if not (member.isfile() or member.isdir()):
      raise self.bad(path, f'holds a link or device {name[:80]!r}')
    if member.size > self.max_member_bytes or total > self.max_total_bytes:
      raise self.bad(path, f'grows implausibly large at {name[:80]!r}')
    if count >= self.max_members:
      raise self.bad(path, f'holds more than {self.max_members} files')
