"""Norms of the residual stream and of heads; mixers have their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

KINDS = ('layer', 'rms', 'affine')


class Affine(nn.Module):
  """`y = scale * x + bias`, channel by channel, without statistics.

  NoNorm of MobileBERT (Sun et al. 2020, 2004.02984, section 3.3).

  Attributes:
    dtype: compute dtype, None for that of the input; parameters are float32.
  """

  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    shape = x_BTD.shape[-1:]
    scale_D = self.param('scale', nn.initializers.ones, shape)
    bias_D = self.param('bias', nn.initializers.zeros, shape)
    dtype = self.dtype or jnp.result_type(x_BTD, jnp.float32)
    # float32 inside, as in the other two.
    x_BTD = x_BTD.astype(jnp.float32)
    return (x_BTD * scale_D[None, None] + bias_D[None, None]).astype(dtype)


def norm(
  kind: str,
  epsilon: float,
  *,
  dtype: jnp.dtype | None = None,
  name: str | None = None,
) -> nn.Module:
  """A norm over the last axis, with statistics in float32.

    'layer':   scale (x - mean(x)) / sqrt(var(x) + epsilon) + bias
    'rms':     scale x / sqrt(mean(x^2) + epsilon)
    'affine':  scale x + bias

  Of the mean and variance of a token (Ba et al. 2016, 1607.06450), of its root
  mean square (Zhang & Sennrich 2019, 1910.07467, equation 4), or of neither.

  Args:
    kind: one of `KINDS`.
    epsilon: see above.
    dtype: compute dtype, None for that of the input.
    name: of its parameters.
  """
  if kind == 'layer':
    return nn.LayerNorm(epsilon, dtype=dtype, name=name)
  if kind == 'rms':
    return nn.RMSNorm(epsilon, dtype=dtype, name=name)
  if kind == 'affine':
    return Affine(dtype, name=name)
  raise ValueError(f'no norm {kind!r}; there are {", ".join(KINDS)}')
