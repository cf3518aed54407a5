"""Accuracy on the Long Range Arena as published, percent; none of it is ours.

`LRA` is table 1 of Tay et al. (2021, 2011.04006): one seed, the last
checkpoint, sizes of the models as in its appendix. `LATER` are figures of the
papers of the mechanisms, with other sizes and longer training. Numbers of
different tables are not to be compared as if they were one experiment.
"""

TASKS = {
  'listops': 'ListOps',
  'text': 'Text',
  'retrieval': 'Retrieval',
  'image': 'Image',
  'pathfinder32': 'Pathfinder',
  'pathfinder128': 'Path-X',
}

_LRA = {
  'full': (36.37, 64.27, 57.46, 42.44, 71.40),
  'local': (15.82, 52.98, 53.39, 41.46, 66.63),
  'sparse': (17.07, 63.58, 59.59, 44.24, 71.71),
  'longformer': (35.63, 62.85, 56.89, 42.22, 69.71),
  'linformer': (35.70, 53.94, 52.27, 38.56, 76.34),
  'reformer': (37.27, 56.10, 53.40, 38.07, 68.50),
  'sinkhorn': (33.67, 61.20, 53.83, 41.23, 67.45),
  'synthesizer': (36.99, 61.68, 54.67, 41.61, 69.45),
  'bigbird': (36.05, 64.02, 59.29, 40.83, 74.87),
  'linear': (16.13, 65.90, 53.09, 42.34, 75.30),
  'performer': (18.01, 65.40, 53.82, 42.77, 77.05),
}
_LATER = {
  's5': (62.15, 89.31, 91.40, 88.00, 95.33, 98.58),
  'mega': (63.14, 90.43, 91.25, 90.44, 96.01, 97.98),
}

LRA_SOURCE = 'Tay et al. 2021 (2011.04006), table 1'
LATER_SOURCES = {
  's5': 'Smith et al. 2023 (2208.04933)',
  'mega': 'Ma et al. 2023 (2209.10655)',
}


def score(mechanism: str, task: str) -> tuple[float, str] | None:
  """The published accuracy and its source, or None.

  No model of `LRA` learnt Path-X, so it has no number there.
  """
  for table, source in (
    (_LRA, LRA_SOURCE),
    (_LATER, LATER_SOURCES.get(mechanism, '')),
  ):
    if mechanism in table:
      values = dict(zip(TASKS, table[mechanism], strict=False))
      if task in values:
        return values[task], source
  return None


def best(task: str) -> tuple[float, str, str]:
  """The highest published accuracy, its mechanism and its source."""
  found = [
    (*published, name)
    for name in (*_LRA, *_LATER)
    if (published := score(name, task))
  ]
  value, source, name = max(found)
  return value, name, source


def average(mechanism: str) -> float | None:
  """Mean over the six tasks, where the mechanism was published on all."""
  values = _LATER.get(mechanism, ())
  return sum(values) / len(TASKS) if len(values) == len(TASKS) else None
