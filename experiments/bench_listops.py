"""Rate and distribution of the ListOps generator, beside the reference.

  python -m experiments.bench_listops \
    --csv=experiments/results/listops_generator.csv

Examples per second (generation, labels and text) with 1 and 2 worker threads,
and length quantiles, label shares and acceptance beside a plain re-run of LRA's
rule (20,000 samples; length mean and quantiles, shares of labels 0 and 9, range
of the others, acceptance).
"""

import argparse
import hashlib
import pathlib
import platform
import time

import numpy as np

from effformer.data import listops
from effformer.train import result
from experiments import table

QUANTILES = {5: 539, 25: 701, 50: 953, 75: 1309, 95: 1804}
SHARES = {0: '0.168', 9: '0.170'}
OTHER_SHARES = '0.073-0.093'


def measure(num_examples: int) -> list[tuple[str, str, str]]:
  rows, digests = [], set()
  for num_workers in (1, 2):
    digest, lengths, labels = hashlib.sha256(), [], []
    start = time.perf_counter()
    examples = list(
      listops.generate(0, 0, num_examples, num_workers=num_workers)
    )
    seconds = time.perf_counter() - start
    for text, label in examples:
      digest.update(text + b'%d' % label)
      lengths.append(text.count(b' ') + 1)
      labels.append(label)
    digests.add(digest.hexdigest())
    rows += [
      (
        f'examples_per_second_{num_workers}_workers',
        f'{num_examples / seconds:.0f}',
        '',
      ),
      (f'seconds_{num_workers}_workers', f'{seconds:.2f}', ''),
    ]
  assert len(digests) == 1, 'the bytes depend on the number of workers'
  rows.append(('distinct_examples', str(len(set(examples))), str(num_examples)))
  rows.append(('length_mean', f'{np.mean(lengths):.0f}', '1035'))
  for percent, reference in QUANTILES.items():
    value = np.quantile(lengths, percent / 100)
    rows.append((f'length_p{percent}', f'{value:.0f}', str(reference)))
  for label, share in enumerate(np.bincount(labels) / len(labels)):
    reference = SHARES.get(label, OTHER_SHARES)
    rows.append((f'share_of_label_{label}', f'{share:.4f}', reference))
  counted = min(num_examples, 20_480)
  draws = sum(
    listops.generate_chunk(0, start, start + 1024)[2]
    for start in range(0, counted, 1024)
  )
  rows.append(
    ('acceptance', f'{-(-counted // 1024) * 1024 / draws:.4f}', '0.082')
  )
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--examples', type=int, default=100_000)
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  options = parser.parse_args()
  num_examples = options.examples
  rows = [('examples', str(num_examples), '100000'), *measure(num_examples)]
  rows.append(('machine', f'{platform.machine()}, numpy {np.__version__}', ''))
  rows.append(('commit', result.commit(), ''))
  heading = ('quantity', 'effformer', 'reference')
  table.write(options.csv, (dict(zip(heading, r, strict=True)) for r in rows))
  for row in rows:
    print(*row, sep='\t')


if __name__ == '__main__':
  main()
