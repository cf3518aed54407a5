"""Runs that differ in their seed only, and their scores together."""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from effformer.report.runs import Run
from effformer.train import workdir

# Seeds are what a group is over; data are known by their fingerprints.
_NO_MATTER = (
  *workdir.MAY_CHANGE,
  *('seed', 'data.train', 'data.validation', 'data.test', 'data.documents'),
)


@dataclasses.dataclass(frozen=True)
class Group:
  """Finished runs of one config on the same data, over seeds.

  Attributes:
    runs: by seed.
    note: further settings by which it differs from a group of the same name,
      as `key=value`; empty where the name says all.
  """

  runs: tuple[Run, ...]
  note: str = ''

  @property
  def first(self) -> dict[str, Any]:
    return self.runs[0].result

  @property
  def name(self) -> str:
    """The mechanism, and the note where there is one."""
    stage = self.first.get('pretrain')
    notes = [f'pretrained, {stage["objective"]}'] if stage else []
    notes += [note for note in (self.overrides, self.note) if note]
    return self.first['mechanism'] + (f' ({", ".join(notes)})' if notes else '')

  @property
  def overrides(self) -> str:
    """What the command line changed of the preset, as `key=value, ...`."""
    return ', '.join(
      f'{key}={value}' for key, value in _overrides(self.runs[0]).items()
    )

  @property
  def measure(self) -> str:
    """What the scores are: 'accuracy', or another measure."""
    return self.runs[0].score

  @property
  def scores(self) -> list[float]:
    """Test score of each seed, times 100."""
    return [100 * run.result['test'][self.measure] for run in self.runs]

  @property
  def mean(self) -> float:
    return statistics.fmean(self.scores)

  @property
  def spread(self) -> float | None:
    """Standard deviation over seeds; None for a single one."""
    return statistics.stdev(self.scores) if len(self.runs) > 1 else None

  @property
  def floor(self) -> tuple[str, float]:
    """Name and score, times 100, of the best trivial model."""
    name, value = max(self.first['floors'].items(), key=lambda item: item[1])
    return name, 100 * value

  def median(self, *path: str) -> float | None:
    """Median over the runs of a number of result.json; None if one lacks it."""
    values = []
    for run in self.runs:
      value: Any = run.result
      for key in path:
        value = value.get(key) if isinstance(value, dict) else None
      values.append(value)
    return None if None in values else statistics.median(values)


def in_words(measure: str) -> str:
  """A measure and what it is shown in: `accuracy, percent`."""
  unit = ', percent' if measure == 'accuracy' else ' x 100'
  return f'{measure}{unit}'


def gather(runs: Iterable[Run]) -> list[Group]:
  """Finished runs by group, in the order of task, mechanism, preset and note.

  Of two runs of the same group and seed the first by path counts.
  """
  found: dict[tuple, dict[int, Run]] = {}
  for run in runs:
    if run.result is not None:
      identity = _label(run), tuple(sorted(_settings(run).items()))
      seeds = found.setdefault(identity, {})
      seeds.setdefault(run.result['seed'], run)
  groups = [
    Group(tuple(seeds[seed] for seed in sorted(seeds)))
    for seeds in found.values()
  ]
  named: dict[tuple, list[Group]] = {}
  for group in groups:
    named.setdefault(_label(group.runs[0]), []).append(group)
  return [
    dataclasses.replace(group, note=note)
    for label in sorted(named)
    for group, note in zip(
      named[label], _notes(named[label]), strict=True
    )
  ]  # fmt: skip


def _settings(run: Run) -> dict[str, str]:
  """What makes a run what it is, but for its seed; the data under `data`."""
  prints = json.dumps(run.result['fingerprints'], sort_keys=True)
  return {
    key: value
    for key, value in workdir.flatten(run.config).items()
    if not workdir.matches(key, _NO_MATTER)
  } | {'data': hashlib.sha256(prints.encode()).hexdigest()[:8]}


def _label(run: Run) -> tuple:
  result = run.result
  stage = result.get('pretrain') or {}
  return (
    *(result[key] for key in ('task', 'stand_in', 'preset', 'quick')),
    *(result['mechanism'], stage.get('objective', '')),
    tuple(_overrides(run)),
  )


def _overrides(run: Run) -> dict[str, Any]:
  """Keys and values of a run that its preset has not; seed and data apart."""
  values = workdir.flatten(run.config)
  # Runs of before this was written have none.
  return {
    key: values.get(key)
    for key in run.result.get('overridden', '').split(',')
    if key and not workdir.matches(key, _NO_MATTER)
  }


def _notes(groups: Sequence[Group]) -> list[str]:
  """What tells groups of one name apart; no two are equal."""
  settings = [_settings(group.runs[0]) for group in groups]
  told = set(_overrides(groups[0].runs[0]))
  keys = sorted(
    key
    for key in set().union(*settings) - told
    if len({own.get(key) for own in settings}) > 1
  )
  return [
    ', '.join(f'{key}={own.get(key)}' for key in keys) for own in settings
  ]
