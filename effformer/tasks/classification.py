"""Classification of sequences: cross-entropy, accuracy, any encoder."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from effformer import data
from effformer.models import build
from effformer.tasks import floors, task


def from_config(
  config: ml_collections.ConfigDict,
  tokenizer: data.Tokenizer,
  own_floors: Callable[[data.Dataset], dict[str, float]],
) -> task.Task:
  """The task `config.task` on its data set, or on the user's own data.

  Args:
    config: the whole config.
    tokenizer: of the texts.
    own_floors: data set -> floors beside that of the majority.
  """
  dataset = data.from_config(config.task, config.data)
  model = build.sequence_classifier(
    config, tokenizer.vocab_size, dataset.num_classes
  )
  splits = dataset.splits

  def measure_floors() -> dict[str, float]:
    majority = floors.majority(splits['train'], splits['test'])
    return {'majority': majority, **own_floors(dataset)}

  return make(
    config.task,
    dataset,
    tokenizer.encode,
    model,
    config.data.max_length,
    measure_floors,
  )


def make(
  name: str,
  dataset: data.Dataset,
  encode: Callable[[bytes, int], np.ndarray],
  model: nn.Module,
  max_length: int,
  measure_floors: Callable[[], dict[str, float]],
) -> task.Task:
  """Joins a data set of labelled sequences with a classifier.

  The loss of an example is `-log softmax(logits)[label]`, in nats.
  """

  def init(key: jax.Array) -> Any:
    ids_BT = jnp.zeros((1, max_length), jnp.int32)
    lengths_B = jnp.full((1,), max_length, jnp.int32)
    return model.init(key, ids_BT, lengths_B)['params']

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
      batch['ids_BT'],
      batch['lengths_B'],
      deterministic=False,
      step=step,
      rngs={'dropout': key},
    )
    values = jax.tree.map(jnp.mean, per_example(logits_BC, batch))
    return values.pop('loss'), values

  def measure(params, batch):
    logits_BC = model.apply(
      {'params': params}, batch['ids_BT'], batch['lengths_B']
    )
    return per_example(logits_BC, batch)

  return task.Task(
    name, dataset, encode, model, init, objective, measure, measure_floors
  )
