"""What a model says of examples: probabilities of classes, or unit vectors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from effformer import data
from effformer.compress import running
from effformer.compress.artefact import Compressed
from effformer.shapes import Array
from effformer.tasks.task import Task, stacked


def rows(task: Task, batch: data.Batch) -> tuple[Array, ...]:
  """ids_BT and lengths_B of all texts of a batch, types_BT if there are any."""
  if 'other_ids_BT' in task.inputs:
    return tuple(stacked(batch).values())
  return tuple(batch[name] for name in task.inputs)


def first_batches(
  task: Task, config: ml_collections.ConfigDict, number: int, skip: int = 0
) -> Iterator[data.Batch]:
  """Batches of the train split, in the order of the seed, of evaluation's size.

  Args:
    task: of the data.
    config: of the run.
    number: of batches.
    skip: how many come before them.
  """
  for step in range(skip, skip + number):
    yield data.batch_at(
      task.dataset.splits['train'],
      task.encode,
      step,
      seed=config.seed,
      batch_size=config.train.eval_batch_size,
      max_length=config.data.max_length,
      encode_pair=task.encode_pair,
    )


def function(model: Compressed, task: Task) -> Callable[[Any, Any], Array]:
  """(parameters, batch) -> probabilities [B, C], or unit vectors [B, 2, D].

  Parameters that are codes are computed with as codes.
  """
  module, activations = model.module, model.activations or None

  @jax.jit
  def run(params, batch):
    y = running.apply(
      module, params, **task.arguments(batch), activations=activations
    )
    if task.stacks_texts:
      return jnp.stack(jnp.split(y, 2), axis=1)
    return jax.nn.softmax(y.astype(jnp.float32))

  def of_inputs(params, batch):
    # What else a batch holds, such as names, is no array to be traced.
    return run(params, {name: batch[name] for name in task.inputs})

  return of_inputs


def of_batches(
  model: Compressed,
  task: Task,
  batches: Iterable[data.Batch],
  after_batch: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
  """Outputs and labels of the examples in batches, without what fills them."""
  run, found, labels = function(model, task), [], []
  for batch in batches:
    is_real_B = np.asarray(batch['weight_B']) > 0
    found.append(np.asarray(run(model.params, batch))[is_real_B])
    labels.append(np.asarray(batch['label_B'])[is_real_B])
    after_batch()
  return np.concatenate(found), np.concatenate(labels)


def of_split(
  model: Compressed,
  task: Task,
  split: str,
  after_batch: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
  """Outputs and labels of all examples of a split, in order."""
  config = model.config
  with data.eval_batches(
    task.dataset.splits[split],
    task.encode,
    batch_size=config.train.eval_batch_size,
    max_length=config.data.max_length,
    num_threads=config.data.num_threads,
    prefetch=config.data.prefetch,
    encode_pair=task.encode_pair,
  ) as batches:
    return of_batches(model, task, batches, after_batch)
