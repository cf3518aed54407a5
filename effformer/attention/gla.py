"""Gated linear attention (Yang et al. 2024, 2312.06635).

    S_i = diag(alpha_i) S_{i-1} + k_i v_i^T        o_i = S_i^T q_i / sqrt(K)
    alpha_i = sigmoid(x_i W_1 W_2 + b)^{1/16}, one number for each channel of k
    y = (RMSNorm(o) * swish(x W_g)) W_o

Cost: time T (K V + C (K + V)) with chunks of C tokens, twice that within parts
of 16 tokens, memory T (2 K + V) + T K V / C. The state of a stream is K x V
numbers a head.

The paper has K = D / (2 H), V = D / H: where no width is set, these are taken.
Decay tells the order of the tokens; positions are not added.

Not supported: rotary positions, which the paper has not; a context and relative
biases, since there are no logits; fewer heads of keys and values, since the
decay belongs to the heads of the queries.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from effformer.attention.contract import Supports
from effformer.attention.recurrent import SUPPORTS, Recurrent
from effformer.shapes import Array, Tokens

# The root of the gate: a longer memory at the start of training.
ROOT = 16


class GatedLinearAttention(Recurrent):
  """Linear attention with a decay made from the token, by channel.

  K is D / (2 H) where `head_width` is None, V is 2K where `value_width` is 0.

  Attributes:
    gate_rank: width between the two matrices that make the decay.
  """

  mechanism: ClassVar[str] = 'gla'
  supports: ClassVar[Supports] = SUPPORTS

  gate_rank: int = 16

  def __post_init__(self):
    super().__post_init__()
    self.at_least('gate_rank', 1)

  def project(
    self, x_BTD: Array, context_BSD: Array, tokens: Tokens, carry: Any
  ):
    """See `MultiHead`."""
    (q_BTHK, k_BTHK, v_BTHV, _), carry = super().project(
      x_BTD, context_BSD, tokens, carry
    )
    low_BTM = self.exact_projection('decay_low', self.gate_rank)(x_BTD)
    logit_BTHK = self.exact_projection(
      'decay', k_BTHK.shape[2:], use_bias=True
    )(low_BTM)
    decay_BTHK = jax.nn.log_sigmoid(logit_BTHK) / ROOT
    return (q_BTHK, k_BTHK, v_BTHV, {'decay': decay_BTHK}), carry

  @nn.nowrap
  def width_of_head(self, width: int) -> int:
    """See `MultiHead`."""
    if self.head_width is not None:
      return self.head_width
    if width % (2 * self.num_heads):
      raise ValueError(
        f'{self.mechanism}: width {width} is not a multiple of 2 num_heads '
        f'= {2 * self.num_heads}; set head_width'
      )
    return width // (2 * self.num_heads)
