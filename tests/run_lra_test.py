"""The grid of runs: order, slots, failures, signals, the table."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from effformer import errors
from effformer.train import workdir
from experiments import matching, run_lra, table
from experiments.run_lra import Cell, Signals

RESULT = {
  'task': 'text', 'mechanism': 'linear', 'preset': 'modern', 'quick': True,
  'seed': 0, 'steps': 8, 'batch_size': 4, 'max_length': 16, 'num_params': 99,
  'test': {'accuracy': 0.7, 'count': 7},
  'validation': {'accuracy': 0.75, 'count': 9},
  'floors': {'majority': 0.5, 'bag_of_bytes': 0.62},
  'cost': {'products_per_step': 6e9},
  'stand_in': False, 'steps_per_second': 3.0,
  'seconds_of_last_start': {'train': 4.0, 'waiting_for_data': 0.1},
  'device': 'cpu x 1', 'commit': 'abc',
}  # fmt: skip


def cell(name, program, folder):
  return Cell(name, ('-c', program), folder)


def run(cells, slots=1, environment=lambda slot: dict(os.environ)):
  codes = {}
  with Signals() as signals:
    run_lra.run_all(
      cells, slots, signals, lambda c, code: codes.setdefault(c.name, code),
      environment,
    )  # fmt: skip
  return codes, signals


def test_seeds_come_first_and_commands_are_whole():
  options = run_lra.arguments(
    ['--tasks=text,listops', '--mechanisms=linear,local+full', '--seeds=0,1',
     '--quick', '--data=/real', '--workdir=/runs',
     '--set=--config.train.num_steps=3'],
  )  # fmt: skip
  cells = run_lra.grid(options, [])
  assert [c.name for c in cells[:5]] == [
    'text-linear-0', 'text-local+full-0', 'listops-linear-0',
    'listops-local+full-0', 'text-linear-1',
  ]  # fmt: skip
  assert cells[1].arguments == (
    '-m', 'effformer.main',
    '--config=configs/lra_text.py:local+full,preset=modern,quick',
    '--workdir=/runs/text-local+full-0', '--config.seed=0',
    '--config.data.train=/real/imdb_train.jsonl.gz',
    '--config.data.test=/real/imdb_test.jsonl.gz',
    '--config.train.num_steps=3',
  )  # fmt: skip
  assert not any('config.data' in word for word in cells[2].arguments)


def test_all_means_all():
  options = run_lra.arguments(['--tasks=all', '--mechanisms=all'])
  assert {'text', 'listops', 'image', 'retrieval'} <= set(options.tasks)
  assert {'full', 'mega', 's5', 'nsa'} <= set(options.mechanisms)


def test_unknown_task_is_refused(capsys):
  with pytest.raises(SystemExit):
    run_lra.arguments(['--tasks=texts'])
  assert "no task 'texts'; there are" in capsys.readouterr().err


def test_one_at_a_time_in_order(tmp_path):
  log = tmp_path / 'log'
  program = (
    'import time; f = open({!r}, "a"); f.write("<{}"); f.flush(); '
    'time.sleep(0.3); f.write("{}>")'
  )
  cells = [cell(n, program.format(str(log), n, n), tmp_path) for n in 'abc']
  codes, _ = run(cells)
  assert codes == {'a': 0, 'b': 0, 'c': 0}
  assert log.read_text() == '<aa><bb><cc>'


def test_slots_run_beside_each_other_on_their_own_device(tmp_path):
  # Each waits for the other, so one after the other would never end.
  program = (
    'import os, pathlib, sys, time\n'
    f'here = pathlib.Path({str(tmp_path)!r})\n'
    '(here / os.environ["CUDA_VISIBLE_DEVICES"]).touch()\n'
    'end = time.monotonic() + 30\n'
    'while len(list(here.iterdir())) < 2:\n'
    '  time.sleep(0.05)\n'
    '  if time.monotonic() > end: sys.exit(9)\n'
  )
  options = run_lra.arguments(['--devices=2'])
  codes, _ = run(
    [cell(name, program, tmp_path) for name in 'ab'],
    2,
    run_lra._environment(options),
  )
  assert codes == {'a': 0, 'b': 0}
  assert sorted(path.name for path in tmp_path.iterdir()) == ['0', '1']


def test_a_failure_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
  good = tmp_path / 'good'
  good.mkdir()
  (good / 'result.json').write_text(json.dumps(RESULT))
  cells = [
    cell('bad', 'raise SystemExit(3)', tmp_path / 'bad'),
    cell('good', '', good),
  ]
  monkeypatch.setattr(run_lra, 'grid', lambda options, failed: cells)
  file = tmp_path / 'table.csv'
  assert run_lra.main([f'--csv={file}']) == 1
  assert 'bad failed with exit code 3' in capsys.readouterr().out
  with file.open() as lines:
    (row,) = csv.DictReader(lines)
  assert (row['test_accuracy'], row['floor_name']) == ('70.0', 'bag_of_bytes')
  assert row['points_above_floor'] == '8.0'
  assert row['waiting_share'] == '0.025'
  # Of all 8 steps, however few of them the last start had left.
  assert row['train_seconds'] == '2.67'


def test_rows_of_other_runs_stay(tmp_path, monkeypatch):
  file = tmp_path / 'table.csv'
  for seed in (0, 1, 0):
    folder = tmp_path / str(seed)
    folder.mkdir(exist_ok=True)
    (folder / 'result.json').write_text(json.dumps({**RESULT, 'seed': seed}))
    monkeypatch.setattr(
      run_lra, 'grid', lambda options, failed, f=folder: [cell('x', '', f)]
    )
    assert run_lra.main([f'--csv={file}']) == 0
  with file.open() as lines:
    assert [row['seed'] for row in csv.DictReader(lines)] == ['0', '1']


def test_a_signal_reaches_the_run_and_ends_the_grid(tmp_path):
  program = (
    'import signal, sys, time\n'
    'def stop(*_):\n'
    '  time.sleep(1); open({0!r}, "w").write("saved"); sys.exit(143)\n'
    'signal.signal(signal.SIGTERM, stop)\n'
    'open({0!r}, "w").write("ready")\n'
    'time.sleep(60)\n'
  )
  file = tmp_path / 'state'
  cells = [
    cell('a', program.format(str(file)), tmp_path),
    cell('b', 'import time; time.sleep(60)', tmp_path),
    # Never in the slot of b, while a still saves.
    cell('c', f'open({str(tmp_path / "never")!r}, "w")', tmp_path),
  ]

  def interrupt():
    end = time.monotonic() + 30
    while not (file.exists() and file.read_text() == 'ready'):
      if time.monotonic() > end:
        break
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

  # In a background job it is ignored.
  before = signal.getsignal(signal.SIGINT)
  thread = threading.Thread(target=interrupt)
  thread.start()
  codes, signals = run(cells, slots=2)
  thread.join()
  assert signals.came
  assert codes == {'a': 143, 'b': -signal.SIGTERM}
  assert file.read_text() == 'saved'
  assert not (tmp_path / 'never').exists()
  # The handlers of before are back.
  assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_a_killed_grid_left_is_waited_for(
  tmp_path, monkeypatch, capfd
):
  """SIGKILL of the grid cannot reach the run; the same command goes on."""
  folder = tmp_path / 'a'
  program = (
    'import json, pathlib, sys, time\n'
    'from effformer.train import workdir\n'
    f'with workdir.open_workdir({str(folder)!r}) as here:\n'
    '  end = time.monotonic() + 60\n'
    '  while not (here / "go").exists() and time.monotonic() < end:\n'
    '    time.sleep(0.05)\n'
    f'  (here / "result.json").write_text({json.dumps(RESULT)!r})\n'
  )
  arguments = ('-c', program)
  left = subprocess.Popen([sys.executable, *arguments], cwd=run_lra.ROOT)
  end = time.monotonic() + 60
  while not workdir.holder(folder) and time.monotonic() < end:
    time.sleep(0.05)
  assert workdir.holder(folder).startswith(f'pid {left.pid} ')
  cells = [Cell('a', arguments, folder)]
  monkeypatch.setattr(run_lra, 'grid', lambda options, failed: cells)
  waits = threading.Timer(0.5, lambda: (folder / 'go').touch())
  waits.start()
  assert run_lra.main(['--seeds=0']) == 0
  assert left.wait() == 0
  assert f'a: waiting for pid {left.pid}' in capfd.readouterr().out
  assert workdir.holder(folder) == ''


@pytest.mark.parametrize('seeds', ['', 'a', '1,,2'])
def test_seeds_that_are_no_numbers(seeds, capsys):
  with pytest.raises(SystemExit):
    run_lra.arguments([f'--seeds={seeds}'])
  assert 'numbers are needed' in capsys.readouterr().err


def test_no_path_of_a_machine_gets_into_the_table():
  words = (
    '--workdir=/home/x/runs/text-linear-0',
    '--config.data.train=/home/x/imdb.jsonl.gz',
    '--config.data.stand_in=False',
  )
  assert run_lra.row_of(RESULT, words, '')['command'] == (
    'python --workdir=runs/text-linear-0 '
    '--config.data.train=FOLDER/imdb.jsonl.gz --config.data.stand_in=False'
  )


def test_rows_of_an_older_table_stay_and_have_no_new_columns(tmp_path):
  path = tmp_path / 'table.csv'
  table.write(path, [{'seed': 1, 'score': 2.0}, {'seed': 0, 'score': 1.0}])
  table.merge(path, [{'seed': 1, 'score': 3.0, 'cost': 5}], 'seed')
  assert table.read(path) == [
    {'seed': '0', 'score': '1.0', 'cost': ''},
    {'seed': '1', 'score': '3.0', 'cost': '5'},
  ]


@pytest.mark.slow
def test_a_grid_of_two_runs_is_made_and_made_again(tmp_path):
  command = [
    sys.executable, '-m', 'experiments.run_lra', '--tasks=text',
    '--mechanisms=linear,local', '--seeds=0', '--quick',
    f'--workdir={tmp_path / "runs"}', f'--csv={tmp_path / "table.csv"}',
    '--set=--config.train.num_steps=2', '--set=--config.model.width=8',
    '--set=--config.train.warmup_steps=1',
    '--set=--config.data.test_examples=16',
    '--set=--config.data.validation_examples=16',
    f'--set=--config.data.directory={tmp_path / "data"}',
  ]  # fmt: skip
  for words in ('begins', 'holds a finished run'):
    done = subprocess.run(
      command, cwd=run_lra.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
  with (tmp_path / 'table.csv').open() as lines:
    assert [row['mechanism'] for row in csv.DictReader(lines)] == [
      'linear', 'local',
    ]  # fmt: skip


def test_variants_are_other_runs():
  words = ['--tasks=image', '--mechanisms=full', '--seeds=4', '--quick']
  names = {
    (): 'image-full-4',
    ('--pretrain',): 'image-full-pretrain-4',
    ('--matched', '--pretrain'): 'image-full-pretrain-matched-4',
  }
  for switches, name in names.items():
    (only,) = run_lra.grid(run_lra.arguments([*words, *switches]), [])
    assert only.name == only.workdir.name == name
    argument = 'full,preset=modern,quick'
    argument += ',pretrain' * ('--pretrain' in switches)
    assert f'--config=configs/lra_image.py:{argument}' in only.arguments
    row = run_lra.row_of(RESULT, only.arguments, name)
    assert row['variant'] == name


@pytest.mark.parametrize(
  ('task', 'mechanism'),
  [('text', 'mega'), ('text', 'linformer'), ('retrieval', 'local+s5')],
)
@pytest.mark.slow
def test_matched_models_are_of_the_size_of_full(task, mechanism):
  (only,) = run_lra.grid(
    run_lra.arguments(
      [f'--tasks={task}', f'--mechanisms={mechanism}', '--preset=repo',
       '--seeds=0', '--matched', '--set=--config.model.num_layers=2'],
    ), [],
  )  # fmt: skip
  flag = only.arguments[-1]
  assert flag.startswith('--config.model.mlp_width=')
  width = int(flag.partition('=')[2])
  path = str(run_lra.CONFIGS / f'lra_{task}.py')
  overrides = ('model.num_layers=2',)

  def size(argument, *more):
    return matching.num_params(path, argument, (*overrides, *more))

  base = size('full,preset=repo')
  sizes = [
    size(f'{mechanism},preset=repo', f'model.mlp_width={width + d}')
    for d in (-16, 0, 16)
  ]
  distances = [abs(n - base) for n in sizes]
  assert min(distances) == distances[1]
  assert sizes[1] <= 1.1 * base


def test_a_mechanism_that_is_too_large_is_left_out_and_named(capsys):
  words = ['--tasks=text', '--mechanisms=synthesizer,linear', '--matched']
  words += ['--set=--config.mixer.variant=random', '--seeds=0', '--quick']
  refused = []
  options = run_lra.arguments([*words, '--set=--config.model.width=16'])
  options.set.remove('--config.mixer.variant=random')
  cells = run_lra.grid(options, refused)
  assert [cell.name for cell in cells] == ['text-linear-matched-0']
  assert refused == [('text-synthesizer-matched-0', 2)]
  assert 'model.mlp_width=16' in capsys.readouterr().err


def test_settings_of_a_mechanism_are_not_for_the_base():
  path = str(run_lra.CONFIGS / 'lra_text.py')
  own = ('mixer.window=8', 'model.layers.0.window=4')
  assert matching.mlp_width(path, 'local,quick', own) == matching.mlp_width(
    path, 'local,quick', ()
  )
  all_layers = tuple(f'model.layers.{i}.mlp_width=32' for i in range(2))
  with pytest.raises(errors.ConfigError, match='no layer heeds'):
    matching.mlp_width(path, 'local,quick', all_layers)
