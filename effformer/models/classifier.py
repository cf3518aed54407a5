"""Token ids to class logits: front end, encoder, pooling, head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import shapes
from effformer.models import encoder, layers

# LRA's learned position table starts this small (common_layers.py).
LEARNED_POSITION_STDDEV = 0.02


class Classifier(nn.Module):
  """Sequence classifier over token ids, id 0 being padding.

  `logits = head(pool(encoder(f(ids) + P)))`, where f looks up an embedding E,
  or maps ids that are quantities, such as grey values, to u w + b with
  u = 2 (id - 1) / (Y - 2) - 1 from -1 to 1. Rows are right-padded to a common
  length and masked everywhere: neither the number nor the content of padding
  changes the logits of a row. A row of length 0 gives the head's value at the
  zero vector (mean) or at the lone CLS token (cls).

  Attributes:
    vocabulary_size: Y, padding included.
    num_classes: number of logits.
    width: D.
    layers: one `LayerConfig` a block.
    max_length: longest row in tokens, the CLS token not counted.
    front_end: 'embedding', or 'continuous' for ids that are quantities.
    position: 'none', 'sinusoidal' or 'learned'; rotary positions are a setting
      of the mixers.
    pooling: 'mean' over the row's tokens, or 'cls', the output at a learned
      vector put before the row.
    head_width: hidden width of the head (ReLU), 0 for a linear head.
    norm_order, dropout, dtype, remat, reversible, extra_tokens: see
      `encoder.Encoder`. Extra tokens stand before the CLS token; they are
      neither counted in `max_length` nor pooled.
  """

  vocabulary_size: int
  num_classes: int
  width: int
  layers: tuple[encoder.LayerConfig, ...]
  max_length: int
  front_end: str = 'embedding'
  position: str = 'none'
  pooling: str = 'mean'
  head_width: int = 0
  norm_order: str = 'pre'
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  reversible: bool = False
  extra_tokens: int = 0

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
    if ids_BT.shape[1] > self.max_length:
      raise ValueError(
        f'rows of {ids_BT.shape[1]} tokens, but max_length={self.max_length}'
      )
    x_BTD = self._front_end(ids_BT)
    if self.pooling == 'cls':
      cls_D = self.param('cls', nn.initializers.zeros, (self.width,))
      cls_B1D = jnp.broadcast_to(
        cls_D.astype(self.dtype), (x_BTD.shape[0], 1, self.width)
      )
      x_BTD = jnp.concatenate([cls_B1D, x_BTD], axis=1)
      lengths_B = lengths_B + 1
    tokens = shapes.Tokens.from_lengths(lengths_B, x_BTD.shape[1])
    tokens = tokens.replace(step=step)
    x_BTD = self._add_positions(x_BTD, tokens)
    x_BTD = nn.Dropout(self.dropout)(x_BTD, deterministic=deterministic)
    y_BTD = encoder.Encoder(
      self.layers,
      norm_order=self.norm_order,
      dropout=self.dropout,
      dtype=self.dtype,
      remat=self.remat,
      reversible=self.reversible,
      extra_tokens=self.extra_tokens,
      name='encoder',
    )(x_BTD, tokens=tokens, deterministic=deterministic)
    return self._pool(y_BTD, tokens)

  def _front_end(self, ids_BT):
    if self.front_end == 'continuous':
      u_BT = 2 * (ids_BT - 1) / (self.vocabulary_size - 2) - 1
      return nn.Dense(self.width, dtype=self.dtype, name='values')(
        u_BT[..., None].astype(self.dtype)
      )
    return nn.Embed(
      self.vocabulary_size,
      self.width,
      embedding_init=nn.initializers.normal(1.0),
      dtype=self.dtype,
      name='embedding',
    )(ids_BT)

  def _add_positions(self, x_BTD, tokens):
    if self.position == 'none':
      return x_BTD
    if self.position == 'sinusoidal':
      position_BTD = layers.sinusoidal_positions(tokens.position_BT, self.width)
    else:
      table_SD = self.param(
        'positions',
        nn.initializers.normal(LEARNED_POSITION_STDDEV),
        (self.max_length + (self.pooling == 'cls'), self.width),
      )
      position_BTD = table_SD[tokens.position_BT]
    return x_BTD + position_BTD.astype(self.dtype)

  def _pool(self, y_BTD, tokens):
    if self.pooling == 'cls':
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
