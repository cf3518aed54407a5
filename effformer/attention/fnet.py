"""FNet: tokens are mixed by a Fourier transform (Lee-Thorp et al. 2021,
2105.03824).

    y = Re(F_T (F_D x)),   (F_N x)_k = sum_n x_n exp(-2 pi i k n / N)

over the width D, then over the tokens. There is nothing to train. Cost: time
T D (log T + log D), memory T D.

Padding is zeroed before. The frequencies are those of the whole row, so more
padding on the right changes the result: pad all rows to one length.

The order of the two is free. x is real, hence F_T x has the symmetry of a real
signal, and half of it is enough: Re y[T - t, k] = Re y[t, -k], indices modulo T
and D. Whole rows are copied then, which on a CPU takes half the time of halving
the width.

`unitary` divides by sqrt(T D) (ours), so that the output is of the size of the
input; without it, as in the paper, it is sqrt(T D) times larger, which fits
layer norms behind the residual branches, and outweighs all other branches where
they are in front.

Not supported: causal, hence streaming; packing; a context; positions are not
needed. Transforms are float32 in any compute dtype. Dropout acts on the output
(the paper has none).
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.model_width import ModelWidth
from effformer.shapes import Array


class FNetMixer(ModelWidth):
  """Real part of the two-dimensional discrete Fourier transform.

  Attributes:
    unitary: divide by sqrt(T D).
    dropout: probability, in [0, 1), on the output.
    dtype: of the output.
  """

  mechanism: ClassVar[str] = 'fnet'
  supports: ClassVar[Supports] = Supports(
    linear_time=True, linear_memory=True, any_padding=False
  )

  unitary: bool = False

  @nn.compact
  def mix(self, x_BTD, tokens, state, deterministic):
    """See `ModelWidth`."""
    x_BTD = jnp.where(tokens.keep_BT[..., None], x_BTD, 0)
    y_BTD = transform(x_BTD.astype(jnp.float32))
    if self.unitary:
      y_BTD /= math.sqrt(y_BTD.shape[1] * y_BTD.shape[2])
    y_BTD = y_BTD.astype(self.dtype)
    return nn.Dropout(self.dropout)(y_BTD, deterministic), None


def transform(x_BTD: Array) -> Array:
  """Re(F_T (F_D x)), float32."""
  length = x_BTD.shape[1]
  half_BND = jnp.fft.fft(jnp.fft.rfft(x_BTD, axis=1), axis=-1).real
  # Frequencies above T / 2, from T - 1 down: those of 1, 2, ... at -k.
  above_BND = half_BND[:, 1 : (length + 1) // 2]
  above_BND = jnp.roll(jnp.flip(above_BND, axis=-1), 1, axis=-1)
  return jnp.concatenate([half_BND, jnp.flip(above_BND, axis=1)], axis=1)
