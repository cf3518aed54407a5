"""--mode=generate: texts that a language model continues, token by token."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from effformer import data, errors
from effformer.models import build
from effformer.models.predictor import Predictor
from effformer.train import prediction, preemption, screen


class Sampling(NamedTuple):
  """How tokens are drawn.

  Attributes:
    num_tokens: tokens to write.
    temperature: logits are divided by it; 0 takes the most probable token.
    top_k: only the so many most probable tokens are drawn; 0 = all.
    sampling_seed: of the draws.
  """

  num_tokens: int = 200
  temperature: float = 1.0
  top_k: int = 0
  sampling_seed: int = 0


def generate(
  config: ml_collections.ConfigDict,
  path: str,
  given: Sequence[str],
  sampling: Sampling,
  stop: preemption.Stop,
  console: screen.Screen,
) -> list[bytes]:
  """What follows each given text; printed after it.

  Args:
    config: of the run, of a task whose model continues texts.
    path: its folder.
    given: texts, see `data.read_input`; none is one empty text.
    sampling: how.
    stop, console: as in `session.train`.

  Raises:
    ConfigError: the run is of another task, or a setting makes no sense.
    DataError: a text cannot be read.
    CheckpointError: the folder holds no evaluated run.
  """
  check(sampling)
  texts = [
    data.read_input(config.task, word) if word else b''
    for word in given or ['']
  ]
  task, params, _ = prediction.trained(config, path, stop, console)
  if task.decode is None:
    raise errors.ConfigError(
      f'a model of {task.name} continues no texts.\n'
      'Train one that does, for example --config=configs/language.py, or use '
      '--mode=predict.'
    )
  longest = max(map(len, texts)) + sampling.num_tokens
  if refusal := build.stream_refusal(config, longest):
    raise errors.ConfigError(
      f'this model cannot write: {refusal}.\n'
      'Use a smaller --num_tokens, or a model without such a limit.'
    )
  found = []
  for number, text in enumerate(texts):
    ids_T = task.encode(text, len(text))
    key = jax.random.fold_in(jax.random.key(sampling.sampling_seed), number)
    new_T = continue_row(task.model, params, ids_T, key, sampling)
    found.append(task.decode(np.asarray(new_T)))
    console.say('', (text + found[-1]).decode('utf-8', 'replace'))
  return found


def check(sampling: Sampling) -> None:
  """Raises ConfigError for what cannot be sampled."""
  for name, is_good, needed in (
    ('num_tokens', sampling.num_tokens >= 1, 'at least 1'),
    ('temperature', 0 <= sampling.temperature < float('inf'), 'at least 0'),
    ('top_k', sampling.top_k >= 0, 'at least 0 (0 = all)'),
    ('sampling_seed', 0 <= sampling.sampling_seed < 2**32, '0 to 4294967295'),
  ):
    if not is_good:
      raise errors.ConfigError(
        f'--{name}={getattr(sampling, name)} is out of range.\n'
        f'It has to be {needed}.'
      )


def continue_row(
  model: Predictor,
  params: Any,
  ids_T: np.ndarray,
  key: jax.Array,
  sampling: Sampling,
) -> jax.Array:
  """Ids [num_tokens] that follow `ids_T`; none of them is padding.

  The row is read in pieces of `max_length`; then each token is drawn from the
  logits of the one before it, and read by `Predictor.extend`, which is what the
  causal call gives (law of the contract), in constant time where the mechanism
  has a state of constant size.

  Raises:
    ConfigError: an empty row, where the model has no front vector.
  """
  if not len(ids_T) and not model.has_front:
    raise errors.ConfigError(
      'this model needs a text to begin with.\nGive --input=TEXT.'
    )
  return _written(
    model,
    # The program is one for all seeds.
    sampling._replace(sampling_seed=0),
    params,
    jnp.asarray(ids_T, jnp.int32)[None],
    key,
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _written(model, sampling, params, ids_1T, key):
  def extend(ids_1T, stream, is_first):
    logits_1TY, stream = model.apply(
      {'params': params},
      ids_1T,
      jnp.full((1,), ids_1T.shape[1]),
      stream,
      is_first=is_first,
      method='extend',
    )
    return logits_1TY[0, -1], stream

  def body(carry, key):
    logits_Y, stream = carry
    token = draw(logits_Y, key, sampling)
    return extend(token[None, None], stream, False), token

  num_tokens = ids_1T.shape[1]
  stream = model.init_stream(params, 1, num_tokens + sampling.num_tokens)
  num_whole = max(num_tokens - 1, 0) // model.max_length
  first = num_tokens - num_whole * model.max_length
  start = extend(ids_1T[:, :first], stream, True)
  pieces_N1T = ids_1T[:, first:].reshape(num_whole, 1, model.max_length)
  start, _ = jax.lax.scan(
    lambda carry, ids_1T: (extend(ids_1T, carry[1], False), None),
    start,
    pieces_N1T,
  )
  keys = jax.random.split(key, sampling.num_tokens)
  return jax.lax.scan(body, start, keys)[1]


def draw(logits_Y: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
  """An id by softmax(logits / temperature) over the top k; never padding."""
  logits_Y = logits_Y.at[data.PADDING].set(-jnp.inf)
  if not sampling.temperature:
    return jnp.argmax(logits_Y)
  size = logits_Y.shape[0]
  if 0 < sampling.top_k < size:
    least = jnp.sort(logits_Y)[size - sampling.top_k]
    logits_Y = jnp.where(logits_Y < least, -jnp.inf, logits_Y)
  # Less the largest: else a low temperature makes all of them -inf.
  logits_Y = (logits_Y - logits_Y.max()) / sampling.temperature
  return jax.random.categorical(key, logits_Y)
