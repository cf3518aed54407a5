"""Makes the golden files from public PyTorch implementations; see README.md.

One module a mechanism, in the folder `oracles`. Each builds an oracle, gives it
random weights, and records what it does to random tokens, with the weights
under our names and in our shapes.
"""

import argparse
import importlib
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
# Modules of the folder `oracles`. Only those that are asked for are imported,
# since each needs a package of its own.
ORACLES = (
  'linformer', 'local', 'full', 'fnet', 'performer', 'reformer', 'longformer',
  'retnet', 'gla', 'gated_deltanet', 'deltanet', 'mamba2', 'mega',
  'nystromformer', 'bigbird', 'linear', 'nsa', 's5', 'positions',
  'pretrained',
)  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', help='mechanisms; all if none')
  parser.add_argument(
    '--out', type=pathlib.Path, default=HERE, help='folder of the files'
  )
  args = parser.parse_args()
  if unknown := set(args.names) - set(ORACLES):
    parser.error(f'{sorted(unknown)} not among {ORACLES}')
  args.out.mkdir(parents=True, exist_ok=True)
  # One thread alone rounds some sums otherwise than several do.
  torch.set_num_threads(2)
  for name in args.names or ORACLES:
    oracle = importlib.import_module(f'oracles.{name}')
    torch.manual_seed(0)
    np.random.seed(0)
    for file, arrays in oracle.files():
      path = args.out / f'{file}.npz'
      path.parent.mkdir(exist_ok=True)
      np.savez_compressed(path, **arrays)
    print(name)
  size = sum(path.stat().st_size for path in args.out.rglob('*.npz'))
  print(f'{size / 2**20:.2f} MiB')


if __name__ == '__main__':
  main()
