"""R11 and R12: the same run on other numbers of devices and processes.

  python -m experiments.devices --workdir=runs/devices \
    --csv=experiments/results/devices.csv

R11: a run on d CPU devices is cut back to its checkpoint of step 20 and goes
on to step 40 on d' devices, for d and d' in 1, 2, 4, 8. R12: 1 process of 4
devices, 2 of 2 and 4 of 1 (gloo) run from the start, then each goes on from
the checkpoint of another. Printed and written is the largest relative
difference of any loss to that of the run on one device; the bar is 1e-5. (That
parameters are restored bit by bit on any mesh, and that hosts read the rows of
the same batches, is tested in tests/train.)
About ten seconds a run on two cores. Exit code 1 above the bar.
"""

import argparse
import pathlib
import shutil
import socket
import sys

from experiments import table, tiny

STEPS, CUT = 40, 20
BAR = 1e-5
LIMIT_SECONDS = 180
LAYOUTS = ((1, 4), (2, 2), (4, 1))


def command(workdir: pathlib.Path, data: pathlib.Path) -> list[str]:
  return tiny.command(
    workdir,
    data,
    train__num_steps=STEPS,
    train__eval_every_steps=CUT,
    train__checkpoint_every_steps=CUT,
    # Differences of rounding may turn single predictions over; what is
    # compared must not depend on which step was best.
    train__select='last',
  )


def run(workdir, data, processes: int, devices: int) -> None:
  """One run to the end on processes x devices; raises if it fails."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  arguments = command(workdir, data)
  running = []
  for index in range(processes):
    own = (
      [
        f'--coordinator={address}',
        f'--num_processes={processes}',
        f'--process_id={index}',
      ]
      if processes > 1
      else []
    )
    running.append(
      tiny.start(
        [*arguments, *own],
        JAX_PLATFORMS='cpu',
        JAX_NUM_CPU_DEVICES=str(devices),
        JAX_CPU_COLLECTIVES_IMPLEMENTATION='gloo',
      )
    )
  try:
    outputs = [p.communicate(timeout=LIMIT_SECONDS)[0] for p in running]
  finally:
    for process in running:
      process.kill()
  for process, output in zip(running, outputs, strict=True):
    if process.returncode:
      raise SystemExit(f'exit code {process.returncode}\n{output[-3000:]}')


def cut_back(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a finished run as it was when it had saved step CUT."""
  shutil.copytree(source, target)
  (target / 'result.json').unlink()
  shutil.rmtree(target / 'checkpoints' / 'last' / f'{STEPS:08d}')


def difference(workdir: pathlib.Path, reference: pathlib.Path) -> float:
  """Largest relative difference of a training or validation loss."""
  worst = 0.0
  for split in ('train', 'validation'):
    pairs = zip(
      tiny.rows(workdir, split), tiny.rows(reference, split), strict=True
    )
    for row, expected in pairs:
      assert row['step'] == expected['step']
      distance = abs(row['loss'] - expected['loss']) / abs(expected['loss'])
      worst = max(worst, distance)
  return worst


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/devices')
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  options = parser.parse_args()
  workdir = options.workdir.resolve()
  shutil.rmtree(workdir, ignore_errors=True)
  data = workdir / 'data'
  tiny.write_data(data)
  counts = [(1, count) for count in (1, 2, 4, 8)]
  many = [layout for layout in LAYOUTS if layout[0] > 1]
  pairs = [(a, b) for a in counts for b in counts]
  pairs += [(a, b) for a in LAYOUTS for b in LAYOUTS if a != b]
  figures = []

  def report(saved, restored, folder):
    value = difference(folder, workdir / '1x1')
    row = {
      'saved_on': '{} x {}'.format(*saved),
      'restored_on': '{} x {}'.format(*restored) if restored else '',
      'largest_relative_loss_difference': f'{value:.1e}',
      'within_1e-5': value <= BAR,
    }
    figures.append(row)
    print(row, flush=True)

  for layout in counts + many:
    folder = workdir / '{}x{}'.format(*layout)
    run(folder, data, *layout)
    report(layout, None, folder)
  for saved, restored in pairs:
    folder = workdir / '{}x{}-to-{}x{}'.format(*saved, *restored)
    cut_back(workdir / '{}x{}'.format(*saved), folder)
    run(folder, data, *restored)
    report(saved, restored, folder)
  commit = tiny.result(workdir / '1x1')['commit']
  table.write(options.csv, ({**row, 'commit': commit} for row in figures))
  return int(not all(row['within_1e-5'] for row in figures))


if __name__ == '__main__':
  sys.exit(main())
