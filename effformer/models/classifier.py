"""Token ids to class logits: trunk, pooling, head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.models import trunk

# BERT's pooler has tanh.
HEAD_ACTIVATIONS = {'relu': nn.relu, 'tanh': nn.tanh}


class Pooled(trunk.Trunk):
  """A trunk and one vector for each row.

  Attributes:
    pooling: 'mean' over the row's tokens, or 'cls', the output at a learned
      vector put before the row, or 'first', that at the row's first token.
    others: see `trunk.Trunk`.
  """

  def _pooled(self, ids_BT, lengths_B, deterministic, step, types_BT=None):
    y_BTD, tokens, _ = self._tokens(
      ids_BT, lengths_B, deterministic, step, types_BT=types_BT
    )
    return self._pool(y_BTD, tokens)

  def _pool(self, y_BTD, tokens):
    if self.pooling != 'mean':
      return y_BTD[:, 0].astype(jnp.float32)
    keep_BT1 = tokens.keep_BT[..., None]
    # float32: a bfloat16 sum over thousands of tokens loses its last bits.
    total_BD = jnp.where(keep_BT1, y_BTD, 0).astype(jnp.float32).sum(axis=1)
    count_B1 = keep_BT1.sum(axis=1)
    return total_BD / jnp.maximum(count_B1, 1)


class Classifier(Pooled):
  """Sequence classifier over token ids.

  `logits = head(pool(trunk(ids)))`, head(x) = W_2 f(W_1 x + b_1) + b_2. A row
  of length 0 gives the head's value at the zero vector (mean) or at the lone
  CLS token (cls).

  Attributes:
    num_classes: number of logits.
    head_width: hidden width of the head, 0 for a linear head.
    head_activation: f, a key of `HEAD_ACTIVATIONS`.
    others: see `Pooled`.
  """

  num_classes: int = 2
  head_width: int = 0
  head_activation: str = 'relu'

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    *,
    types_BT: jax.Array | None = None,
    deterministic: bool = True,
    step: jax.Array | None = None,
  ) -> jax.Array:
    return self._head(
      self._pooled(ids_BT, lengths_B, deterministic, step, types_BT)
    )

  def _head(self, pooled_BD):
    if self.head_width:
      activation = HEAD_ACTIVATIONS[self.head_activation]
      hidden_BF = nn.Dense(self.head_width, name='head_in')(pooled_BD)
      pooled_BD = activation(hidden_BF)
    return nn.Dense(self.num_classes, name='head_out')(pooled_BD)


class PairClassifier(Classifier):
  """Classifier of pairs of sequences: one encoder, used twice.

  With a, b = pool(encoder(...)) of the two,

    'nli':     logits = head([a, b, a * b, a - b])
    'concat':  logits = head([a, b]), the head with one layer more, of half the
               width

  The first is the head of the LRA paper (Tay et al. 2021, appendix A.2), the
  second what its repository trains. Both rows of a pair go through the encoder
  in one call, so that B pairs are a batch of 2 B.

  Attributes:
    pair_head: 'nli' or 'concat'.
  """

  pair_head: str = 'nli'

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    other_ids_BT: jax.Array,
    other_lengths_B: jax.Array,
    *,
    deterministic: bool = True,
    step: jax.Array | None = None,
  ) -> jax.Array:
    pooled_BD = self._pooled(
      jnp.concatenate([ids_BT, other_ids_BT]),
      jnp.concatenate([lengths_B, other_lengths_B]),
      deterministic,
      step,
    )
    a_BD, b_BD = jnp.split(pooled_BD, 2)
    if self.pair_head == 'nli':
      features = [a_BD, b_BD, a_BD * b_BD, a_BD - b_BD]
      return self._head(jnp.concatenate(features, axis=-1))
    x_BF = jnp.concatenate([a_BD, b_BD], axis=-1)
    if self.head_width:
      activation = HEAD_ACTIVATIONS[self.head_activation]
      x_BF = activation(nn.Dense(self.head_width, name='head_in')(x_BF))
      middle = nn.Dense(self.head_width // 2, name='head_middle')
      x_BF = activation(middle(x_BF))
    return nn.Dense(self.num_classes, name='head_out')(x_BF)
