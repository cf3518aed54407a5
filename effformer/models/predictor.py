"""Token ids to logits of tokens: hidden ones, or the next one of a stream."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.models import trunk


class Predictor(trunk.Trunk):
  """Logits over the vocabulary at every token; the trunk is a classifier's.

  With a front vector (`pooling='cls'`) there is one output more than there are
  tokens: the first comes from the front vector alone. Where the layers are
  causal, output i is what comes after so many tokens, and `extend` gives the
  same, some tokens at a time.
  """

  def __call__(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    hidden_BT: jax.Array | None = None,
    *,
    deterministic: bool = True,
    step: jax.Array | None = None,
  ) -> jax.Array:
    """Logits [B, T, Y], or [B, 1 + T, Y] with a front vector, float32.

    Args:
      ids_BT, lengths_B: rows.
      hidden_BT: bool, tokens that are not shown but to be guessed, or None.
      deterministic: False applies dropout.
      step: number of training steps so far.
    """
    return self._run(ids_BT, lengths_B, deterministic, step, hidden_BT)[0]

  def extend(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    stream: trunk.Stream,
    *,
    is_first: bool,
  ) -> tuple[jax.Array, trunk.Stream]:
    """Logits after further tokens, and the stream after them.

    Args:
      ids_BT, lengths_B: the tokens; T may be 0 where a front vector comes.
      stream: what was read before; `init_stream` before the first call.
      is_first: whether nothing was read before: the front vector comes first.
    """
    has_front = self.has_front and is_first
    return self._run(ids_BT, lengths_B, stream=stream, has_front=has_front)

  @nn.nowrap
  def init_stream(
    self, params: Any, batch_size: int, max_length: int
  ) -> trunk.Stream:
    """The stream before anything was read.

    Args:
      params: of this model.
      batch_size: B, rows.
      max_length: tokens of a row that there must be room for.

    Raises:
      NotImplementedError: for mixers that are not causal, or have no stream.
    """
    state = self._encoder().init_state(
      params['encoder'], batch_size, max_length + self.has_front, self.width
    )
    return trunk.Stream(state, jnp.zeros((batch_size,), jnp.int32))

  @nn.compact
  def _run(self, *arguments, **keywords):
    y_BTD, _, stream = self._tokens(*arguments, **keywords)
    head = nn.Dense(self.vocabulary_size, name='head_tokens')
    # float32: the logits of a large vocabulary are summed over.
    return head(y_BTD.astype(jnp.float32)), stream
