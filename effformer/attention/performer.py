"""Performer: attention with random features, FAVOR+ (Choromanski et al. 2021,
2009.14794).

    phi(x) = exp(Omega x' - |x'|^2 / 2) / sqrt(M),     x' = x / K^(1/4)
    o_i = sum_j phi(q_i)^T phi(k_j) v_j / sum_j phi(q_i)^T phi(k_j)

For rows of Omega in R^{M x K} from N(0, I), phi(q)^T phi(k) has the mean
exp(q^T k / sqrt(K)): softmax attention, in expectation. Cost: time T M (K + V),
memory T (K + V), where packed T M, and where causal M (V + 1) for each chunk of
tokens. The state of a stream is M x (V + 1) numbers a head.

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
from effformer.attention.primitives import (
  random_directions,
  random_features,
  recurrence,
)
from effformer.shapes import Array


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
  drops_itself: ClassVar[bool] = False

  features: str = 'positive'
  num_features: int = 256
  seed: int = 0
  redraw_every: int = 0
  chunk: int = 64

  def __post_init__(self):
    super().__post_init__()
    self.one_of('features', random_features.FEATURES)
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

  @nn.nowrap
  def omega(self, width: int, step: Array | None) -> Array:
    """Omega [H, M, K] for heads of width K at a training step, float32."""
    shape = self.num_heads, self.num_features, width
    if step is not None and self.redraw_every:
      number = step // self.redraw_every
      return random_directions.draw(self.seed, number, *shape)
    return jnp.asarray(random_directions.first(self.seed, *shape))

  def head_params(self, num_source, step):
    """Omega, which is no parameter."""
    return self.omega(self.known_head_width(), step), True

  @nn.nowrap
  def mix(self, head: Head, omega_MK, call: Call):
    """See `MultiHead`."""
    if self.causal:
      start = self.head_state(0, head.v_SV.shape[-1], jnp.float32)
      return self.step(head, start, omega_MK, call)[0]
    if call.is_packed:
      return self._packed(head, omega_MK)
    return random_features.attend(
      head.q_TK, head.k_SK, head.v_SV, head.segment_S, omega_MK,
      features=self.features, rows=call.rows,
    )  # fmt: skip

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`; holds any number of tokens, always in float32."""
    num_features = self.num_features * (1 + (self.features == 'hyperbolic'))
    memory = recurrence.empty(num_features, head_width + 1)
    return Sums(memory, jnp.zeros((), jnp.float32))

  @nn.nowrap
  def step(self, head: Head, state: Sums, omega_MK, call: Call):
    """See `MultiHead`."""

    def step(state, q_CK, k_CK, v_CV, segment_C):
      q_CM, k_CM = self._scores(q_CK, k_CK, segment_C, omega_MK)
      top, tops_C1, decay_C = state.top, 0.0, None
      if self.features != 'relu':
        tops_C = _top_so_far(k_CM, segment_C, state.memory.segment, state.top)
        top, tops_C1 = tops_C[-1], tops_C[:, None]
        # Where a segment starts there is nothing to rescale.
        before_C = jnp.concatenate([state.top[None], tops_C[:-1]])
        decay_C = jnp.minimum(before_C - tops_C, 0.0)
      streams = self._streams(q_CM, k_CM, tops_C1, v_CV)
      memory, sums_CV = recurrence.one_chunk(
        state.memory, streams._replace(decay=decay_C), segment_C
      )
      return Sums(memory, top), random_features.ratio(sums_CV)

    return recurrence.in_chunks(
      step, state, head.q_TK, head.k_SK, head.v_SV, head.segment_T,
      chunk=self.chunk,
    )  # fmt: skip

  @nn.nowrap
  def _packed(self, head, omega_MK):
    q_TM, k_TM = self._scores(head.q_TK, head.k_SK, head.segment_T, omega_MK)
    top_T1 = 0.0
    if self.features != 'relu':
      top_T1 = _top_of_segment(k_TM, head.segment_T)[:, None]
    sums_TV = recurrence.bidirectional(
      self._streams(q_TM, k_TM, top_T1, head.v_SV),
      head.segment_T, chunk=self.chunk,
    )  # fmt: skip
    return random_features.ratio(sums_TV)

  @nn.nowrap
  def _scores(self, q_TK, k_TK, segment_T, omega_MK):
    """Of queries and of keys, those of padding masked."""
    q_TM, k_TM = (
      random_features.scores(x, omega_MK, self.features) for x in (q_TK, k_TK)
    )
    return q_TM, random_features.or_masked(k_TM, segment_T)

  @nn.nowrap
  def _streams(self, q_TM, k_TM, top_T1, v_TV):
    return recurrence.Streams(
      random_features.of_queries(q_TM, self.features),
      random_features.of_keys(k_TM, top_T1, self.features),
      random_features.with_ones(v_TV),
    )


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
