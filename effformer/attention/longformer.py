"""Longformer: sliding window and global tokens in one softmax (Beltagy et al.
2020, 2004.05150).

    token i sees token j  iff  i - j = dilation t,  |t| <= w / 2, or j < g
    a global token i < g sees every token, with projections of its own

w (`attention_window`, even) is the number of neighbours, half of them on each
side, so w + 1 tokens with the token itself. i, j are indices in the row; its
first g real tokens (`global_tokens`) are global. A key that is global and
in the window counts once. Cost: time T (w + g) K, memory T K.

Causal: the left half of the window, 0 <= t <= w / 2, and those global tokens
that are past; no token sees all others then, so there are no projections for
global queries. A stream keeps the window and the g global tokens. It counts
real tokens only, so padding inside a row takes up room in the window of a batch
call, but not in that of a stream.

Not supported: a context; packing, where the number of global tokens would have
no bound. Dropout acts on the attention probabilities. Deviations: the paper's
task says which tokens are global, and copies the local projections to the
global ones after pretraining; here these start on their own. Dilation is one
number for all heads of a layer, the paper dilates some heads.
"""

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import (
  band,
  chunked,
  gather,
  positions,
  softmax,
)
from effformer.attention.primitives.softmax import Sites
from effformer.shapes import Array


@flax.struct.dataclass
class Globals:
  """The global tokens of one head; token m has position m.

  Attributes:
    k_MK: keys, rotated where positions are rotary.
    v_MV: values.
    segment_M: int32, 0 where nothing stands yet.
  """

  k_MK: Array
  v_MV: Array
  segment_M: Array


class LongformerAttention(MultiHead):
  """Attention to neighbours and to global tokens.

  Attributes:
    attention_window: w, tokens, even; half of it on each side of a token.
    dilation: tokens between two neighbours that are seen.
    global_tokens: g, first tokens of the row that see and are seen by all.
    block: tokens, at most so many queries in a tile, if more than half the
      window; 0 for that, or 64 if that is more.
  """

  mechanism: ClassVar[str] = 'longformer'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    streaming=True,
    rotary=True,
    relative_bias=True,
    grouped=True,
    row_normalised=True,
    linear_time=True,
    linear_memory=True,
  )

  attention_window: int = 128
  dilation: int = 1
  global_tokens: int = 1
  block: int = 0

  def __post_init__(self):
    super().__post_init__()
    self.at_least('attention_window', 2)
    self.at_least('dilation', 1)
    self.at_least('global_tokens', 0)
    self.at_least('block', 0)
    if self.attention_window % 2:
      raise ValueError(
        'longformer: attention_window has two halves, so it must be even, got '
        f'{self.attention_window}; use {self.attention_window + 1}'
      )

  @nn.nowrap
  def projects_tokens(self) -> bool:
    """See `Mixer`; queries that see all are of the global tokens alone."""
    return self.causal or not self.global_tokens

  def project(self, x_BTD, context_BSD, tokens, carry):
    """See `MultiHead`; global queries stand in the place of their local ones.

    Local queries of global tokens are used nowhere.
    """
    (q_BTHK, k_BSHK, v_BSHV, more), carry = super().project(
      x_BTD, context_BSD, tokens, carry
    )
    if self.projects_tokens():
      return (q_BTHK, k_BSHK, v_BSHV, more), carry
    width = self.width_of_head(x_BTD.shape[-1])
    sources = (self.num_kv_heads or self.num_heads, width)
    more = (
      self.projection('key_global', sources)(context_BSD),
      self.projection('value_global', sources)(context_BSD),
    )
    index_BM = jax.vmap(self._slots)(tokens.segment_BT, tokens.position_BT)
    x_BMD = jax.vmap(gather.at)(x_BTD, index_BM)
    q_BMHK = self.projection('query_global', (self.num_heads, width))(x_BMD)
    q_BTHK = jax.vmap(gather.put)(q_BTHK, index_BM, q_BMHK)
    return (q_BTHK, k_BSHK, v_BSHV, more), carry

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    rngs = _three(head.rng)
    near = band.attend(
      self._without_globals(head, rngs[0]),
      self._pattern(head, self._window()),
      block=self.block,
      rows=call.rows,
      step=self.dilation,
    )
    if not self.global_tokens:
      return near[0]
    index_M = self._slots(head.segment_S, head.position_S)
    seen = Globals(
      *(gather.at(x, index_M) for x in (head.k_SK, head.v_SV, head.segment_S))
    )
    o_TV = self._add_globals(head, near, seen, rngs[1], call)
    if self.causal:
      return o_TV
    k_SK, v_SV = head.more
    if self.rotary:
      k_SK = positions.rotate(k_SK, head.position_S)
    position_M = jnp.arange(self.global_tokens, dtype=jnp.int32)
    o_MV, _ = chunked.attend(
      gather.at(head.q_TK, index_M),
      k_SK,
      v_SV,
      _sites(seen.segment_M, head.segment_S, position_M, head.position_S),
      rngs[2],
      head.bias,
      pattern=self._pattern(head),
      rows=call.rows,
    )
    return gather.put(o_TV, index_M, o_MV)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`; holds any number of tokens."""
    zeros_MK = jnp.zeros((self.global_tokens, head_width), dtype)
    zeros_M = jnp.zeros((self.global_tokens,), jnp.int32)
    ring = band.empty(self._window(), head_width, dtype, self.dilation)
    return ring, Globals(zeros_MK, zeros_MK, zeros_M)

  @nn.nowrap
  def step(self, head: Head, state, params, call: Call):
    """See `MultiHead`."""
    ring, seen = state
    near, ring = band.extend(
      self._without_globals(head, None),
      ring,
      self._pattern(head, self._window()),
      block=self.block,
      rows=call.rows,
      step=self.dilation,
    )
    if not self.global_tokens:
      return near[0], (ring, seen)
    # What is no global token is written past the end, that is, nowhere.
    slot_T = jnp.where(head.segment_T > 0, head.position_T, self.global_tokens)
    new = Globals(head.k_SK, head.v_SV, head.segment_S)
    seen = jax.tree.map(lambda old, x: gather.put(old, slot_T, x), seen, new)
    return self._add_globals(head, near, seen, None, call), (ring, seen)

  @nn.nowrap
  def _add_globals(self, head, near, seen, rng, call):
    """o_TV over the disjoint union of the window and the global tokens."""
    position_M = jnp.arange(self.global_tokens, dtype=jnp.int32)
    far = chunked.attend(
      head.q_TK,
      seen.k_MK,
      seen.v_MV,
      _sites(head.segment_T, seen.segment_M, head.position_T, position_M),
      rng,
      head.bias,
      pattern=self._pattern(head),
      rows=call.rows,
    )
    return softmax.merge(near, far)[0]

  @nn.nowrap
  def _without_globals(self, head, rng):
    segment_S = jnp.where(
      head.position_S < self.global_tokens, 0, head.segment_S
    )
    return head._replace(segment_S=segment_S, rng=rng)

  @nn.nowrap
  def _pattern(self, head, window=0):
    return softmax.Pattern(
      causal=self.causal,
      window=window,
      dropout=0.0 if head.rng is None else self.dropout,
      bias=self.bias_rule(),
    )

  @nn.nowrap
  def _window(self):
    return self.attention_window // 2 + 1

  @nn.nowrap
  def _slots(self, segment_T, position_T):
    """Where in the row the global tokens stand; T if it has fewer."""
    return gather.first(segment_T, position_T, self.global_tokens)


def _three(rng):
  return (None,) * 3 if rng is None else jax.random.split(rng, 3)


def _sites(segment_T, segment_S, position_T, position_S):
  """The row is one segment, so a position is an index too."""
  own, others = (segment_T, position_T), (segment_S, position_S)
  return Sites(own[0], others[0], own[1], others[1], own[1], others[1])
