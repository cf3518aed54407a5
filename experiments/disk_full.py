"""R8: the disk is full while a run saves; nothing that was good is lost.

  python -m experiments.disk_full --workdir=runs/full \
    --csv=experiments/results/disk_full.csv

The same run is started with less and less room: files of limited size
(RLIMIT_FSIZE), and, where this user may mount one, a tmpfs of limited size. A
run that finds no room must exit 4 with a message of at most five lines; then
it is started again with room, and must end in the same bytes as a run that
always had room. About fifteen seconds a row on two cores. Exit code 1 if not.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys

from experiments import table, tiny

FILE_LIMITS = (2_000, 20_000, 200_000)
TMPFS_SIZES = (200, 1_000, 2_000)


def command(workdir: pathlib.Path, data: pathlib.Path) -> list[str]:
  return tiny.command(
    workdir,
    data,
    train__num_steps=60,
    train__eval_every_steps=20,
    train__checkpoint_every_steps=10,
  )


def run(arguments: list[str], max_bytes: int | None = None):
  """Exit code and error lines of a run whose files may not grow further."""

  def limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

  done = subprocess.run(
    arguments,
    cwd=tiny.ROOT,
    capture_output=True,
    text=True,
    check=False,
    preexec_fn=limit if max_bytes else None,
  )
  return done.returncode, done.stderr.strip().splitlines()


def outcome(workdir: pathlib.Path):
  return (
    tiny.result(workdir)['state_sha256'],
    (workdir / 'metrics.jsonl').read_bytes(),
  )


def in_limited_files(folder, data, max_bytes):
  """A start with limited files, then one without; what the first one said."""
  code, lines = run(command(folder, data), max_bytes)
  again, _ = run(command(folder, data))
  return code, lines, again


def in_small_tmpfs(folder, data, kibibytes):
  """A start in a small tmpfs, which is then enlarged for the second."""
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={kibibytes}k', 'tmpfs', folder]
  subprocess.run(mount, check=True, capture_output=True)
  try:
    code, lines = run(command(folder / 'run', data))
    larger = ['mount', '-o', 'remount,size=64m', folder]
    subprocess.run(larger, check=True, capture_output=True)
    again, _ = run(command(folder / 'run', data))
    kept = folder.with_name(folder.name + '-kept')
    shutil.copytree(folder / 'run', kept)
  finally:
    subprocess.run(['umount', folder], check=True)
  shutil.rmtree(folder)
  kept.rename(folder)
  return code, lines, again


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/full')
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  options = parser.parse_args()
  workdir = options.workdir.resolve()
  shutil.rmtree(workdir, ignore_errors=True)
  data = workdir / 'data'
  tiny.write_data(data)
  code, lines = run(command(workdir / 'alone', data))
  assert code == 0, lines
  alone = outcome(workdir / 'alone')
  trials = [
    *(('RLIMIT_FSIZE', limit, in_limited_files) for limit in FILE_LIMITS),
    *(('tmpfs', 1024 * size, in_small_tmpfs) for size in TMPFS_SIZES),
  ]
  figures = []
  for kind, size, trial in trials:
    folder = workdir / f'{kind}-{size}'
    try:
      amount = size // 1024 if kind == 'tmpfs' else size
      code, lines, again = trial(folder, data, amount)
    except subprocess.CalledProcessError:
      print(f'{kind}: this user may not mount; left out')
      break
    row = {
      'kind': kind,
      'bytes': size,
      'first_exit_code': code,
      'message_lines': len(lines) if code else 0,
      'traceback': any(line.startswith('Traceback') for line in lines),
      'second_exit_code': again,
      'same_bytes': again == 0 and outcome(folder) == alone,
    }
    figures.append(row)
    print(json.dumps(row), *lines, sep='\n  ', flush=True)
  commit = tiny.result(workdir / 'alone')['commit']
  table.write(options.csv, ({**row, 'commit': commit} for row in figures))
  # A limit that nobody met shows nothing.
  good = any(row['first_exit_code'] == 4 for row in figures) and all(
    row['first_exit_code'] in (0, 4)
    and row['message_lines'] <= 5
    and not row['traceback']
    and row['same_bytes']
    for row in figures
  )
  return int(not good)


if __name__ == '__main__':
  sys.exit(main())
