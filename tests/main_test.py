"""The command line: exit codes, short messages, no tracebacks."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from effformer import errors, main
from effformer.train import preemption, workdir

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = ('good', 'bad', 'fine', 'dull') * 15
CONFIG = f'--config={ROOT}/configs/lra_text.py:linear,quick'
# Whatever would begin, there are no data for it.
COMPRESSION = [
  f'--config={ROOT}/configs/compress_lra_text.py:int8-storage,quick',
  *('--config.data.train=nowhere.jsonl', '--workdir=nowhere'),
]


PATCHES = [
  f'--config={ROOT}/configs/lra_image.py:linear,quick',
  '--config.model.front_end=patches',
]


def run(capsys, *arguments):
  code = main.main(['effformer', *arguments])
  return code, capsys.readouterr()


@pytest.mark.slow
def test_what_was_compiled_once_is_not_compiled_again(tmp_path):
  rows = '\n'.join(f'{word} film {n}\t{n % 2}' for n, word in enumerate(WORDS))
  (tmp_path / 'own.tsv').write_text(f'text\tlabel\n{rows}\n')
  cache = tmp_path / 'cache' / 'effformer' / 'jax'
  environment = {
    **os.environ,
    'XDG_CACHE_HOME': str(tmp_path / 'cache'),
    # Small programs as well.
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PLATFORMS': 'cpu',
  }
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  found = []
  for length in (16, 16, 17):
    subprocess.run(
      [
        *(sys.executable, '-m', 'effformer.main', CONFIG, '--mode=dry_run'),
        f'--config.data.train={tmp_path}/own.tsv',
        f'--config.data.max_length={length}',
        *('--config.model.num_layers=1', '--config.model.width=8'),
      ],
      cwd=ROOT, env=environment, check=True, timeout=300,
    )  # fmt: skip
    found.append({path.name for path in cache.glob('*-cache')})
  once, again, longer = found
  assert once
  assert again == once
  assert longer > once


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], '--config'),
    (['--confg=x'], 'confg'),
    ([CONFIG, 'stray'], 'stray'),
    ([CONFIG, '--mode=trian'], 'trian'),
    ([CONFIG, '--input=a film'], '--mode=predict'),
    ([CONFIG, '--mode=eval', '--temperature=1'], '--mode=generate'),
    ([CONFIG, '--mode=predict', '--num_tokens=200'], '--mode=generate'),
    (['--config=configs/language.py:fnet'], 'fnet cannot be causal'),
    (
      [
        CONFIG.replace('linear', 'fnet,pretrain'),
        '--config.pretrain.objective=causal',
      ],
      'objective=masked',
    ),
    (
      ['--config=configs/language.py:preset=repo'],
      'does not exist for language',
    ),
    ([CONFIG, '--config.model.zero_is_padding=true'], 'is for image'),
    ([CONFIG, '--config.model.front_end=patches'], 'is for image'),
    ([CONFIG, '--config.model.patch_size=2'], 'front_end=patches only'),
    (
      [
        CONFIG,
        *(
          '--config.model.front_end=continuous',
          '--config.model.token_head=tied',
          '--config.pretrain.num_steps=3',
        ),
      ],
      'is tied to an embedding',
    ),
    (
      [CONFIG, '--config.model.token_head=tied'],
      'models that guess tokens: task language',
    ),
    ([*PATCHES, '--config.model.patch_size=5'], 'multiple of model.patch_size'),
    ([*PATCHES, '--config.model.channels=3'], 'no square image'),
    ([*PATCHES, '--config.model.zero_is_padding=true'], 'single pixels'),
    ([*PATCHES, '--config.pretrain.num_steps=3'], 'single pixels'),
    (
      [
        '--config=configs/lra_image.py:linear,pretrain',
        '--config.model.zero_is_padding=true',
        '--config.pretrain.objective=causal',
      ],
      'objective=masked',
    ),
    (['--config=configs/language.py:pretrain'], 'pretrain.num_steps=0'),
    (['--workdir=nowhere'], 'nowhere holds no run'),
    (['--config=nowhere.json'], 'nowhere.json'),
    ([CONFIG + ',preset=modren'], 'modern'),
    ([CONFIG.replace('linear', 'lineer')], 'linear'),
    ([CONFIG, '--config.train.num_step=3'], 'train.num_steps'),
    ([CONFIG, '--config.train.num_steps=many'], 'train.num_steps'),
    ([CONFIG, '--config.model.num_heads=3'], 'model.num_heads'),
    (['--config=nowhere.py'], 'nowhere.py'),
    ([*COMPRESSION], 'and --mode=train would leave them out'),
    ([*COMPRESSION, '--mode=dry_run'], 'Add --mode=compress.'),
    ([CONFIG, '--mode=compress', '--workdir=nowhere'], 'needs steps'),
    (
      [
        *(*COMPRESSION, '--mode=compress'),
        '--config.compress.steps.0.bits=9',
      ],
      'round: ',
    ),
  ],
)
def test_a_mistake_is_one_short_message(capsys, arguments, words):
  code, captured = run(capsys, *arguments)
  assert code == errors.ConfigError.exit_code == 2
  assert words in captured.err
  assert 'Traceback' not in captured.err
  assert 1 <= len(captured.err.strip().splitlines()) <= 5
  assert not pathlib.Path('nowhere').exists()


@pytest.mark.parametrize('mode', ['eval', 'predict', 'generate'])
def test_a_mode_of_a_run_without_one_says_so(capsys, tmp_path, mode):
  for folder in (tmp_path / 'nothing', 'x' * 300):
    code, captured = run(capsys, f'--mode={mode}', f'--workdir={folder}')
    assert code == errors.CheckpointError.exit_code == 4
    assert f'{folder} holds no run' in captured.err
    assert '--config' not in captured.err
  assert not (tmp_path / 'nothing').exists()
  code, captured = run(capsys, f'--mode={mode}')
  assert code == 2
  assert '--workdir' in captured.err
  assert 'lra_text' not in captured.err


def test_a_path_without_an_ending_that_is_not_there_is_exit_3(capsys, tmp_path):
  code, captured = run(
    capsys,
    CONFIG,
    f'--workdir={tmp_path / "run"}',
    f'--config.data.train={tmp_path / "nope"}',
  )
  assert code == 3
  assert f'no such file: {tmp_path / "nope"}' in captured.err


def test_debug_shows_the_traceback(capsys):
  code, captured = run(capsys, '--config=nowhere.py', '--debug')
  assert code == 2
  assert 'Traceback' in captured.err


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--num_processes=2', '--process_id=1'], '--coordinator'),
    (['--coordinator=localhost:1'], '--num_processes'),
    (['--distributed'], '--workdir'),
  ],
)
def test_flags_of_several_processes_are_not_ignored(capsys, flags, words):
  code, captured = run(capsys, CONFIG, *flags)
  assert code == 2
  assert words in captured.err


def test_a_signal_while_leaving_is_no_traceback(capsys, monkeypatch):
  before = signal.getsignal(signal.SIGUSR1)
  uninstall, sent = preemption.Stop.uninstall, []

  def late(stop):
    if not sent:
      sent.append(True)
      os.kill(os.getpid(), signal.SIGUSR1)
    uninstall(stop)

  monkeypatch.setattr(preemption.Stop, 'uninstall', late)
  code, captured = run(capsys, '--help')
  assert code == errors.Preempted.exit_code == 143
  assert captured.err == 'stopped: SIGUSR1\n'
  assert signal.getsignal(signal.SIGUSR1) == before


def test_a_second_process_on_the_same_folder_is_refused(capsys, tmp_path):
  with workdir.open_workdir(tmp_path):
    code, captured = run(capsys, CONFIG, f'--workdir={tmp_path}')
  assert code == 4
  assert 'in use by pid' in captured.err


def test_a_name_that_no_folder_can_have_is_exit_4(capsys):
  code, _ = run(capsys, CONFIG, '--mode=eval', f'--workdir={"x" * 300}')
  assert code == 4


def test_help_lists_flags_and_exit_codes(capsys):
  code, captured = run(capsys, '--help')
  assert code == 0
  for words in ('--config', '--workdir', '--mode', '143'):
    assert words in captured.out


def test_missing_data_is_exit_3(capsys, tmp_path):
  code, captured = run(
    capsys,
    CONFIG,
    f'--workdir={tmp_path / "run"}',
    f'--config.data.train={tmp_path / "nothing.jsonl"}',
  )
  assert code == errors.DataError.exit_code == 3
  assert 'nothing.jsonl' in captured.err
  assert len(captured.err.strip().splitlines()) <= 5


def test_unwritable_workdir_is_exit_4(capsys, tmp_path):
  (tmp_path / 'file').write_text('')
  code, captured = run(capsys, CONFIG, f'--workdir={tmp_path / "file" / "run"}')
  assert code == errors.CheckpointError.exit_code == 4
  assert '--workdir' in captured.err


def test_a_wrong_config_does_not_wait_for_jax():
  program = (
    'import sys; from effformer import main\n'
    'code = main.main(["effformer", "--config=nowhere.py"])\n'
    'assert "jax" not in sys.modules, "jax was imported"\n'
    'sys.exit(code)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2, done.stderr
