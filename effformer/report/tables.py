"""The tables: LRA beside the published figures, and all there is to say."""

import statistics
from collections.abc import Sequence

from effformer.report import published
from effformer.report.document import Block, Heading, Table, Text
from effformer.report.groups import Group, in_words

# Averages in the tables of LRA are over these.
AVERAGED = ('listops', 'text', 'retrieval', 'image', 'pathfinder32')


def arena(groups: Sequence[Group]) -> list[Block]:
  """For each preset a table of mechanisms over the tasks of LRA.

  Runs on stand-ins do not enter. What is not the data of LRA is marked.
  """
  blocks: list[Block] = []
  real = [
    group
    for group in groups
    if group.first['task'] in published.TASKS and not group.first['stand_in']
  ]
  protocols = sorted({_protocol(group) for group in real})
  for protocol in protocols:
    chosen = [group for group in real if _protocol(group) == protocol]
    blocks += [Heading(f'Long Range Arena, preset {protocol}'), *_arena(chosen)]
  return blocks


def _protocol(group: Group) -> str:
  return group.first['preset'] + (', quick' if group.first['quick'] else '')


def _arena(groups: list[Group]) -> list[Block]:
  tasks = [
    task
    for task in published.TASKS
    if any(group.first['task'] == task for group in groups)
  ]
  rows, marks = [], set()
  for name in sorted({group.name for group in groups}):
    own = {group.first['task']: group for group in groups if group.name == name}
    ours = {task: _marked(own[task]) if task in own else '' for task in tasks}
    marks |= {mark for cell in ours.values() for mark in '†‡' if mark in cell}
    means = [own[task].mean for task in AVERAGED if task in own]
    is_whole = len(means) == len(AVERAGED)
    average = _percent(statistics.fmean(means)) if is_whole else ''
    mechanism = next(iter(own.values())).first['mechanism']
    papers = [published.score(mechanism, task) for task in tasks]
    rows.append([name, 'ours', *ours.values(), average])
    if any(papers):
      source = next(paper[1] for paper in papers if paper)
      cells = [f'{paper[0]:.2f}' if paper else '' for paper in papers]
      rows.append([name, f'published: {source}', *cells, ''])
  header = ['mechanism', 'whose', *map(published.TASKS.get, tasks), 'average']
  blocks: list[Block] = [Table(header, rows)]
  text = (
    'Test accuracy in percent; mean ± standard deviation over (seeds). The '
    'average is over the five tasks without Path-X, where all are there. '
    'Published figures are of other code, sizes and budgets.'
  )
  if '†' in marks:
    text += ' † own files, not the prepared data of the task.'
  if '‡' in marks:
    text += ' ‡ images of our generator, not those of the release.'
  return [*blocks, Text(text)]


def _marked(group: Group) -> str:
  origin = group.first.get('origin', '')
  mark = '†' if origin.startswith('own files') else ''
  mark += '‡' if 'by our generator' in origin else ''
  return score(group) + mark


def score(group: Group) -> str:
  """`71.2 ± 0.4 (3)`, or `71.2 (1)`."""
  spread = f' ± {group.spread:.1f}' if group.spread is not None else ''
  return f'{_percent(group.mean)}{spread} ({len(group.runs)})'


def details(groups: Sequence[Group]) -> list[Block]:
  """For each task its floors, and a row for each group, the best first."""
  blocks: list[Block] = []
  for task, stand_in in sorted(
    {(group.first['task'], group.first['stand_in']) for group in groups}
  ):
    chosen = [
      group
      for group in groups
      if (group.first['task'], group.first['stand_in']) == (task, stand_in)
    ]
    title = published.TASKS.get(task, task)
    if stand_in:
      title += ' (stand-in, not a score of the task)'
    measure = chosen[0].measure
    if measure != 'accuracy':
      title += f': {in_words(measure)}'
    rows = [
      _detail(group) for group in sorted(chosen, key=lambda group: -group.mean)
    ]
    blocks += [Heading(title), _floors(chosen), Table(_HEADER, rows)]
  return blocks


_HEADER = (
  *('mechanism', 'protocol', 'test', 'above the floor', 'parameters'),
  *('GFLOP a step', 'MiB', 'budget', 'steps/s', 'minutes', 'device', 'commit'),
)


def _detail(group: Group) -> list[str]:
  first = group.first
  products = group.median('cost', 'products_per_step')
  memory = [
    group.median('cost', key)
    for key in ('state_and_batch_bytes', 'temporary_bytes')
  ]
  rate = group.median('steps_per_second')
  commits = sorted({(run.result['commit'] or '?')[:10] for run in group.runs})
  devices = sorted({run.result['device'] for run in group.runs})
  return [
    group.name,
    _protocol(group),
    score(group),
    f'{group.mean - group.floor[1]:+.1f}',
    f'{first["num_params"]:,}',
    '' if products is None else f'{products / 1e9:,.3g}',
    '' if None in memory else f'{sum(memory) / 2**20:,.0f}',
    f'{first["steps"]:,} x {first["batch_size"]} x {first["max_length"]:,}',
    '' if rate is None else f'{rate:.3g}',
    '' if rate is None else f'{first["steps"] / rate / 60:,.1f}',
    ', '.join(devices),
    ', '.join(commits),
  ]


def _floors(groups: list[Group]) -> Text:
  """Ranges, since floors are measured on the texts as each run cuts them."""
  measure = groups[0].measure
  unit = 'in percent' if measure == 'accuracy' else in_words(measure)
  names = sorted({name for group in groups for name in group.first['floors']})
  parts = []
  for name in names:
    values = [
      100 * group.first['floors'][name]
      for group in groups
      if name in group.first['floors']
    ]
    low, high = _percent(min(values)), _percent(max(values))
    parts.append(
      f'{name.replace("_", " ")} {low if low == high else f"{low} to {high}"}'
    )
  return Text(
    f'Floors, {unit}: {", ".join(parts)}. Budget: steps x batch x tokens. '
    'MiB: state, batch and temporary memory of a training step on a device. '
    'Minutes: of training steps, at their median rate.'
  )


def _percent(value: float) -> str:
  return f'{value:.1f}'
