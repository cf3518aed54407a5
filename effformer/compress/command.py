"""--mode=compress: a parent, a recipe, its controls, and what came of it all.

    WORKDIR/config.json        the config, with the steps of the recipe
    WORKDIR/parent             the run of the parent, unless another is given
    WORKDIR/recipe             what the steps left, see `pipeline`
    WORKDIR/controls/NAME      the same of each control
    WORKDIR/latencies.json     times of parts of layers, for `choose_units`
    WORKDIR/model              the compressed model (`artefact`)
    WORKDIR/data.json          names of the classes, for --mode=predict
    WORKDIR/compression.json   sizes, quality, speed

Interrupted, it goes on where it was; the measurements at the end are made anew,
and so they are when other shapes are to be timed.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from effformer import config as config_lib
from effformer import durable, errors, tasks
from effformer.compress import (
  artefact,
  measuring,
  needs,
  outputs,
  pipeline,
  recipe,
  speed,
  step_kinds,
)
from effformer.compress.places import Parent
from effformer.train import (
  identity,
  prediction,
  preemption,
  screen,
  session,
  workdir,
)

MODEL = 'model'
# How a run is measured, not what it makes.
MAY_CHANGE = (*workdir.MAY_CHANGE, 'compress.shapes')


def compress(
  config: ml_collections.ConfigDict,
  path: str,
  stop: preemption.Stop,
  console: screen.Screen,
) -> dict[str, Any]:
  """Carries out the recipe of a config; what compression.json holds.

  Args:
    config: the locked config.
    path: of the folder.
    stop: the signals.
    console: what people see.

  Raises:
    ConfigError: there is no recipe, it cannot work, or does not fit the model;
      as far as the config tells, before anything is trained (`needs`).
    DataError, CheckpointError, NonFiniteError, Preempted: see `session.train`.
  """
  if jax.process_count() > 1:
    raise errors.ConfigError('compressing needs one process.\nStart one.')
  rows = recipe.read(_rows(config))
  needs.check(config, rows)
  plain = without_steps(config)
  with workdir.open_workdir(path) as folder:
    console.say(f'folder: {folder}')
    console.say(
      *workdir.check_config(
        folder, config_lib.to_json_dict(config), allowed=MAY_CHANGE
      )
    )
    done = durable.read_json(folder / workdir.COMPRESSION)
    if done is not None and _is_timed(done, config):
      console.say(
        f'{folder} holds a finished compression:', *measuring.lines(done)
      )
      return done
    parent_path = config.compress.parent
    if not parent_path:
      parent_path = str(folder / 'parent')
      session.train(plain, parent_path, stop, console)
    parent = pipeline.parent_of(plain, parent_path, stop, console)
    parent = _seeded(parent, config.compress.seed)
    small = pipeline.run(
      parent,
      rows,
      folder / 'recipe',
      stop,
      console,
      times=folder / pipeline.TIMES,
    )
    identity.write_data(folder, parent.task.dataset)
    artefact.save(small, folder / MODEL)
    others = _controls(config, rows, parent, folder, stop, console)
    found = measuring.measure(
      config, parent, rows, folder / 'recipe', others, stop, console
    )
    place = folder / workdir.COMPRESSION
    durable.replace(place, durable.dumps(found, indent=1).encode())
    console.say('', *measuring.lines(found), f'written to {place}')
    return found


def predict(
  config: ml_collections.ConfigDict,
  path: str,
  given: Sequence[str],
  console: screen.Screen,
) -> list[dict[str, Any]]:
  """`prediction.predict` by the compressed model, computed with its codes.

  Args:
    config: of the compression.
    path: its folder.
    given: inputs, see there.
    console: what people see.

  Raises:
    ConfigError, DataError: see there.
    CheckpointError: the folder holds no compressed model.
  """
  folder = pathlib.Path(path)
  model = artefact.load(folder / MODEL)
  task = tasks.make(model.config, identity.known_data(folder, config.task))
  run = outputs.function(model, task)
  console.say(f'by {folder / MODEL}')
  if task.dataset.stand_in:
    console.say('trained on a STAND-IN: generated, not the real data')
  return prediction.said(
    task,
    lambda rows: run(model.params, rows),
    given,
    config.data.max_length,
    console,
  )


def _seeded(parent: Parent, seed: int) -> Parent:
  """The parent, whose children are trained and chosen by another seed."""
  if seed < 0:
    return parent
  config = config_lib.changed(parent.model.config, {'seed': seed})
  return parent._replace(model=parent.model._replace(config=config))


def without_steps(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The config of the run whose model is compressed."""
  own = filter(None, config.overridden.split(','))
  left = (key for key in own if not key.startswith('compress.'))
  return config_lib.changed(
    config,
    {
      'compress': config_lib.neutral({}).compress.to_dict(),
      'overridden': ','.join(left),
    },
  )


def _is_timed(done, config) -> bool:
  """Whether what was measured is of the shapes that are asked for."""
  wanted = {tuple(speed.shape(word)) for word in config.compress.shapes}
  rows = done.get('speed', ())
  return {(row['batch'], row['length']) for row in rows} == wanted


def _rows(config) -> list[dict[str, Any]]:
  found = config.compress.steps
  if not found:
    raise errors.ConfigError(
      '--mode=compress needs steps, and this config has none.\n'
      'For example: --config=configs/compress_minilm.py:int8-storage'
    )
  return [found[str(number)].to_dict() for number in range(len(found))]


def controls(rows: Sequence[recipe.Step]) -> dict[str, tuple]:
  """Name -> the recipe without one of its ideas, of those that it has.

  untrained    nothing is trained
  no_teacher   students learn from labels alone, for as many steps
  random       units are chosen at random, as many
  nearest      codes are the nearest ones, of as many bits
  dense        no weights leave by a pattern, codes have fewer bits
  uniform      codes are of the same bits everywhere, within the budget; of
               each layer the same share of units leaves
  """
  rows, replace = tuple(rows), dataclasses.replace
  changes = {
    'no_teacher': (
      recipe.Train,
      lambda s: replace(s, lesson=step_kinds.LABELS),
    ),
    'random': (recipe.Prune | recipe.ChooseUnits, _at_random),
    'nearest': (
      recipe.Round,
      lambda s: replace(s, method='nearest', batches=recipe.Round.batches),
    ),
    'dense': (recipe.Round, lambda s: s.dense),
    'uniform': (recipe.ChooseBits | recipe.ChooseUnits, lambda s: s.uniform),
  }
  found = {
    'untrained': tuple(s for s in rows if not isinstance(s, recipe.Train)),
    **{
      name: tuple(change(s) if isinstance(s, kind) else s for s in rows)
      for name, (kind, change) in changes.items()
    },
  }
  return {name: own for name, own in found.items() if own and own != rows}


def _at_random(step):
  is_prune = isinstance(step, recipe.Prune)
  # Of `prune`, batches are read no more.
  batches = recipe.Prune.batches if is_prune else step.batches
  return dataclasses.replace(step, score='random', batches=batches)


def _controls(config, rows, parent, folder, stop, console):
  """Name -> the model of each control."""
  found = {}
  if config.compress.controls:
    for name, other in controls(rows).items():
      console.say(f'control: {name}')
      place = folder / 'controls' / name
      found[name] = pipeline.run(
        parent, other, place, stop, console, times=folder / pipeline.TIMES
      )
  return found
