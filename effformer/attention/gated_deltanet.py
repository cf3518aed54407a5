"""Gated DeltaNet (Yang et al. 2025, 2412.06464), and DeltaNet.

    S_i = alpha_i S_{i-1} + beta_i k_i (v_i - alpha_i S_{i-1}^T k_i)^T
    o_i = S_i^T q_i / sqrt(K)

    [q k v] = silu(conv(x [W_q W_k W_v])), q and k of norm 1
    beta = m sigmoid(x W_b)      log alpha = -exp(A) softplus(x W_a + b)
    y = (RMSNorm(o) * swish(x W_g)) W_o

The state is a dictionary: what it holds at a key is replaced, by the share
beta. `delta='plain'` is DeltaNet (Schlag et al. 2021, 2102.11174; Yang et al.
2024, 2406.06484): alpha = 1 and y = RMSNorm(o) W_o. Cost: time
T (K V + C (K + V) + C^2) with chunks of C tokens, memory
T (2 K + V) + T K V / C. The state of a stream is K x V numbers a head and
W - 1 inputs of the convolution.

V is 2K (the paper's), with `delta='plain'` K. The decay acts before the state
is read at the key. exp(A) starts uniform in (0, 16), softplus(b) log-uniform in
[0.001, 0.1].

Not supported: rotary positions, which the papers have not; a context and
relative biases, since there are no logits; fewer heads of keys and values,
since decay and rate belong to the heads of the queries.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention import recurrent
from effformer.attention.contract import Supports
from effformer.attention.recurrent import SUPPORTS, Recurrent
from effformer.shapes import Array, DTypeLike, Tokens


class GatedDeltaNetAttention(Recurrent):
  """Linear attention whose state is corrected, not added to.

  Attributes:
    delta: 'gated' (decay, and a gate on the output) or 'plain' (DeltaNet).
    taps: tokens, length of the short convolution.
    max_rate: m, in (0, 2]; above 1 the state may change its sign at a key.
  """

  mechanism: ClassVar[str] = 'gated_deltanet'
  supports: ClassVar[Supports] = SUPPORTS
  has_carry: ClassVar[bool] = True

  delta: str = 'gated'
  taps: int = 4
  max_rate: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    self.one_of('delta', ('gated', 'plain'))
    self.at_least('taps', 1)
    if not 0.0 < self.max_rate <= 2.0:
      raise ValueError(
        f'{self.mechanism}: max_rate must be in (0, 2], got {self.max_rate}'
      )

  def project(
    self, x_BTD: Array, context_BSD: Array, tokens: Tokens, carry: Any
  ):
    """See `MultiHead`."""
    (*streams, _), _ = super().project(x_BTD, context_BSD, tokens, None)
    (q_BTHK, k_BTHK, v_BTHV), carry = self.convolve(
      streams, tokens, carry, self.taps
    )
    rate_BTH = self.exact_projection('rate', self.num_heads)(x_BTD)
    more = {'beta': self.max_rate * jax.nn.sigmoid(rate_BTH)}
    if self.delta == 'gated':
      more['decay'] = self._decay(x_BTD)
    q_BTHK, k_BTHK = recurrent.l2_norm(q_BTHK), recurrent.l2_norm(k_BTHK)
    return (q_BTHK, k_BTHK, v_BTHV, more), carry

  @nn.nowrap
  def _decay(self, x_BTD):
    """log alpha, float32."""
    shape = (self.num_heads,)
    log_rate_H = self.param('log_rate', recurrent.start_log_rate(0, 16), shape)
    bias_H = self.param('step_bias', recurrent.start_step_bias, shape)
    step_BTH = self.exact_projection('step', self.num_heads)(x_BTD)
    step_BTH = jax.nn.softplus(step_BTH + bias_H[None, None])
    return -jnp.exp(log_rate_H)[None, None] * step_BTH

  @nn.nowrap
  def width_of_value(self, width: int | None, key_width: int) -> int:
    """See `Recurrent`."""
    factor = 2 if self.delta == 'gated' else 1
    return self.value_width or factor * key_width

  @nn.nowrap
  def carry_state(self, batch_size: int, dtype: DTypeLike):
    """See `MultiHead`: the tail of the convolution."""
    width = 2 * self.known_head_width() + self.known_value_width()
    return self.tail_state(batch_size, self.taps, self.num_heads * width, dtype)

  def refine(self, o_BTHV: Array, x_BTD: Array) -> Array:
    """See `MultiHead`."""
    if self.delta == 'gated':
      return super().refine(o_BTHV, x_BTD)
    return self.norm(o_BTHV)
