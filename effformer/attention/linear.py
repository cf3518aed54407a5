"""Linear attention (Katharopoulos et al. 2020, 2006.16236).

    phi(x) = elu(x) + 1
    o_i = sum_j phi(q_i)^T phi(k_j) v_j / (sum_j phi(q_i)^T phi(k_j) + 1e-6)

Sums are over the segment of token i, or its past where causal. Cost: time
T K V, memory T (K + V). The state of a stream is K x (V + 1) numbers a head.

Rotary positions as in RoFormer (Su et al. 2021, 2104.09864, eq. 19): phi(q) and
phi(k) are rotated in the numerator only; rotated products can be negative, and
so would the denominator. Rows are not normalised then.

Sums and features are float32 in any compute dtype. There are no attention
probabilities, so dropout acts on the output of the heads (the paper has none).
Not supported: packing with a context; causal with a context.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import recurrence
from effformer.attention.primitives.positions import rotate

EPSILON = 1e-6


class LinearAttention(MultiHead):
  """Attention with the kernel phi(q)^T phi(k).

  Attributes:
    chunk: tokens, length of a chunk where causal or packed.
  """

  mechanism: ClassVar[str] = 'linear'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    cross=True,
    streaming=True,
    packing=True,
    rotary=True,
    grouped=True,
    row_normalised=True,
    permutation=True,
    linear_time=True,
    linear_memory=True,
  )
  rotates_itself: ClassVar[bool] = True
  drops_itself: ClassVar[bool] = False

  chunk: int = 64

  def __post_init__(self):
    super().__post_init__()
    self.at_least('chunk', 1)

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    if call.is_packed and call.is_cross:
      raise NotImplementedError(self.refusal('packing', 'with a context'))
    if self.causal:
      state = self.head_state(0, head.k_SK.shape[-1], jnp.float32)
      return self.step(head, state, params, call)[0]

    def add(q_TK, k_SK, v_SV):
      if call.is_packed:
        return recurrence.bidirectional(
          recurrence.Streams(q_TK, k_SK, v_SV),
          head.segment_T,
          chunk=self.chunk,
        )
      return q_TK @ (k_SK.T @ v_SV)

    return self._ratio(head, add, is_joint=call.is_packed)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`; holds any number of tokens, always in float32."""
    return recurrence.empty(head_width, head_width + 1)

  @nn.nowrap
  def step(self, head: Head, state: recurrence.Memory, params, call: Call):
    """See `MultiHead`."""
    parts = []

    def add(q_TK, k_TK, v_TV):
      first = sum(part.sum_KV.shape[-1] for part in parts)
      columns_KV = state.sum_KV[:, first : first + v_TV.shape[-1]]
      o_TV, part = recurrence.causal(
        recurrence.Streams(q_TK, k_TK, v_TV),
        head.segment_T,
        recurrence.Memory(columns_KV, state.segment),
        chunk=self.chunk,
      )
      parts.append(part)
      return o_TV

    # Columns are in the order of the calls: 1 before V, or V + 1 at once.
    o_TV = self._ratio(head, add)
    sums_KV = jnp.concatenate([part.sum_KV for part in parts], axis=-1)
    return o_TV, recurrence.Memory(sums_KV, parts[0].segment)

  @nn.nowrap
  def _ratio(self, head, add, is_joint=True):
    """Weighted values over weights; `add(q, k, v)` sums <q_i, k_j> v_j.

    `is_joint` gets both from one call, with a column of ones beside the values.
    """
    q_TK = _features(head.q_TK, head.segment_T)
    k_SK = _features(head.k_SK, head.segment_S)
    v_SV = head.v_SV.astype(jnp.float32)
    ones_S1 = jnp.ones((v_SV.shape[0], 1), jnp.float32)
    if is_joint and not self.rotary:
      both_TV = add(q_TK, k_SK, jnp.concatenate([v_SV, ones_S1], axis=-1))
      sum_TV, weight_T1 = both_TV[:, :-1], both_TV[:, -1:]
    else:
      weight_T1 = add(q_TK, k_SK, ones_S1)
      if self.rotary:
        q_TK = rotate(q_TK, head.position_T)
        k_SK = rotate(k_SK, head.position_S)
      sum_TV = add(q_TK, k_SK, v_SV)
    return sum_TV / (weight_T1 + EPSILON)


def _features(x_TK, segment_T):
  """elu(x) + 1 in float32, and 0 for padding: phi(0) is not 0."""
  phi_TK = jax.nn.elu(x_TK.astype(jnp.float32)) + 1.0
  return jnp.where(segment_T[:, None] > 0, phi_TK, 0.0)
