"""State space duality of Mamba-2 (Dao & Gu 2024, 2405.21060).

    S_i = exp(Delta_i A) S_{i-1} + k_i (Delta_i v_i)^T   o_i = S_i^T q_i + d v_i

    [q k v] = silu(conv(x [W_q W_k W_v]))    (C, B and x of the paper)
    Delta = softplus(x W_Delta + b)          A = -exp(a) < 0
    y = RMSNorm(o * swish(x W_g)) W_o

Heads have their own A, d and Delta; q and k are shared by the heads of a group,
and so are their products. Cost: time T (K V + C (K + V)) a head with chunks of
C tokens, memory T (K + V) + T K V / C. The state of a stream is K x V numbers
a head and W - 1 inputs of the convolution.

K is the paper's N (64 to 128 there), V its P. V is 2D / H where it is not set,
which is the paper's expansion of 2. exp(a) starts uniform in [1, 16),
softplus(b) log-uniform in [0.001, 0.1], d at 1. The norm goes over the heads of
a group together. The products have no scale 1 / sqrt(K).

Not supported: rotary positions, which the paper has not; a context and relative
biases, since there are no logits; fewer heads of keys and values, since here
values are what heads do not share.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention import recurrent
from effformer.attention.contract import State, Supports
from effformer.attention.multihead import Head
from effformer.attention.primitives import recurrence
from effformer.attention.recurrent import SUPPORTS, Recurrent
from effformer.shapes import Array, DTypeLike, Tokens


class Mamba2Attention(Recurrent):
  """Selective state space, as linear attention with a decay for each head.

  What the bases call a head is a group here: q and k of one group, and the
  values of its R heads side by side.

  Attributes:
    num_groups: G, groups of heads with queries and keys of their own; divides
      num_heads.
    taps: tokens, length of the short convolution.
  """

  mechanism: ClassVar[str] = 'mamba2'
  supports: ClassVar[Supports] = SUPPORTS
  has_carry: ClassVar[bool] = True

  num_groups: int = 1
  taps: int = 4

  def __post_init__(self):
    super().__post_init__()
    self.at_least('taps', 1)
    if self.num_groups < 1 or self.num_heads % self.num_groups:
      raise ValueError(
        f'{self.mechanism}: num_groups must divide num_heads '
        f'{self.num_heads}, got {self.num_groups}'
      )

  def project(
    self, x_BTD: Array, context_BSD: Array, tokens: Tokens, carry: Any
  ):
    """See `MultiHead`."""
    key_width = self.width_of_head(x_BTD.shape[-1])
    value_width = self.width_of_value(x_BTD.shape[-1], key_width)
    groups = self.num_groups
    streams = (
      self.projection('query', (groups, key_width))(x_BTD),
      self.projection('key', (groups, key_width))(x_BTD),
      self.projection('value', (self.num_heads, value_width))(x_BTD),
    )
    (q_BTGK, k_BTGK, v_BTHV), carry = self.convolve(
      streams, tokens, carry, self.taps, use_bias=True
    )
    v_BTGM = v_BTHV.reshape(*v_BTHV.shape[:2], groups, -1)
    bias_H = self.param(
      'step_bias', recurrent.start_step_bias, (self.num_heads,)
    )
    step_BTH = self.exact_projection('step', self.num_heads)(x_BTD)
    step_BTH = jax.nn.softplus(step_BTH + bias_H[None, None])
    step_BTGR = step_BTH.reshape(*step_BTH.shape[:2], groups, -1)
    return (q_BTGK, k_BTGK, v_BTGM, step_BTGR), carry

  def head_params(self, num_source: int, step: Array | None):
    """See `MultiHead`: A and d, of the heads of each group."""
    shape = (self.num_heads,)
    log_rate_H = self.param('log_rate', recurrent.start_log_rate(1, 16), shape)
    skip_H = self.param('skip', nn.initializers.ones, shape)
    split = (self.num_groups, -1)
    return (-jnp.exp(log_rate_H).reshape(split), skip_H.reshape(split)), True

  @nn.nowrap
  def width_of_value(self, width: int | None, key_width: int) -> int:
    """See `Recurrent`."""
    if self.value_width:
      return self.value_width
    if width is None:
      raise ValueError(
        f'{self.mechanism}: the width of values is not known; set '
        'value_width, or call module.apply(variables, ..., '
        "method='init_state')"
      )
    if 2 * width % self.num_heads:
      raise ValueError(
        f'{self.mechanism}: twice the width {width} is not a multiple of '
        f'num_heads {self.num_heads}; set value_width'
      )
    return 2 * width // self.num_heads

  @nn.nowrap
  def outputs(self, head: Head, params: Any, memory: Any):
    """See `Recurrent`; of one group."""
    rate_R, skip_R = params
    q_TK, k_TK = (x.astype(jnp.float32) for x in (head.q_TK, head.k_SK))
    step_TR = head.more
    v_TRV = head.v_SV.astype(jnp.float32).reshape(*step_TR.shape, -1)

    # Products of q and k are made once, as they are not mapped over.
    def one(v_TV, step_T, rate, memory):
      streams = recurrence.Streams(
        q_TK, k_TK, v_TV * step_T[:, None], step_T * rate
      )
      return self.read(streams, head.segment_T, memory)

    o_TRV, memory = jax.vmap(one, in_axes=(1, 1, 0, 0), out_axes=(1, 0))(
      v_TRV, step_TR, rate_R, memory
    )
    o_TRV += skip_R[None, :, None] * v_TRV
    keep_T11 = (head.segment_T > 0)[:, None, None]
    o_TRV = jnp.where(keep_T11, o_TRV, 0.0)
    return o_TRV.reshape(o_TRV.shape[0], -1), memory

  def refine(self, o_BTHV: Array, x_BTD: Array) -> Array:
    """See `MultiHead`: RMSNorm(o * swish(x W_g)), by group."""
    gate_BTHV = self.projection('gate', o_BTHV.shape[2:])(x_BTD)
    gate_BTHV = nn.silu(gate_BTHV.astype(jnp.float32))
    groups, width = o_BTHV.shape[2:]
    scale_HV = self.scale((groups * width,)).reshape(groups, width)
    return recurrent.rms_norm(o_BTHV.astype(jnp.float32) * gate_BTHV, scale_HV)

  @nn.nowrap
  def init_state(
    self, batch_size: int, max_length: int, dtype: DTypeLike = jnp.float32
  ) -> State:
    """See `Mixer`; states are [B, G, R, ...]."""
    self.check_streaming()
    shape = (batch_size, self.num_groups, self.num_heads // self.num_groups)
    memory = recurrence.empty(self.known_head_width(), self.known_value_width())
    memory = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), memory
    )
    width = (
      2 * self.num_groups * self.known_head_width()
      + self.num_heads * self.known_value_width()
    )
    return memory, self.tail_state(batch_size, self.taps, width, dtype)
