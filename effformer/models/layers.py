"""The parts of an encoder block that mix no tokens, or only neighbours."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import shapes
from effformer.attention import contract
from effformer.attention.primitives import short_conv

ACTIVATIONS = {
  # LRA's jax code uses the tanh form of GELU (Hendrycks & Gimpel 2016), GPT-2
  # too; BERT and ViT have x Phi(x) itself.
  'gelu': nn.gelu,
  'gelu_exact': functools.partial(nn.gelu, approximate=False),
  'relu': nn.relu,
  # Primer's (So et al. 2021, 2109.08668).
  'relu2': lambda x: jnp.square(nn.relu(x)),
  # Hendrycks & Gimpel 2016, section 2.
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}


def sinusoidal_positions(position_BT: jax.Array, width: int) -> jax.Array:
  """Fixed position vectors (Vaswani et al. 2017, section 3.5).

  `p[2i] = sin(pos / 10000^(2i/D))`, `p[2i+1] = cos(pos / 10000^(2i/D))`, the
  sines in the first half of the vector and the cosines in the second.

  Args:
    position_BT: int32, position of each token within its segment.
    width: D, even.

  Returns:
    float32 [B, T, D].
  """
  exponent_K = jnp.arange(width // 2, dtype=jnp.float32) / (width // 2)
  frequency_11K = (10_000.0**-exponent_K)[None, None]
  angle_BTK = position_BT[..., None].astype(jnp.float32) * frequency_11K
  return jnp.concatenate([jnp.sin(angle_BTK), jnp.cos(angle_BTK)], axis=-1)


def patches(u_BT: jax.Array, patch_size: int, channels: int) -> jax.Array:
  """Square patches of square images, in reading order.

  Args:
    u_BT: images, row by row; the channels of a pixel beside each other.
    patch_size: P, pixels; a divisor of the side of the image.
    channels: C.

  Returns:
    [B, number of patches, P P C], a patch in the order of its image.
  """
  side = math.isqrt(u_BT.shape[1] // channels)
  if side * side * channels != u_BT.shape[1] or side % patch_size:
    raise ValueError(
      f'{u_BT.shape[1]} values are no square image of {channels} channel(s) '
      f'whose side is a multiple of patch_size={patch_size}'
    )
  number = side // patch_size
  u_BNPNPC = u_BT.reshape(-1, number, patch_size, number, patch_size, channels)
  return u_BNPNPC.transpose(0, 1, 3, 2, 4, 5).reshape(
    u_BT.shape[0], number * number, -1
  )


class DepthwiseConvolution(nn.Module):
  """Short convolution over tokens, one filter per channel, plus identity.

  `y_t = x_t + sum_o w_o ⊙ x_{t+o}` for offsets o of a centred window, where
  only tokens of the same segment contribute: padding and packed neighbours
  are never read. It gives byte models the n-grams that a mixer without
  locality learns slowly.

  Attributes:
    taps: window size in tokens, odd.
    causal: only offsets o <= 0. The parameters stay the same, so that those of
      a causal model serve one that sees both ways; the other taps rest.
    dtype: compute dtype.
  """

  taps: int
  causal: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    tokens: shapes.Tokens,
    state: short_conv.Tail | None = None,
  ) -> tuple[jax.Array, short_conv.Tail | None]:
    """The output and, where causal and given a state, the state after it.

    The state holds the last real tokens of each row (`init_state`).
    """
    taps, reach = self.taps, self.taps // 2
    # Variance 1/W: the sum over the window keeps the scale of its input.
    filter_WD = self.param(
      'filter', nn.initializers.normal(taps**-0.5), (taps, x_BTD.shape[-1])
    ).astype(self.dtype)
    if self.causal:
      past_WD = filter_WD[: reach + 1][::-1]
      if state is None:
        y_BTD = short_conv.batch(x_BTD, past_WD, tokens.segment_BT)
      else:
        y_BTD, state = jax.vmap(short_conv.stream, (0, None, 0, 0))(
          x_BTD, past_WD, tokens.segment_BT, state
        )
      return x_BTD + y_BTD, state
    num_tokens = x_BTD.shape[1]
    pad = ((0, 0), (reach, reach))
    padded_BSD = jnp.pad(x_BTD, (*pad, (0, 0)))
    segment_BS = jnp.pad(tokens.segment_BT, pad)
    y_BTD = x_BTD
    for tap in range(taps):
      same_BT = segment_BS[:, tap : tap + num_tokens] == tokens.segment_BT
      neighbour_BTD = padded_BSD[:, tap : tap + num_tokens]
      kept_BTD = jnp.where(same_BT[..., None], neighbour_BTD, 0)
      y_BTD = y_BTD + kept_BTD * filter_WD[None, None, tap]
    return y_BTD, None

  @nn.nowrap
  def init_state(
    self, batch_size: int, width: int, dtype: jnp.dtype = jnp.float32
  ) -> short_conv.Tail:
    """The state before the first token."""
    tail = short_conv.empty(self.taps // 2 + 1, width, dtype)
    return contract.repeated(tail, batch_size)


class FeedForward(nn.Module):
  """`y = W_2 f(W_1 x + b_1) + b_2`, position by position.

  With a rank each W is a product of two matrices, `in_low` and `in`, `out_low`
  and `out`, without a bias between them.

  Attributes:
    width: F, width of the hidden layer.
    activation: key of `ACTIVATIONS`.
    dropout: rate on the hidden layer.
    chunk: tokens of each row that are worked on together, one such part after
      the other, 0 = all: the hidden layer of one part is the only one there is,
      also in the backward pass, which computes it again. It changes nothing
      but the masks of the dropout.
    rank: r, so that W_1 is [D, r] [r, F] and W_2 is [F, r] [r, D]; 0 = full.
    dtype: compute dtype; parameters are float32.
  """

  width: int
  activation: str = 'gelu'
  dropout: float = 0.0
  chunk: int = 0
  rank: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array, *, deterministic: bool) -> jax.Array:
    def part(module, _, x_BCD):
      return None, module.apply_to(x_BCD, deterministic)

    num_tokens = x_BTD.shape[1]
    if not self.chunk or num_tokens <= self.chunk:
      return self.apply_to(x_BTD, deterministic)
    num_parts = -(-num_tokens // self.chunk)
    rest = num_parts * self.chunk - num_tokens
    padded_BSD = jnp.pad(x_BTD, ((0, 0), (0, rest), (0, 0)))
    parts_BNCD = padded_BSD.reshape(
      x_BTD.shape[0], num_parts, self.chunk, x_BTD.shape[-1]
    )
    over_parts = nn.scan(
      nn.remat(part),
      variable_broadcast='params',
      split_rngs={'params': False, 'dropout': True},
      in_axes=1,
      out_axes=1,
    )
    _, y_BNCD = over_parts(self, None, parts_BNCD)
    return y_BNCD.reshape(padded_BSD.shape)[:, :num_tokens]

  @nn.nowrap
  def apply_to(self, x_BTD, deterministic):
    def dense(x, features, name, use_bias=True):
      return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(1e-6),
        name=name,
      )(x)

    def product(x, features, name):
      if self.rank:
        x = dense(x, self.rank, f'{name}_low', use_bias=False)
      return dense(x, features, name)

    hidden_BTF = ACTIVATIONS[self.activation](product(x_BTD, self.width, 'in'))
    hidden_BTF = nn.Dropout(self.dropout)(
      hidden_BTF, deterministic=deterministic
    )
    return product(hidden_BTF, x_BTD.shape[-1], 'out')
