"""Guessing tokens: the next one, or hidden ones; a model learns its data.

With p = softmax(logits) over the vocabulary and i the guessed tokens,

    loss = mean_i -log p_i[token_i]      in nats; bits = loss / ln 2

- causal: every token from those before it. With a front vector the first token
  is guessed too, without one it is only shown.
- masked: each token of a row is hidden with probability f and guessed from the
  others (Devlin et al. 2018, without their replacements; Amos et al. 2024).
  What is hidden is a function of the row's number in an evaluation, so that
  two evaluations score the same tokens.

Means are over tokens, not rows. The texts of a pair are rows of their own.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from effformer import data
from effformer.data.dataset import Windows
from effformer.models import build
from effformer.models.predictor import Predictor
from effformer.tasks import floors, task
from effformer.tasks.classification import ONE_TEXT


def language(
  config: ml_collections.ConfigDict, dataset: data.Dataset
) -> task.Task:
  """Byte language modelling: the next byte of texts cut into windows."""
  tokenizer, length = data.ByteTokenizer(), config.data.max_length
  splits = {
    name: Windows(source, length) for name, source in dataset.splits.items()
  }
  dataset = dataclasses.replace(dataset, splits=splits)
  model = build.token_predictor(config, tokenizer.vocab_size, causal=True)

  def measure_floors() -> dict[str, float]:
    return floors.next_byte(splits['train'], splits['test'])

  if refusal := build.stream_refusal(config):
    note = f'this model can be trained and scored, but not write: {refusal}'
    dataset = dataclasses.replace(dataset, notes=(*dataset.notes, note))
  made = make(
    config.task, dataset, tokenizer.encode, model, length, 'causal', ONE_TEXT
  )
  return dataclasses.replace(
    made, floors=measure_floors, decode=tokenizer.decode
  )


def pretraining(config: ml_collections.ConfigDict, own: task.Task) -> task.Task:
  """The self-pretraining of a task: to guess the tokens of its own inputs.

  Args:
    config: of the stage.
    own: the task itself, whose trunk the stage trains.

  Amos, Berant, Gupta 2024, "Never train from scratch".
  """
  objective = config.pretrain.objective
  model = build.token_predictor(
    config, own.model.vocabulary_size, causal=objective == 'causal'
  )
  return make(
    own.name,
    own.dataset,
    own.encode,
    model,
    config.data.max_length,
    objective,
    own.inputs,
    config.pretrain.mask_fraction,
  )


def make(
  name: str,
  dataset: data.Dataset,
  encode: Callable,
  model: Predictor,
  max_length: int,
  objective: str,
  inputs: tuple[str, ...],
  mask_fraction: float = 0.0,
) -> task.Task:
  """Joins texts with a predictor of their tokens; see the top of this file."""

  def init(key):
    ids_BT = jnp.zeros((1, max_length), jnp.int32)
    hidden = (ids_BT > 0,) if objective == 'masked' else ()
    return model.init(key, ids_BT, jnp.full((1,), max_length), *hidden)[
      'params'
    ]

  def guesses(params, ids_BT, lengths_B, uniform_BT, **keywords):
    """Logits, the tokens they are about, and 1.0 where they count."""
    apply = functools.partial(model.apply, {'params': params}, **keywords)
    real_BT = jnp.arange(ids_BT.shape[1])[None] < lengths_B[:, None]
    if objective == 'masked':
      hidden_BT = real_BT & (uniform_BT < mask_fraction)
      logits_BTY = apply(ids_BT, lengths_B, hidden_BT)
      return logits_BTY[:, int(model.has_front) :], ids_BT, hidden_BT
    logits_BTY = apply(ids_BT, lengths_B)[:, :-1]
    shown = 0 if model.has_front else 1
    return logits_BTY, ids_BT[:, shown:], real_BT[:, shown:]

  def sums(params, batch, uniform, rngs=lambda number: None, **keywords):
    """For each row the sums over its guessed tokens, and their number."""
    texts = zip(inputs[::2], inputs[1::2], strict=True)
    total: dict[str, jax.Array] = {}
    for number, (ids, lengths) in enumerate(texts):
      logits_BTY, ids_BT, counts_BT = guesses(
        params, batch[ids], batch[lengths], uniform(number, batch[ids].shape),
        rngs=rngs(number), **keywords,
      )  # fmt: skip
      weight_BT = counts_BT.astype(jnp.float32)
      loss_BT = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTY, ids_BT
      )
      hit_BT = jnp.argmax(logits_BTY, axis=-1) == ids_BT
      own = {
        'loss': (loss_BT * weight_BT).sum(axis=1),
        'accuracy': (hit_BT * weight_BT).sum(axis=1),
        'tokens': weight_BT.sum(axis=1),
      }
      total = {k: total.get(k, 0.0) + value_B for k, value_B in own.items()}
    return total

  def per_token(sums, count):
    loss = sums['loss'] / count
    return {
      'loss': loss,
      'accuracy': sums['accuracy'] / count,
      'bits': loss / jnp.log(2.0),
    }

  def train_objective(params, batch, key, step):
    def uniform(number, shape):
      return jax.random.uniform(jax.random.fold_in(key, 2 * number + 1), shape)

    def rngs(number):
      return {'dropout': jax.random.fold_in(key, 2 * number)}

    sums_B = sums(params, batch, uniform, rngs, deterministic=False, step=step)
    total = jax.tree.map(jnp.sum, sums_B)
    values = per_token(total, jnp.maximum(total['tokens'], 1))
    return values.pop('loss'), {**values, 'tokens': total['tokens']}

  def measure(params, batch):
    def uniform(number, shape):
      keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(number), batch['index_B']
      )
      return jax.vmap(lambda k: jax.random.uniform(k, shape[1:]))(keys_B)

    total = sums(params, batch, uniform)
    values = per_token(total, jnp.maximum(total['tokens'], 1))
    return {**values, 'tokens': total['tokens']}

  return task.Task(
    name,
    dataset,
    encode,
    model,
    init,
    train_objective,
    measure,
    None,
    dict,
    inputs,
    select='bits',
    is_lower_better=True,
  )
