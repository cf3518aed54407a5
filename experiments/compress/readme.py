"""The block of the README about compressed models, from the CSV files."""

from experiments import table


def block() -> list[str]:
  """Bytes and quality of MiniLM, rounded."""
  rows = table.read(table.RESULTS / 'compress_rounding.csv')
  if not rows:
    return []
  first = rows[0]
  return [
    'all-MiniLM-L6-v2, tables of 8 bits in all rows below the first; 4 and 3 '
    'bits in tiles of 32 with the best clipping point.',
    'Cosines and the share of equal nearest neighbours are of vectors of '
    'held-out sentences, beside those of the parent; the last',
    f"column is Spearman's rho x 100 on the {int(first['pairs']):,} pairs of "
    'the test split of STS-B, and its change with a 95 % interval.',
    '',
    '| what is rounded | MB on disk | cosine, mean (least) | same neighbour | '
    'STS-B (change) |',
    '| --- | --- | --- | --- | --- |',
    *(
      f'| {row["variant"]} | {int(row["bytes"]) / 1e6:.2f} | '
      f'{float(row["cosine_mean"]):.4f} ({float(row["cosine_min"]):.4f}) | '
      f'{float(row["nearest"]):.3f} | {float(row["spearman"]):.2f} '
      f'({float(row["change"]):+.2f}; {float(row["change_low"]):+.2f} to '
      f'{float(row["change_high"]):+.2f}) |'
      for row in rows
    ),
    '',
    'One run; 256 sentences of the train split calibrate. Made by '
    '`python -m experiments.compress.rounding --data=FOLDER` at commit '
    f'{first["commit"][:7]}, {first["device"]}.',
  ]
