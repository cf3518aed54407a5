"""What came of a compression: sizes, quality and speed beside the parent."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from effformer import errors
from effformer.compress import (
  artefact,
  choices,
  halves,
  latency_table,
  outputs,
  pipeline,
  places,
  quality,
  recipe,
  sizes,
  speed,
  tensors,
)
from effformer.compress.artefact import Compressed
from effformer.compress.places import Parent
from effformer.compress.tensors import QTensor
from effformer.models import build, encoder
from effformer.train import identity, preemption, result, screen


def measure(
  config: ml_collections.ConfigDict,
  parent: Parent,
  rows: Sequence[recipe.Step],
  folder: pathlib.Path,
  controls: Mapping[str, Compressed],
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """What compression.json holds.

  Scores are of the test split, which no step has seen.

  Args:
    config: with the steps.
    parent: what was compressed.
    rows: the recipe.
    folder: that it was carried out in.
    controls: the models of the controls, by name.
    stop: the signals.
    console: what people see.

  Raises:
    Preempted: asked to stop.
    ConfigError: a model cannot be timed at a shape of `compress.shapes`.
  """
  models = {speed.PARENT: parent.model}
  for number, place in enumerate(pipeline.folders(rows, folder)):
    name = f'{number}: {recipe.name_of(rows[number])}'
    models[name] = artefact.load(place)
  final = name
  models |= {f'control: {name}': model for name, model in controls.items()}

  def check() -> None:
    if stop.agree(0):
      raise errors.Preempted('stopped while measuring')

  with stop.loop():
    found = list(_beside(models, parent, check, console))
    shapes = [speed.shape(word) for word in config.compress.shapes]
    with console.heartbeat('timing, in turns'):
      times = speed.compare(_timed(parent.model, models[final]), shapes, check)
  dataset = parent.task.dataset
  return {
    'task': config.task,
    'dataset': dataset.name,
    'origin': dataset.origin,
    'stand_in': dataset.stand_in,
    'recipe': config.compress.recipe,
    'steps': [recipe.chosen(step) for step in rows],
    'floor_score': parent.task.score,
    'seed': parent.model.config.seed,
    'overridden': config.overridden,
    'parent_sha256': parent.model.parent_sha256,
    'final': final,
    'examples': len(dataset.splits['test']),
    'floors': parent.task.floors(),
    'models': found,
    'plan': plan(models[final]),
    'searches': searches(rows, folder),
    'speed': times,
    'device': result.device(),
    'machine': latency_table.machine(),
    'versions': identity.versions(),
    'commit': result.commit(),
  }


def _beside(models, parent, check, console):
  """Sizes and quality of each model; the first is the parent."""
  before = None
  for name, model in models.items():
    with console.heartbeat(f'testing {name}'):
      task = places.task_of(model, parent)
      after, label_N = outputs.of_split(model, task, 'test', check)
    before = after if before is None else before
    yield {
      'model': name,
      **sizes.sizes(model.params, artefact.num_bytes(model)),
      'quality': quality.beside(before, after, label_N),
    }


def _timed(parent, small):
  timed = {speed.PARENT: parent, 'compressed': small}
  if _words(small.params):
    timed['compressed, as numbers'] = small._replace(
      params=small.numbers, activations=''
    )
  return timed


def searches(
  rows: Sequence[recipe.Step], folder: pathlib.Path
) -> list[dict[str, Any]]:
  """What the policy has tried, see `choices`, in each step that asked it.

  Raises:
    CheckpointError: see `choices.tried`.
  """
  return [
    choices.tried(place)
    for step, place in zip(rows, pipeline.folders(rows, folder), strict=True)
    if isinstance(step, recipe.ChooseBits | recipe.ChooseUnits)
  ]


def plan(model: Compressed) -> list[dict[str, Any]]:
  """What each layer of a model is, and the bits of all matrices, in words.

  Returns:
    Rows with `part`, `shape` (what a layer is) and `bits`, 'twice' those of a
    matrix that is a sum of two.
  """
  layers = build.layer_configs(model.config, causal=model.causal)
  rows, words = [], _words(model.params)
  for index, (layer, name) in enumerate(
    zip(layers, encoder.layer_names(layers), strict=True)
  ):
    settings = dict(layer.settings)
    heads = settings.get('num_heads')
    rank = f', rank {layer.mlp_rank}' if layer.mlp_rank else ''
    shapes = {
      'mixer': f'{layer.mixer}, {heads} heads' if heads else layer.mixer,
      'mlp': f'{layer.mlp_width} columns, {layer.activation}{rank}',
    }
    if layer.bottleneck:
      width = model.config.model.width
      shapes['bottleneck'] = f'{width} to {layer.bottleneck} and back'
    for part, shape in shapes.items():
      path = f'encoder/{name}/{part}/'
      bits = {own for place, own in words.items() if place.startswith(path)}
      rows.append(
        {'part': f'layer {index} {part}', 'shape': shape, 'bits': _all(bits)}
      )
  for path, x in tensors.flatten(model.params).items():
    is_matrix = path in words or tensors.is_rounded(path, x)
    is_within = path.startswith('encoder/')
    if is_matrix and not is_within and not halves.is_other(path):
      shape = ' x '.join(map(str, x.shape))
      own = {words[path]} if path in words else set()
      rows.append({'part': path, 'shape': shape, 'bits': _all(own)})
  return rows


def _words(params) -> dict[str, str]:
  """Path of a matrix of codes -> its bits in words."""
  flat = tensors.flatten(params)
  twice = {halves.place(path) for path in flat if halves.is_other(path)}
  return {
    path: ('twice ' if path in twice else '') + _word(x.grid)
    for path, x in flat.items()
    if isinstance(x, QTensor) and not halves.is_other(path)
  }


def _word(grid) -> str:
  return (
    f'{grid.bits} a {grid.group}'
    + (f' of {grid.tile}' if grid.tile else '')
    + (f', {grid.rule}' if grid.rule not in ('extremes', 'clip') else '')
    + (f', {grid.keep} of {grid.of} inputs' if grid.keep else '')
  )


def _all(words: Iterable[str]) -> str:
  return ' and '.join(sorted(words)) or 'float32'


def lines(found: Mapping[str, Any]) -> list[str]:
  """The outcome for people."""
  by_name = {row['model']: row for row in found['models']}
  parent, small = by_name[speed.PARENT], by_name[found['final']]
  score = small['quality']['name']
  data = 'STAND-IN DATA (not a score)' if found['stand_in'] else 'real data'
  shown = [
    f'bytes on disk    {small["disk_bytes"]:,}  of {parent["disk_bytes"]:,} '
    f'({parent["disk_bytes"] / small["disk_bytes"]:.2f} times smaller)',
    f'parameters       {small["parameters"]:,}  of {parent["parameters"]:,}',
  ]
  for row in found['models']:
    own = row['quality']
    shown.append(
      f'test {score:<11} {100 * own["score"]:.2f}  '
      f'[{100 * own["low"]:.2f}, {100 * own["high"]:.2f}]  {row["model"]}'
    )
  for name, value in found['floors'].items():
    shown.append(
      f'floor            {100 * value:.2f}  {name} ({found["floor_score"]})'
    )
  for row in found['speed']:
    if row['model'] != speed.PARENT:
      shown.append(
        f'{row["batch"]:>4} x {row["length"]:<6,}    {row["ratio"]:.2f} times '
        f'the speed of the parent [{row["ratio_p25"]:.2f}, '
        f'{row["ratio_p75"]:.2f}]  {row["model"]}'
      )
  return [*shown, f'{found["task"]}, {data}, {found["examples"]:,} examples']
