"""Token ids to logits of tokens: hidden ones, or the next one of a stream."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.models import layers, norms, trunk


class Predictor(trunk.Trunk):
  """Logits over the vocabulary at every token; the trunk is a classifier's.

  With a front vector (`pooling='cls'`) there is one output more than there are
  tokens: the first comes from the front vector alone. Where the layers are
  causal, output i is what comes after so many tokens, and `extend` gives the
  same, some tokens at a time.

  Attributes:
    token_head: 'dense', `W y + b`; 'tied', `E y` with the embedding E (Press &
      Wolf 2017, 1608.05859), as in GPT-2; or 'transformed',
      `E norm(f(W y + b)) + c` with f of `head_activation`, as in BERT.
      With `embedding_width` E is the product of the two, [Y, E] [E, D].
    head_activation: key of `layers.ACTIVATIONS`.
    others: see `trunk.Trunk`.
  """

  token_head: str = 'dense'
  head_activation: str = 'gelu'

  def __post_init__(self):
    super().__post_init__()
    if self.token_head != 'dense' and self.front_end != 'embedding':
      raise ValueError(
        f"token_head={self.token_head!r} needs front_end='embedding', got "
        f'{self.front_end!r}'
      )

  def __call__(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    hidden_BT: jax.Array | None = None,
    *,
    types_BT: jax.Array | None = None,
    deterministic: bool = True,
    step: jax.Array | None = None,
  ) -> jax.Array:
    """Logits [B, T, Y], or [B, 1 + T, Y] with a front vector, float32.

    Args:
      ids_BT, lengths_B: rows.
      hidden_BT: bool, tokens that are not shown but to be guessed, or None.
      types_BT: types of the tokens, None for 0 everywhere.
      deterministic: False applies dropout.
      step: number of training steps so far.
    """
    return self._run(
      ids_BT, lengths_B, deterministic, step, hidden_BT, types_BT=types_BT
    )[0]

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
    # float32: the logits of a large vocabulary are summed over.
    return self._logits(y_BTD.astype(jnp.float32)), stream

  @nn.nowrap
  def _logits(self, y_BTD):
    if self.token_head == 'dense':
      return nn.Dense(self.vocabulary_size, name='head_tokens')(y_BTD)
    if self.token_head == 'tied':
      return self.tied_logits(self.narrowed(y_BTD))
    y_BTD = nn.Dense(self.width, name='head_in')(y_BTD)
    y_BTD = layers.ACTIVATIONS[self.head_activation](y_BTD)
    y_BTD = norms.norm(self.norm, self.norm_epsilon, name='head_norm')(y_BTD)
    bias_Y = self.param(
      'head_bias', nn.initializers.zeros, (self.vocabulary_size,)
    )
    return self.tied_logits(self.narrowed(y_BTD)) + bias_Y[None, None]

  def narrowed(self, y_BTD: jax.Array) -> jax.Array:
    """W y with the W [E, D] behind a table of width E; a method, as below."""
    if not self.embedding_width:
      return y_BTD
    return y_BTD @ self.get_variable('params', 'embedding_out')['kernel'].T

  def tied_logits(self, y_BTE: jax.Array) -> jax.Array:
    """E y; a method, so that tools can answer it in another way."""
    return y_BTE @ self.get_variable('params', 'embedding')['embedding'].T
