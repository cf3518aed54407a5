"""What a run says while it goes: a bar on a terminal, plain lines elsewhere."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

PLAIN_EVERY_SECONDS = 10.0
HEARTBEAT_SECONDS = 10.0


@dataclasses.dataclass
class Clock:
  """Where the time of a run goes, in seconds; compilation is kept apart.

  `steps` counts the steps that `train` covers; `trained` and `evaluated` count
  examples.
  """

  train: float = 0.0
  waiting: float = 0.0
  evaluation: float = 0.0
  saving: float = 0.0
  compilation: float = 0.0
  steps: int = 0
  trained: int = 0
  evaluated: int = 0

  def steps_per_second(self) -> float:
    return self.steps / self.train if self.train else 0.0

  def waiting_share(self) -> float:
    """Share of the training time spent waiting for data."""
    return self.waiting / self.train if self.train else 0.0

  def remaining(self, steps: int, examples: int) -> float | None:
    """Seconds to go for so many steps and evaluated examples."""
    if not self.steps:
      return None
    per_step = self.train / self.steps
    if self.evaluated:
      per_example = self.evaluation / self.evaluated
    else:
      # Before the first evaluation: a forward pass is a third of a step.
      per_example = self.train / max(self.trained, 1) / 3
    return steps * per_step + examples * per_example


def duration(seconds: float | None) -> str:
  """`65.0` -> `1m05s`."""
  if seconds is None:
    return '?'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days}d{hours:02d}h'
  if hours:
    return f'{hours}h{minutes:02d}m'
  return f'{minutes}m{rest:02d}s' if minutes else f'{rest}s'


class Screen:
  """Prints for people; silent on all processes but the first.

  Attributes:
    console: where to print; a terminal gets a progress bar.
  """

  def __init__(
    self, console: rich.console.Console | None = None, *, quiet: bool = False
  ):
    self.console = console or rich.console.Console(
      file=sys.stdout, highlight=False, soft_wrap=True, markup=False
    )
    self._quiet = quiet
    self._bar: rich.progress.Progress | None = None
    self._last_line = -PLAIN_EVERY_SECONDS

  def say(self, *lines: str) -> None:
    """Prints whole lines, above the bar if there is one."""
    if not self._quiet:
      for line in lines:
        self.console.print(line)
      self.console.file.flush()

  @contextlib.contextmanager
  def heartbeat(
    self, what: str, note: Callable[[float], str] = duration
  ) -> Iterator[None]:
    """Says what begins, and every ten seconds that it is still going.

    `note` makes the end of these lines from the seconds so far.
    """
    start, done = time.monotonic(), threading.Event()
    self.say(f'{what} ...')

    def beat() -> None:
      while not done.wait(HEARTBEAT_SECONDS):
        self.say(f'{what} ... {note(time.monotonic() - start)}')

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()

  @contextlib.contextmanager
  def progress(self, done: int, total: int) -> Iterator[None]:
    """A bar over the steps of a run; no bar without a terminal."""
    if self._quiet or not self.console.is_terminal:
      yield
      return
    columns = (
      rich.progress.TextColumn('step'),
      rich.progress.MofNCompleteColumn(),
      rich.progress.BarColumn(),
      rich.progress.TextColumn('{task.description}'),
    )
    with rich.progress.Progress(*columns, console=self.console) as bar:
      bar.add_task('first step', completed=done, total=total)
      self._bar = bar
      try:
        yield
      finally:
        self._bar = None

  def tick(self, text: str) -> None:
    """Says how something long goes: on the bar, or every ten seconds."""
    if self._quiet:
      return
    if self._bar is not None:
      self._bar.update(0, description=text)
    elif time.monotonic() - self._last_line >= PLAIN_EVERY_SECONDS:
      self._last_line = time.monotonic()
      self.say(text)

  def step(
    self, step: int, total: int, metrics: dict, clock: Clock, eta: float | None
  ) -> None:
    """Reports a step; without a terminal at most a line every ten seconds."""
    if self._quiet:
      return
    # What a task has of a batch: some measures are of whole splits.
    some = ''.join(
      f'{shown} {metrics[name]:.3f}  '
      for name, shown in (('bits', 'bits'), ('accuracy', 'acc'))
      if name in metrics
    )
    text = (
      f'loss {metrics["loss"]:.4f}  {some}'
      f'lr {metrics["learning_rate"]:.2e}  '
      f'{clock.steps_per_second():.3g} steps/s  '
      f'waiting {100 * clock.waiting_share():.1f}%  ETA {duration(eta)}'
    )
    if self._bar is not None:
      self._bar.update(0, completed=step, description=text)
      return
    if step == total:
      self._last_line = -PLAIN_EVERY_SECONDS
    self.tick(f'step {step}/{total} ({100 * step / total:.0f}%)  {text}')
