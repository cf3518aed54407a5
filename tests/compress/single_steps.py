"""An untrained parent of two unlike layers, and single steps on it."""

import jax

from effformer import config as config_lib
from effformer import tasks
from effformer.compress import places, recipe, steps
from effformer.compress.artefact import Compressed
from effformer.train import preemption
from tests.train.tiny_run import quiet_screen, tiny_config, write_examples


def untrained(folder):
  """The parent, with its examples in this folder."""
  config = tiny_config(
    'full',
    **write_examples(folder, train=40, validation=21, test=7),
    model__num_layers=2,
    model__dropout=0.0,
    train__batch_size=8,
    train__eval_batch_size=8,
    train__eval_every_steps=1,
  )
  config = config_lib.changed(
    config, {'model.layers': {'1': {'mlp_width': 7, 'num_heads': 2}}}
  )
  task = tasks.make(config)
  params = jax.device_get(jax.jit(task.init)(jax.random.key(1)))
  model = Compressed(config, 'classifier', 257, 2, False, params, '0' * 64)
  return places.Parent(model, task)


def place_of(parent, folder, found):
  """Where steps are carried out."""
  return places.Place(
    parent,
    found,
    preemption.Stop(),
    quiet_screen(),
    (0, 1),
    folder,
    folder.parent / 'times.json',
  )


def carry(parent, folder, *rows, model=None):
  """The model after the first of the steps, and what was printed."""
  found = recipe.read(rows)
  place = place_of(parent, folder, found)
  act = steps.CARRY[type(found[0])]
  after = act(found[0], model or parent.model, place)
  return after, place.console.console.file.getvalue()
