"""Performer: attention with random features, FAVOR+ (Choromanski et al. 2021,
2009.14794).

    phi(x) = exp(Omega x' - |x'|^2 / 2) / sqrt(M),     x' = x / K^(1/4)
    o_i = sum_j phi(q_i)^T phi(k_j) v_j / sum_j phi(q_i)^T phi(k_j)

For rows of Omega in R^{M x K} from N(0, I), phi(q)^T phi(k) has the mean
exp(q^T k / sqrt(K)): softmax attention, in expectation. Cost: time T M (K + V),
memory T (M + K + V). The state of a stream is M x (V + 1) numbers a head.

`features` 'hyperbolic' puts the features of Omega and -Omega beside each other
(2 M of them, less variance); 'relu' is phi(x) = max(Omega x', 0) + 1e-3,
another kernel. The factor 1 / sqrt(M) cancels and is left out.

Rows of Omega are orthogonal in blocks of K (`primitives.random_directions`). It
is a function of `seed`, the number of the head, and step // `redraw_every`; no
parameter, no state. Layers with equal seeds share it.

Exponentials never overflow, by factors that cancel: one for each query, and for
the keys one for each feature, or one number where packed (the maximum of the
segment) or causal (the maximum so far, with which the sum is rescaled as it
grows: the decay of a recurrence). No gradient goes through them, nothing is
added to the denominators, and a causal output is a function of its past alone.
Where there is one number for all features, a query whose weights are all below
1e-30 of the largest possible returns 0.

Features and sums are float32 in any compute dtype. There are no attention
probabilities, so dropout acts on the output of the heads (the paper has none).
Not supported: grouped queries, as each head has features of its own; with a
context, rotary positions, packing and causal.
"""

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import random_directions, recurrence
from effformer.attention.primitives.positions import rotate
from effformer.attention.primitives.softmax import FLOOR, MASKED
from effformer.shapes import Array

FEATURES = ('positive', 'hyperbolic', 'relu')
# Added to the features 'relu', which else might all be 0.
RELU_EPSILON = 1e-3
# Sums of weights from here on count as none.
TINY = 1e-30


@flax.struct.dataclass
class Sums:
  """State of a stream, of one head.

  Attributes:
    memory: sum of exp(k - top) [v, 1]^T over the past of the segment.
    top: float32 scalar, the largest k so far; 0 with features 'relu'.
  """

  memory: recurrence.Memory
  top: Array


class PerformerAttention(MultiHead):
  """Attention with a random estimate of the softmax kernel.

  Attributes:
    features: 'positive', 'hyperbolic' or 'relu'.
    num_features: M, rows of Omega.
    seed: of Omega, from 0 to 2^32 - 1.
    redraw_every: training steps, after so many Omega is drawn anew; 0 never.
      Without a step (`Tokens.step`) it is that of step 0.
    chunk: tokens, length of a chunk where causal or packed.
  """

  mechanism: ClassVar[str] = 'performer'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    cross=True,
    streaming=True,
    packing=True,
    rotary=True,
    row_normalised=True,
    permutation=True,
    linear_time=True,
    linear_memory=True,
  )
  rotates_itself: ClassVar[bool] = True
  drops_itself: ClassVar[bool] = False

  features: str = 'positive'
  num_features: int = 256
  seed: int = 0
  redraw_every: int = 0
  chunk: int = 64

  def __post_init__(self):
    super().__post_init__()
    self.one_of('features', FEATURES)
    self.at_least('num_features', 1)
    self.at_least('seed', 0)
    self.at_least('redraw_every', 0)
    self.at_least('chunk', 1)

  @nn.nowrap
  def check_call(self, x_BTD, context_BSD, tokens, context_tokens):
    """See `Mixer`."""
    super().check_call(x_BTD, context_BSD, tokens, context_tokens)
    if context_BSD is None:
      return
    if self.rotary:
      raise NotImplementedError(self.refusal('rotary', 'with a context'))
    if tokens.is_packed or context_tokens.is_packed:
      raise NotImplementedError(self.refusal('packing', 'with a context'))

  def project(self, x_BTD, context_BSD, tokens, carry):
    """See `MultiHead`; queries and keys are the scores of their features."""
    streams, carry = super().project(x_BTD, context_BSD, tokens, carry)
    q_BTHK, k_BSHK, v_BSHV, more = streams
    if self.rotary:
      over_heads = jax.vmap(rotate, in_axes=(1, None), out_axes=1)
      turn = jax.vmap(over_heads)
      q_BTHK = turn(q_BTHK, tokens.position_BT)
      k_BSHK = turn(k_BSHK, tokens.position_BT)
    omega_HMK = self.omega(k_BSHK.shape[-1], tokens.step)
    q_BTHM = self._scores(q_BTHK, omega_HMK)
    k_BSHM = self._scores(k_BSHK, omega_HMK)
    return (q_BTHM, k_BSHM, v_BSHV, more), carry

  @nn.nowrap
  def omega(self, width: int, step: Array | None) -> Array:
    """Omega [H, M, K] for heads of width K at a training step, float32."""
    shape = self.num_heads, self.num_features, width
    if step is not None and self.redraw_every:
      number = step // self.redraw_every
      return random_directions.draw(self.seed, number, *shape)
    return jnp.asarray(random_directions.first(self.seed, *shape))

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    if self.causal:
      start = self.head_state(0, head.v_SV.shape[-1], jnp.float32)
      return self.step(head, start, params, call)[0]
    q_TM, k_SM = head.q_TK, _or_masked(head.k_SK, head.segment_S)
    v_SV = _with_ones(head.v_SV)
    if self.features == 'relu':
      q_TM, k_SM = _relu(q_TM), _relu(k_SM)
    elif call.is_packed:
      top_S1 = _top_of_segment(k_SM, head.segment_S)[:, None]
      q_TM, k_SM = _exp_of_query(q_TM), _exp_below(k_SM, top_S1)
    else:
      # By feature: with 1 for the largest key of each feature, and for the
      # largest feature of each query, no denominator is below 1.
      top_1M = _or_zero(k_SM.max(0, keepdims=True))
      q_TM, k_SM = _exp_of_query(q_TM + top_1M), _exp_below(k_SM, top_1M)
    if call.is_packed:
      streams = recurrence.Streams(q_TM, k_SM, v_SV)
      sums_TV = recurrence.bidirectional(
        streams, head.segment_T, chunk=self.chunk
      )
    else:
      sums_TV = q_TM @ (k_SM.T @ v_SV)
    return _ratio(sums_TV)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`; holds any number of tokens, always in float32."""
    num_features = self.num_features * (1 + (self.features == 'hyperbolic'))
    memory = recurrence.empty(num_features, head_width + 1)
    return Sums(memory, jnp.zeros((), jnp.float32))

  @nn.nowrap
  def step(self, head: Head, state: Sums, params, call: Call):
    """See `MultiHead`."""
    q_TM, k_TM = head.q_TK, _or_masked(head.k_SK, head.segment_T)
    top, decay_T = state.top, None
    if self.features == 'relu':
      q_TM, k_TM = _relu(q_TM), _relu(k_TM)
    else:
      tops_T = _top_so_far(
        k_TM, head.segment_T, state.memory.segment, state.top
      )
      top = tops_T[-1]
      # Where a segment starts there is nothing to rescale.
      before_T = jnp.concatenate([state.top[None], tops_T[:-1]])
      decay_T = jnp.minimum(before_T - tops_T, 0.0)
      q_TM, k_TM = _exp_of_query(q_TM), _exp_below(k_TM, tops_T[:, None])
    sums_TV, memory = recurrence.causal(
      recurrence.Streams(q_TM, k_TM, _with_ones(head.v_SV), decay_T),
      head.segment_T,
      state.memory,
      chunk=self.chunk,
    )
    return _ratio(sums_TV), Sums(memory, top)

  @nn.nowrap
  def _scores(self, x_BTHK, omega_HMK):
    """What the features are functions of: the exponents, or Omega x'."""
    x_BTHK = x_BTHK.astype(jnp.float32) * x_BTHK.shape[-1] ** -0.25
    # The heads lead, as in the product and in what follows: no copy is made.
    x_BHTK = jnp.moveaxis(x_BTHK, 2, 1)
    scores_BHTM = jnp.einsum('bhtk,hmk->bhtm', x_BHTK, omega_HMK)
    if self.features == 'hyperbolic':
      scores_BHTM = jnp.concatenate([scores_BHTM, -scores_BHTM], axis=-1)
    if self.features != 'relu':
      scores_BHTM -= 0.5 * (x_BHTK**2).sum(-1, keepdims=True)
    return jnp.moveaxis(scores_BHTM, 1, 2)


def _or_masked(k_SM, segment_S):
  return jnp.where(segment_S[:, None] > 0, k_SM, MASKED)


def _or_zero(top):
  """The maximum, or 0 where there was no key; without a gradient."""
  return jax.lax.stop_gradient(jnp.where(top > FLOOR, top, 0.0))


def _exp_of_query(q_TM):
  return _exp_below(q_TM, q_TM.max(-1, keepdims=True))


def _exp_below(x_TM, top):
  return jnp.exp(x_TM - jax.lax.stop_gradient(top))


def _relu(x_TM):
  """For keys of padding 0: phi(0) is not."""
  return jnp.where(x_TM > FLOOR, jnp.maximum(x_TM, 0.0) + RELU_EPSILON, 0.0)


def _with_ones(v_SV):
  """Beside the values a column whose sum is the denominator."""
  return jnp.pad(
    v_SV.astype(jnp.float32), ((0, 0), (0, 1)), constant_values=1.0
  )


def _ratio(sums_TV):
  is_live_T1 = sums_TV[:, -1:] > TINY
  weight_T1 = jnp.where(is_live_T1, sums_TV[:, -1:], 1.0)
  # The gradient of a / b has b^2, which would underflow.
  scale_T1 = jax.lax.stop_gradient(1.0 / weight_T1)
  o_TV = (sums_TV[:, :-1] * scale_T1) / (weight_T1 * scale_T1)
  return jnp.where(is_live_T1, o_TV, 0.0)


def _top_so_far(k_TM, segment_T, segment, top):
  """Largest k of the segment up to each token, float32 [T].

  `segment` and `top` are those before the first token. Padding repeats what
  was before it.
  """

  def later(first, second):
    # Id 0 is the neutral element.
    (id_1, top_1), (id_2, top_2) = first, second
    top_2 = jnp.where(id_1 == id_2, jnp.maximum(top_1, top_2), top_2)
    is_empty = id_2 == 0
    return (
      jnp.where(is_empty, id_1, id_2),
      jnp.where(is_empty, top_1, top_2),
    )

  ids = jnp.concatenate([segment[None], segment_T])
  tops = jnp.concatenate([top[None], jax.lax.stop_gradient(k_TM).max(-1)])
  return jax.lax.associative_scan(later, (ids, tops))[1][1:]


def _top_of_segment(k_TM, segment_T):
  start = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
  past_T = _top_so_far(k_TM, segment_T, *start)
  future_T = _top_so_far(k_TM[::-1], segment_T[::-1], *start)[::-1]
  return jnp.maximum(past_T, future_T)
