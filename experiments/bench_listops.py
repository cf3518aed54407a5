"""Rate and distribution of the ListOps generator, beside the reference.

  python experiments/bench_listops.py [--examples=100000]

Writes results/listops_generator.csv: examples per second (generation, labels
and text) with 1 and 2 worker threads, and length quantiles, label shares and
acceptance beside a plain re-run of LRA's rule (20,000 samples; length mean and
quantiles, shares of labels 0 and 9, range of the others, acceptance).
"""

import argparse
import csv
import hashlib
import pathlib
import platform
import subprocess
import time

import numpy as np

from effformer.data import listops

RESULT = pathlib.Path(__file__).parent / 'results' / 'listops_generator.csv'
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


def commit() -> str:
  """The commit of this checkout; '-dirty' if files differ from it."""
  result = subprocess.run(
    ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
    cwd=RESULT.parent.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  return result.stdout.strip() or 'none'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--examples', type=int, default=100_000)
  num_examples = parser.parse_args().examples
  rows = [('examples', str(num_examples), '100000'), *measure(num_examples)]
  rows.append(('machine', f'{platform.machine()}, numpy {np.__version__}', ''))
  rows.append(('commit', commit(), ''))
  RESULT.parent.mkdir(exist_ok=True)
  with open(RESULT, 'w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(('quantity', 'effformer', 'reference'))
    writer.writerows(rows)
  for row in rows:
    print(*row, sep='\t')


if __name__ == '__main__':
  main()
