"""The parts of an encoder block that mix no tokens, or only neighbours."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import shapes

ACTIVATIONS = {
  # LRA's jax code uses the tanh form of GELU (Hendrycks & Gimpel 2016).
  'gelu': nn.gelu,
  'relu': nn.relu,
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


class DepthwiseConvolution(nn.Module):
  """Short convolution over tokens, one filter per channel, plus identity.

  `y_t = x_t + sum_o w_o ⊙ x_{t+o}` for offsets o of a centred window, where
  only tokens of the same segment contribute: padding and packed neighbours
  are never read. It gives byte models the n-grams that a mixer without
  locality learns slowly.

  Attributes:
    taps: window size in tokens, odd.
    dtype: compute dtype.
  """

  taps: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array, tokens: shapes.Tokens) -> jax.Array:
    taps, reach = self.taps, self.taps // 2
    # Variance 1/W: the sum over the window keeps the scale of its input.
    filter_WD = self.param(
      'filter', nn.initializers.normal(taps**-0.5), (taps, x_BTD.shape[-1])
    ).astype(self.dtype)
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
    return y_BTD


class FeedForward(nn.Module):
  """`y = W_2 f(W_1 x + b_1) + b_2`, position by position.

  Attributes:
    width: F, width of the hidden layer.
    activation: key of `ACTIVATIONS`.
    dropout: rate on the hidden layer.
    dtype: compute dtype; parameters are float32.
  """

  width: int
  activation: str = 'gelu'
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array, *, deterministic: bool) -> jax.Array:
    def dense(features: int, name: str) -> nn.Dense:
      return nn.Dense(
        features,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(1e-6),
        name=name,
      )

    hidden_BTF = ACTIVATIONS[self.activation](dense(self.width, 'in')(x_BTD))
    hidden_BTF = nn.Dropout(self.dropout)(
      hidden_BTF, deterministic=deterministic
    )
    return dense(x_BTD.shape[-1], 'out')(hidden_BTF)
