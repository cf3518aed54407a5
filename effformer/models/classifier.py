"""Token ids to class logits: trunk, pooling, head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.models import trunk


class Classifier(trunk.Trunk):
  """Sequence classifier over token ids, id 0 being padding.

  `logits = head(pool(trunk(ids)))`. A row of length 0 gives the head's value at
  the zero vector (mean) or at the lone CLS token (cls).

  Attributes:
    num_classes: number of logits.
    pooling: 'mean' over the row's tokens, or 'cls', the output at a learned
      vector put before the row.
    head_width: hidden width of the head (ReLU), 0 for a linear head.
    others: see `trunk.Trunk`.
  """

  num_classes: int = 2
  head_width: int = 0

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    *,
    deterministic: bool = True,
    step: jax.Array | None = None,
  ) -> jax.Array:
    return self._head(self._pooled(ids_BT, lengths_B, deterministic, step))

  def _pooled(self, ids_BT, lengths_B, deterministic, step):
    y_BTD, tokens, _ = self._tokens(ids_BT, lengths_B, deterministic, step)
    return self._pool(y_BTD, tokens)

  def _pool(self, y_BTD, tokens):
    if self.has_front:
      return y_BTD[:, 0].astype(jnp.float32)
    keep_BT1 = tokens.keep_BT[..., None]
    # float32: a bfloat16 sum over thousands of tokens loses its last bits.
    total_BD = jnp.where(keep_BT1, y_BTD, 0).astype(jnp.float32).sum(axis=1)
    count_B1 = keep_BT1.sum(axis=1)
    return total_BD / jnp.maximum(count_B1, 1)

  def _head(self, pooled_BD):
    if self.head_width:
      pooled_BD = nn.relu(nn.Dense(self.head_width, name='head_in')(pooled_BD))
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
      x_BF = nn.relu(nn.Dense(self.head_width, name='head_in')(x_BF))
      x_BF = nn.relu(nn.Dense(self.head_width // 2, name='head_middle')(x_BF))
    return nn.Dense(self.num_classes, name='head_out')(x_BF)
