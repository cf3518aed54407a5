"""The block of the README about compressed models, from the CSV files."""

from experiments import table


def block() -> list[str]:
  """What was measured of MiniLM, as far as it was."""
  parts = (
    (_rounding, 'compress_rounding'),
    (_mixed, 'compress_mixed'),
    (_structure, 'compress_structure'),
    (_crossover, 'compress_crossover'),
    (_recipes, 'compress_recipes'),
  )
  lines: list[str] = []
  for make, name in parts:
    rows = table.read(table.RESULTS / f'{name}.csv')
    if rows:
      lines += [*([''] if lines else []), *make(rows)]
  return lines


def _made(rows, what) -> str:
  commits = ', '.join(sorted({row['commit'][:7] for row in rows}))
  devices = ', '.join(sorted({row['device'] for row in rows}))
  return (
    f'Made by `python -m experiments.compress.{what}` at {commits}, {devices}.'
  )


def _rounding(rows) -> list[str]:
  """Bytes and quality of MiniLM, rounded."""
  first = rows[0]
  return [
    '![how far rounded models are from the parent, over bytes]'
    '(docs/plots/compress_frontier.svg)',
    '',
    'all-MiniLM-L6-v2, tables of 8 bits in all rows below the first; 4 and 3 '
    'bits in tiles of 32 with the best clipping point, 5 bits',
    'and 2 weights of every 4 (GPTQ is SparseGPT there) in channels, at as '
    'many bytes as 4 bits in tiles.',
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
      f'{float(row["nearest"]):.3f} | {_change(row)} |'
      for row in rows
    ),
    '',
    'One run; 256 sentences of the train split calibrate. '
    + _made(rows, 'rounding --data=FOLDER'),
  ]


def _mixed(rows) -> list[str]:
  """Bits by the policy, and the same bits everywhere."""
  return [
    'Bits for each part by the policy, against the same bits everywhere at as '
    'many bytes; both by GPTQ, in tiles of 32, tables too. The policy',
    'chose by other sentences than those that are shown.',
    '',
    '| budget | plan | MB of codes | cosine, mean (least) | same neighbour | '
    'STS-B (change) |',
    '| --- | --- | --- | --- | --- | --- |',
    *(
      f'| {row["budget"]} | {row["plan"]} | {int(row["bytes"]) / 1e6:.2f} | '
      f'{float(row["cosine_mean"]):.4f} ({float(row["cosine_min"]):.4f}) | '
      f'{float(row["nearest"]):.3f} | {_change(row)} |'
      for row in rows
    ),
    '',
    _made(rows, 'mixed --data=FOLDER'),
  ]


def _change(row) -> str:
  return (
    f'{float(row["spearman"]):.2f} ({float(row["change"]):+.2f}; '
    f'{float(row["change_low"]):+.2f} to {float(row["change_high"]):+.2f})'
  )


def _structure(rows) -> list[str]:
  """Speeds of smaller arrays."""
  gap = max(float(row['difference']) for row in rows)
  shapes = sorted({(int(row['batch']), int(row['length'])) for row in rows})
  cores = sorted({row['cores'] for row in rows})
  cells = {
    (row['cores'], row['model'], int(row['batch']), int(row['length'])): row
    for row in rows
  }
  names = ('shrunk', 'half the layers', 'whole', 'masked again')
  rest = {
    number: 2 / float(cells[number, 'shrunk', 1, 32]['ratio']) - 1
    for number in cores
  }
  left = ', '.join(f'{x:.0%} with {n} core(s)' for n, x in rest.items())

  def cell(own):
    low, high = float(own['ratio_p25']), float(own['ratio_p75'])
    return f'{float(own["ratio"]):.2f} ({low:.2f} to {high:.2f})'

  return [
    'Half of the heads and of the feed-forward columns, as a mask and as '
    'smaller arrays (shrunk); and layers 0, 2 and 5 alone. Times as fast',
    'as the masked model in the same rounds (quartiles), beside the masked '
    f'model once more; masked and shrunk outputs differ by {gap:.0e} at most.',
    'Of a row of 32 tokens 2 / r - 1 of the time does not leave with half of '
    f'the arrays: {left}.',
    '',
    f'| model | cores | {" | ".join(f"{b} x {t}" for b, t in shapes)} |',
    f'| --- | --- |{" --- |" * len(shapes)}',
    *(
      f'| {name} | {number} | '
      + ' | '.join(cell(cells[number, name, *shape]) for shape in shapes)
      + ' |'
      for name in names
      for number in cores
    ),
    '',
    _made(rows, 'structure [--cores=1]'),
  ]


def _crossover(rows) -> list[str]:
  """From which length on another attention is faster."""
  lengths = sorted({int(row['length']) for row in rows})
  names = list(dict.fromkeys(row['attention'] for row in rows))
  cells = {(row['attention'], int(row['length'])): row for row in rows}
  lines = [
    f'MiniLM with another attention in all layers, {rows[0]["batch"]} rows: '
    'times as fast as with softmax attention in the same rounds, beside',
    'softmax attention once more. Speed only; such a model has to be trained.',
    '',
    f'| attention | {" | ".join(f"{length:,}" for length in lengths)} |',
    f'| --- |{" --- |" * len(lengths)}',
  ]
  for name in names[1:]:
    own = [f'{float(cells[name, t]["ratio"]):.2f}' for t in lengths]
    lines.append(f'| {name} | {" | ".join(own)} |')
  return [*lines, '', _made(rows, 'crossover')]


def _recipes(rows) -> list[str]:
  """Final models of recipes and their controls, over seeds."""
  parents, finals, controls = {}, {}, {}
  for row in rows:
    key, model = (row['task'], row['recipe']), row['model']
    if model == 'parent':
      parents[row['task']] = row
    elif row['is_final'] == 'True':
      finals.setdefault(key, []).append(row)
    elif model.startswith('control: '):
      name = model.removeprefix('control: ')
      controls.setdefault(key, {}).setdefault(name, []).append(row)
  lines = [
    '| task | recipe | steps | MB on disk | test x 100, each seed | '
    'of the parent | controls |',
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  for task, parent in sorted(parents.items()):
    whole = _mean([parent])
    lines.append(
      f'| {task} | parent |  | {int(parent["bytes"]) / 1e6:.2f} | '
      f'{whole:.2f} ({parent["measure"]}) | 100.0 % |  |'
    )
    for (_, recipe), own in sorted(
      (key, own) for key, own in finals.items() if key[0] == task
    ):
      score = _mean(own)
      beside = ', '.join(
        f'{name} {_mean(found):.2f} ({score - _mean(found):+.2f})'
        for name, found in sorted(controls.get((task, recipe), {}).items())
      )
      each = ', '.join(f'{_mean([row]):.2f}' for row in own)
      lines.append(
        f'| {task} | {recipe} | {own[0]["steps"]} | '
        f'{int(own[0]["bytes"]) / 1e6:.2f} | {each} | '
        f'{100 * score / whole:.1f} % | {beside} |'
      )
  floors = {
    row['task']: f'{row["task"]} {100 * float(row["floor"]):.2f} '
    f'({int(row["examples"]):,} examples)'
    for row in rows
  }
  return [
    'Recipes with their controls. Seeds are those of training and choices; the '
    'parent is one, after some hundred steps, and',
    'its score with it. A control is a mean over the seeds, and by how much '
    'the recipe is above it: `untrained` is the recipe',
    'without its training, `no_teacher` learns from labels alone, for as many '
    'steps, `nearest` has codes to the nearest.',
    '',
    *lines,
    '',
    f'Floors: {", ".join(floors.values())}. '
    'Intervals over examples, agreement with the parent and KL are in',
    '`experiments/results/compress_recipes.csv`. '
    + _made(rows, 'recipes --data=FOLDER --workdir=FOLDER --recipes=NAMES'),
  ]


def _mean(rows) -> float:
  return 100 * sum(float(row['score']) for row in rows) / len(rows)
