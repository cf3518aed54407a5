"""What people see: how often, how much, and how long it will take."""

import io
import time

import pytest
import rich.console

from effformer.train import screen

METRICS = {'loss': 1.25, 'accuracy': 0.5, 'learning_rate': 1e-3}


def make(is_terminal=False, quiet=False):
  console = rich.console.Console(
    file=io.StringIO(),
    force_terminal=is_terminal,
    color_system=None,
    width=120,
    markup=False,
    highlight=False,
    soft_wrap=not is_terminal,
  )
  return screen.Screen(console, quiet=quiet)


def printed(shown):
  return shown.console.file.getvalue()


@pytest.fixture
def clock(monkeypatch):
  """A list whose one element is the time of time.monotonic()."""
  now = [1000.0]
  monkeypatch.setattr(screen.time, 'monotonic', lambda: now[0])
  return now


def run_steps(shown, clock, total, seconds):
  """Takes `total` steps of so many seconds; returns the steps in lines."""
  for step in range(1, total + 1):
    clock[0] += seconds
    shown.step(step, total, METRICS, screen.Clock(), None)
  lines = printed(shown).splitlines()
  return [int(line.split()[1].partition('/')[0]) for line in lines]


@pytest.mark.parametrize(
  ('total', 'seconds', 'expected'),
  [
    (25, 1.0, [1, 11, 21, 25]),
    (5, 0.001, [1, 5]),
    (3, 60.0, [1, 2, 3]),
    (1, 1.0, [1]),
    (21, 1.0, [1, 11, 21]),
    (5, 4.0, [1, 4, 5]),
  ],
)
def test_a_line_every_ten_seconds_and_at_both_ends(
  clock, total, seconds, expected
):
  assert run_steps(make(), clock, total, seconds) == expected


def test_the_first_step_is_shown_just_after_the_machine_started(clock):
  clock[0] = 0.5
  assert run_steps(make(), clock, 2, 0.1) == [1, 2]


def test_a_line_holds_what_counts(clock):
  shown = make()
  times = screen.Clock(train=8.0, waiting=1.0, steps=4)
  shown.step(4, 16, METRICS, times, 125.0)
  line = printed(shown)
  for words in (
    'step 4/16 (25%)',
    'loss 1.2500',
    'acc 0.500',
    'lr 1.00e-03',
    '0.5 steps/s',
    'waiting 12.5%',
    'ETA 2m05s',
  ):
    assert words in line, words


def test_a_line_holds_the_measures_that_a_step_has(clock):
  values = {'loss': 1.25, 'learning_rate': 1e-3}
  lines = []
  for more in ({}, {'accuracy': 0.5}, {'accuracy': 0.5, 'bits': 2.0}):
    shown = make()
    shown.step(1, 9, {**values, **more}, screen.Clock(), None)
    lines.append(printed(shown).split('  ')[1:-3])
  assert lines == [
    ['loss 1.2500', 'lr 1.00e-03'],
    ['loss 1.2500', 'acc 0.500', 'lr 1.00e-03'],
    ['loss 1.2500', 'bits 2.000', 'acc 0.500', 'lr 1.00e-03'],
  ]


def test_what_takes_long_is_told_as_rarely_as_steps(clock):
  shown = make()
  for done in range(25):
    shown.tick(f'evaluating: {done}')
    clock[0] += 1.0
  assert printed(shown).splitlines() == [
    'evaluating: 0',
    'evaluating: 10',
    'evaluating: 20',
  ]


def wait_for(condition):
  end = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < end, 'nothing came in ten seconds'
    time.sleep(0.002)


def test_a_heartbeat_says_that_it_is_going_until_it_ends(monkeypatch):
  monkeypatch.setattr(screen, 'HEARTBEAT_SECONDS', 0.01)
  shown = make()
  seconds_seen = []

  def note(seconds):
    seconds_seen.append(seconds)
    return f'beat {len(seconds_seen)}'

  with shown.heartbeat('compiling', note):
    assert printed(shown).startswith('compiling ...\n')
    wait_for(lambda: 'compiling ... beat 2\n' in printed(shown))
  end = printed(shown)
  time.sleep(0.05)
  assert printed(shown) == end
  assert 0.01 <= seconds_seen[0] < seconds_seen[1] < 10


def test_a_heartbeat_ends_with_an_error_too(monkeypatch):
  monkeypatch.setattr(screen, 'HEARTBEAT_SECONDS', 0.01)
  shown = make()
  with pytest.raises(RuntimeError), shown.heartbeat('compiling'):
    raise RuntimeError
  end = printed(shown)
  time.sleep(0.05)
  assert printed(shown) == end == 'compiling ...\n'


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (None, '?'),
    (0.0, '0s'),
    (59.4, '59s'),
    (59.6, '1m00s'),
    (65.0, '1m05s'),
    (3599.7, '1h00m'),
    (7260.0, '2h01m'),
    (86_400.0, '1d00h'),
    (2 * 86_400.0 + 5 * 3600.0, '2d05h'),
  ],
)
def test_durations(seconds, text):
  assert screen.duration(seconds) == text


def test_what_remains_is_steps_and_evaluations():
  times = screen.Clock()
  assert times.remaining(10, 100) is None
  assert times.steps_per_second() == times.waiting_share() == 0.0
  times.train, times.steps, times.trained = 12.0, 4, 16
  assert times.steps_per_second() == pytest.approx(1 / 3)
  times.evaluation, times.evaluated = 5.0, 50
  assert times.remaining(10, 100) == pytest.approx(10 * 3.0 + 100 * 0.1)
  assert times.remaining(0, 0) == 0.0


def test_before_the_first_evaluation_its_examples_cost_a_third_of_a_step():
  times = screen.Clock(train=12.0, steps=4, trained=16)
  assert times.remaining(10, 8) == pytest.approx(10 * 3.0 + 8 * 12 / 16 / 3)


def test_compilation_and_saving_are_no_part_of_the_rate():
  times = screen.Clock(train=10.0, steps=5, compilation=99.0, saving=99.0)
  assert times.steps_per_second() == 0.5


@pytest.mark.parametrize('is_terminal', [False, True])
def test_a_quiet_screen_prints_nothing(clock, is_terminal):
  shown = make(is_terminal, quiet=True)
  with shown.heartbeat('compiling'), shown.progress(0, 2):
    shown.say('words')
    shown.tick('evaluating')
    shown.step(1, 2, METRICS, screen.Clock(), None)
    shown.step(2, 2, METRICS, screen.Clock(), None)
  assert printed(shown) == ''


def test_a_terminal_has_a_bar_and_no_step_lines():
  shown = make(is_terminal=True)
  with shown.progress(2, 9):
    shown.tick('evaluating validation')
    # The bar is drawn again ten times a second.
    wait_for(lambda: 'evaluating validation' in printed(shown))
    shown.say('a line above the bar')
    for step in range(3, 10):
      shown.step(step, 9, METRICS, screen.Clock(), 61.0)
  output = printed(shown)
  assert '9/9' in output
  assert '━' in output
  assert 'a line above the bar\n' in output
  assert 'loss 1.2500' in output
  assert '(100%)' not in output


def test_after_the_bar_lines_come_again():
  shown = make(is_terminal=True)
  with shown.progress(0, 3):
    pass
  shown.tick('testing')
  assert printed(shown).endswith('testing\n')


def test_no_bar_without_a_terminal(clock):
  shown = make()
  with shown.progress(0, 3):
    shown.step(1, 3, METRICS, screen.Clock(), 61.0)
  assert printed(shown).startswith('step 1/3 (33%)')
  assert printed(shown).count('\n') == 1
