"""Token ids to vectors of tokens: front end, positions, encoder."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import shapes
from effformer.models import encoder, layers, norms

# LRA's learned position table starts this small (common_layers.py).
LEARNED_POSITION_STDDEV = 0.02


class Stream(NamedTuple):
  """What has been read of each row.

  Attributes:
    layers: the state of the encoder.
    count_B: int32, tokens so far, the front vector among them.
  """

  layers: encoder.State
  count_B: jax.Array


def ids_per_token(front_end: str, patch_size: int, channels: int) -> int:
  """How many ids make a token; see `Trunk`."""
  return patch_size**2 * channels if front_end == 'patches' else 1


class Trunk(nn.Module):
  """What classifiers and predictors of tokens have in common.

  `y = encoder(f(ids) + P + S)`, where f looks up an embedding E, or maps ids
  that are quantities, such as grey values, to u w + b with
  u = 2 (id - 1) / (Y - 2) - 1 from -1 to 1; of patches, all u of a patch to
  W u + b (Dosovitskiy et al. 2021, 2010.11929, equation 1). S are vectors of
  the types of the tokens (Devlin et al. 2019, 1810.04805). Rows are
  right-padded to a common length and masked everywhere: neither the number nor
  the content of padding changes what comes out at a real token.

  Attributes:
    vocabulary_size: Y, padding included.
    width: D.
    layers: one `LayerConfig` a block.
    max_length: longest row in ids, the CLS token not counted.
    front_end: 'embedding'; 'continuous' for ids that are quantities; or
      'patches' for quantities of square images, row by row, the channels of a
      pixel beside each other: a token is then a patch.
    patch_size: pixels of a side of a patch.
    channels: quantities of a pixel of patches.
    embedding_width: E, where the embedding is a table of vectors of width E
      and a matrix [E, D] behind it (ALBERT, Lan et al. 2020, 1909.11942,
      section 3.1); 0 = a table of width D. What is added to it is of width D.
    position: 'none', 'sinusoidal' or 'learned'; rotary positions are a setting
      of the mixers.
    token_types: number of types that tokens are of, 0 = none.
    embedding_norm: a norm of what enters the encoder.
    zero_is_padding: quantities of 0 (id 1), the black of images, are masked as
      padding is; as LRA has it.
    pooling: 'cls' puts a learned vector before each row; see the heads.
    norm_order, norm, norm_epsilon, dropout, dtype, remat, reversible,
      layer_drop, extra_tokens, unrolled: see `encoder.Encoder`. Extra tokens
      stand before the CLS token; they are neither counted in `max_length` nor
      among what comes out.
  """

  vocabulary_size: int
  width: int
  layers: tuple[encoder.LayerConfig, ...]
  max_length: int
  front_end: str = 'embedding'
  patch_size: int = 1
  channels: int = 1
  embedding_width: int = 0
  position: str = 'none'
  token_types: int = 0
  embedding_norm: bool = False
  zero_is_padding: bool = False
  pooling: str = 'mean'
  norm_order: str = 'pre'
  norm: str = 'layer'
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  reversible: bool = False
  layer_drop: float = 0.0
  extra_tokens: int = 0
  unrolled: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.embedding_width and self.front_end != 'embedding':
      raise ValueError(
        f"embedding_width={self.embedding_width} needs front_end='embedding', "
        f'got {self.front_end!r}'
      )

  @property
  def ids_per_token(self) -> int:
    """How many ids make a token."""
    return ids_per_token(self.front_end, self.patch_size, self.channels)

  @property
  def has_front(self) -> bool:
    """Whether a learned vector stands before each row."""
    return self.pooling == 'cls'

  @nn.nowrap
  def num_tokens(self, num_ids: int) -> int:
    """What blocks see of a row of ids, with all that stands before it."""
    own = num_ids // self.ids_per_token
    return own + self.has_front + self.extra_tokens

  @nn.nowrap
  def _tokens(
    self,
    ids_BT,
    lengths_B,
    deterministic=True,
    step=None,
    hidden_BT=None,
    stream=None,
    has_front=None,
    types_BT=None,
  ):
    """Vectors of the tokens, which of them are real, and the stream after them.

    Args:
      ids_BT, lengths_B, deterministic, step: see `Classifier`.
      hidden_BT: at which tokens a learned vector takes the place of f(ids).
      stream: what was read before, where these are further tokens.
      has_front: whether the front vector comes first; None for `pooling`.
      types_BT: types of the tokens, None for 0 everywhere.
    """
    x_BTD, tokens, lengths_B = self._embedded(
      ids_BT, lengths_B, step, hidden_BT, stream, has_front, types_BT
    )
    x_BTD = nn.Dropout(self.dropout)(x_BTD, deterministic=deterministic)
    blocks = self._encoder()
    if stream is None:
      y_BTD = blocks(x_BTD, tokens=tokens, deterministic=deterministic)
    else:
      y_BTD, state = blocks.extend(x_BTD, stream.layers, tokens=tokens)
      stream = Stream(state, stream.count_B + lengths_B)
    return y_BTD, tokens, stream

  @nn.compact
  def embedded(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    types_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, shapes.Tokens]:
    """What enters the first block, and which tokens are real."""
    return self._embedded(ids_BT, lengths_B, types_BT=types_BT)[:2]

  @nn.compact
  def vectors(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    *,
    types_BT: jax.Array | None = None,
  ) -> jax.Array:
    """Vectors of the tokens, [B, T, D]; behind a row they mean nothing."""
    return self._tokens(ids_BT, lengths_B, types_BT=types_BT)[0]

  @nn.nowrap
  def _embedded(
    self,
    ids_BT,
    lengths_B,
    step=None,
    hidden_BT=None,
    stream=None,
    has_front=None,
    types_BT=None,
  ):
    if ids_BT.shape[1] > self.max_length:
      raise ValueError(
        f'rows of {ids_BT.shape[1]} tokens, but max_length={self.max_length}'
      )
    x_BTD = self._front_end(ids_BT)
    lengths_B = lengths_B // self.ids_per_token
    if self.token_types:
      x_BTD = x_BTD + self._types(types_BT, x_BTD)
    if hidden_BT is not None:
      mask_D = self.param('mask', nn.initializers.normal(1.0), (self.width,))
      x_BTD = jnp.where(
        hidden_BT[..., None], mask_D.astype(self.dtype)[None, None], x_BTD
      )
    if self.has_front if has_front is None else has_front:
      x_BTD = jnp.concatenate([self._front(x_BTD.shape[0]), x_BTD], axis=1)
      lengths_B = lengths_B + 1
    tokens = shapes.Tokens.from_lengths(lengths_B, x_BTD.shape[1])
    tokens = tokens.replace(step=step)
    if self.zero_is_padding:
      num_front = x_BTD.shape[1] - ids_BT.shape[1]
      black_BT = ids_BT == 1
      if hidden_BT is not None:
        # To be guessed, and so not to be told by being left out.
        black_BT &= ~hidden_BT
      black_BT = jnp.pad(black_BT, ((0, 0), (num_front, 0)))
      segment_BT = jnp.where(black_BT, 0, tokens.segment_BT)
      tokens = tokens.replace(segment_BT=segment_BT)
    if stream is not None:
      position_BT = tokens.position_BT + stream.count_B[:, None]
      tokens = tokens.replace(position_BT=position_BT)
    x_BTD = self._add_positions(x_BTD, tokens)
    if self.embedding_norm:
      norm = norms.norm(
        self.norm, self.norm_epsilon, dtype=self.dtype, name='norm_in'
      )
      x_BTD = norm(x_BTD)
    return x_BTD, tokens, lengths_B

  @nn.nowrap
  def _encoder(self):
    return encoder.Encoder(
      self.layers,
      norm_order=self.norm_order,
      norm=self.norm,
      norm_epsilon=self.norm_epsilon,
      dropout=self.dropout,
      dtype=self.dtype,
      remat=self.remat,
      reversible=self.reversible,
      layer_drop=self.layer_drop,
      extra_tokens=self.extra_tokens,
      unrolled=self.unrolled,
      name='encoder',
    )

  @nn.nowrap
  def _front(self, batch_size):
    cls_D = self.param('cls', nn.initializers.zeros, (self.width,))
    return jnp.broadcast_to(
      cls_D.astype(self.dtype), (batch_size, 1, self.width)
    )

  @nn.nowrap
  def _front_end(self, ids_BT):
    if self.front_end != 'embedding':
      u_BT = 2 * (ids_BT - 1) / (self.vocabulary_size - 2) - 1
      u_BTC = u_BT[..., None]
      if self.front_end == 'patches':
        u_BTC = layers.patches(u_BT, self.patch_size, self.channels)
      return nn.Dense(self.width, dtype=self.dtype, name='values')(
        u_BTC.astype(self.dtype)
      )
    x_BTE = nn.Embed(
      self.vocabulary_size,
      self.embedding_width or self.width,
      embedding_init=nn.initializers.normal(1.0),
      dtype=self.dtype,
      name='embedding',
    )(ids_BT)
    if not self.embedding_width:
      return x_BTE
    return nn.Dense(
      self.width, use_bias=False, dtype=self.dtype, name='embedding_out'
    )(x_BTE)

  @nn.nowrap
  def _types(self, types_BT, x_BTD):
    table = nn.Embed(
      self.token_types,
      self.width,
      embedding_init=nn.initializers.normal(1.0),
      dtype=self.dtype,
      name='types',
    )
    if types_BT is None:
      types_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32)
    return table(types_BT)

  @nn.nowrap
  def _add_positions(self, x_BTD, tokens):
    if self.position == 'none':
      return x_BTD
    if self.position == 'sinusoidal':
      position_BTD = layers.sinusoidal_positions(tokens.position_BT, self.width)
    else:
      table_SD = self.param(
        'positions',
        nn.initializers.normal(LEARNED_POSITION_STDDEV),
        (self.max_length // self.ids_per_token + self.has_front, self.width),
      )
      position_BTD = table_SD[tokens.position_BT]
    return x_BTD + position_BTD.astype(self.dtype)
