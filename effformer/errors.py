"""What can go wrong because of the user's input, each with its exit code.

A message has at most five lines: what is wrong, where, what to do. `main`
prints it without a traceback (unless --debug) and exits with `exit_code`.
"""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
  """Base of all errors that a user can mend; never raised itself."""

  exit_code = 1


class ConfigError(UserError):
  """A flag, config file, key or value that cannot be used."""

  exit_code = 2


class DataError(UserError):
  """Data that is missing, damaged or not in the documented form."""

  exit_code = 3


class CheckpointError(UserError):
  """A run folder or checkpoint that cannot be written, read or trusted."""

  exit_code = 4


class NonFiniteError(UserError):
  """A loss or gradient that is NaN or infinite."""

  exit_code = 5


class Preempted(BaseException):
  """The run was asked to stop (SIGTERM, SIGINT or SIGUSR1).

  Not a `UserError`, and not an `Exception`, so that no handler on the way up
  takes it for a failure.
  """

  exit_code = 143


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
  """What mechanisms say of sizes and settings here is the user's to mend.

  Raises:
    ConfigError: `what`, with the reason of a ValueError (sizes, settings) or
      NotImplementedError (capabilities) of this context.
  """
  try:
    yield
  except (ValueError, NotImplementedError) as error:
    raise ConfigError(f'{what}: {str(error).splitlines()[0]}') from error
