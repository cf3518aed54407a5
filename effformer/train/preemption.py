"""Stopping on a signal: SIGTERM, SIGINT and SIGUSR1 mean "save and leave".

Imports nothing but the standard library, so that the handlers can stand
before the slow imports. A handler runs when Python gets control back: a
signal during a compilation counts as soon as the compilation is over.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from effformer import errors

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
  """The wish to stop, as the signals of this process express it.

  Before and after `loop` there is nothing to save: the first signal raises
  `errors.Preempted` on the spot. Inside `loop` it only sets `requested`, which
  the loop reads at each step and evaluation batch. A second signal ends the
  process at once with exit code 143, whatever it is doing.
  """

  def __init__(self):
    self._requested = False
    self._is_looping = False
    # Several processes leave a loop only by what they agreed on.
    self._is_alone = True
    self._has_agreed = False
    self._name = None
    self._old = {}
    self._hook = None

  @property
  def requested(self) -> bool:
    """Whether a signal has come, to this process or by `agree` to another."""
    return self._requested

  def install(self) -> None:
    """Takes over the signals; only possible in the main thread.

    To be called once more after `jax.distributed.initialize`, which puts its
    own handler in the place of this one.
    """
    if not self._old:
      self._hook = sys.unraisablehook
      sys.unraisablehook = self._unraisable
    for number in SIGNALS:
      old = signal.signal(number, self._handle)
      self._old.setdefault(number, old)

  def uninstall(self) -> None:
    """Gives the signals back to whom they belonged before `install`."""
    if self._hook and sys.unraisablehook == self._unraisable:
      sys.unraisablehook = self._hook
    while self._old:
      number, old = self._old.popitem()
      # None stands for a handler that Python did not install and cannot name.
      signal.signal(number, signal.SIG_DFL if old is None else old)

  @contextlib.contextmanager
  def loop(self) -> Iterator['Stop']:
    """In this context a signal sets `requested` and interrupts nothing.

    Raises:
      errors.Preempted: on leaving, if a stop was requested: whoever saved the
        state in answer to it need not raise, and nobody can forget to.
    """
    self._is_looping = True
    try:
      yield self
    finally:
      self._is_looping = False
    if self._requested and (self._is_alone or self._has_agreed):
      raise errors.Preempted(self._name)

  def agree(self, step: int) -> bool:
    """Returns `requested`, the same in every process.

    With several processes this is a collective: all call it with the same
    step, and one signal to any of them makes all stop there.
    """
    import jax

    if jax.process_count() > 1:
      self._is_alone = False
      import numpy as np
      from jax.experimental import multihost_utils

      here = np.array([self._requested, step], np.int64)
      everywhere = multihost_utils.process_allgather(here)
      assert (everywhere[:, 1] == step).all(), everywhere
      if everywhere[:, 0].any():
        self._requested = self._has_agreed = True
        self._name = self._name or 'a signal to another process'
    return self._requested

  def _unraisable(self, report):
    # Where the handler ran inside a callback of C code, its exception cannot
    # go up; the wish to stop stands in `requested` all the same.
    if not issubclass(report.exc_type, errors.Preempted):
      self._hook(report)

  def _handle(self, number, frame):
    name = signal.Signals(number).name
    if self._name:
      # os.write, not print: print is not re-entrant.
      with contextlib.suppress(OSError):
        os.write(2, f'{name} after {self._name}: leaving at once.\n'.encode())
      os._exit(errors.Preempted.exit_code)
    self._name = name
    self._requested = True
    if not self._is_looping:
      raise errors.Preempted(name)
