"""Classification of sequences: cross-entropy, accuracy, any encoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from effformer import data
from effformer.models import build
from effformer.tasks import floors, task

# What a classifier of one text takes, and one of two, each in its own row or
# both in one.
ONE_TEXT = ('ids_BT', 'lengths_B')
TWO_TEXTS = (*ONE_TEXT, 'other_ids_BT', 'other_lengths_B')
ONE_ROW = (*ONE_TEXT, 'types_BT')


class Measures(NamedTuple):
  """Further measures.

  Attributes:
    per_example: (logits [B, C], labels [B]) -> values [B] by name.
    summarise: see `Task`.
  """

  per_example: Callable[[jax.Array, jax.Array], dict[str, jax.Array]]
  summarise: Callable[[dict[str, Any]], dict[str, Any]]


def from_config(
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  tokenizer: data.Tokenizer,
  own_floors: Callable[[], dict[str, float]],
  build_model: Callable[..., nn.Module] = build.sequence_classifier,
  inputs: tuple[str, ...] = ONE_TEXT,
  more: Measures | None = None,
) -> task.Task:
  """The task `config.task` on a data set.

  Args:
    config: the whole config.
    dataset: the official one, a stand-in, or the user's own.
    tokenizer: of the texts.
    own_floors: () -> floors beside that of the majority.
    build_model: (config, vocabulary size, number of classes) -> the network.
    inputs: of the network, as a batch names them.
    more: see `make`.
  """
  model = build_model(config, tokenizer.vocab_size, dataset.num_classes)

  def measure_floors() -> dict[str, float]:
    splits = dataset.splits
    majority = floors.majority(splits['train'], splits['test'])
    return {'majority': majority, **own_floors()}

  return make(
    config.task,
    dataset,
    tokenizer.encode,
    model,
    config.data.max_length,
    measure_floors,
    inputs,
    more,
  )


def make(
  name: str,
  dataset: data.Dataset,
  encode: Callable[[bytes, int], np.ndarray],
  model: nn.Module,
  max_length: int,
  measure_floors: Callable[[], dict[str, float]],
  inputs: tuple[str, ...] = ONE_TEXT,
  more: Measures | None = None,
) -> task.Task:
  """Joins a data set of labelled sequences with a classifier.

  The loss of an example is `-log softmax(logits)[label]`, in nats. `more` are
  measures of an evaluation beside loss and accuracy.
  """

  def init(key: jax.Array) -> Any:
    arrays = {
      name: jnp.zeros((1, max_length), jnp.int32)
      if name.endswith('BT')
      else jnp.full((1,), max_length, jnp.int32)
      for name in inputs
    }
    return model.init(key, **arrays)['params']

  def per_example(logits_BC, batch):
    label_B = batch['label_B']
    return {
      'loss': optax.softmax_cross_entropy_with_integer_labels(
        logits_BC, label_B
      ),
      'accuracy': (jnp.argmax(logits_BC, axis=-1) == label_B).astype(
        jnp.float32
      ),
    }

  def objective(params, batch, key, step):
    logits_BC = model.apply(
      {'params': params},
      **{name: batch[name] for name in inputs},
      deterministic=False,
      step=step,
      rngs={'dropout': key},
    )
    values = jax.tree.map(jnp.mean, per_example(logits_BC, batch))
    return values.pop('loss'), values

  def logits(params, batch):
    return model.apply(
      {'params': params}, **{name: batch[name] for name in inputs}
    )

  def measure(params, batch):
    logits_BC = logits(params, batch)
    values = per_example(logits_BC, batch)
    if more:
      values |= more.per_example(logits_BC, batch['label_B'])
    return values

  def predict(params, batch):
    return jax.nn.softmax(logits(params, batch).astype(jnp.float32))

  return task.Task(
    name,
    dataset,
    encode,
    model,
    init,
    objective,
    measure,
    predict,
    measure_floors,
    inputs,
    summarise=more.summarise if more else dict,
  )
