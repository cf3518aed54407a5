"""Softmax attention over all tokens (Vaswani et al. 2017, 1706.03762).

    O = softmax(Q K^T / sqrt(K)) V

Cost: time T^2 K; memory T (forms 'chunked', and 'fused' where the device has a
kernel) or T^2 (form 'dense', the reference). Not supported: causal with a
context; dropout and relative biases in form 'fused'. Dropout acts on the
attention probabilities. Streaming keeps all keys and values (a cache of
`max_length`).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import (
  cache,
  chunked,
  fused,
  positions,
  softmax,
)


class FullAttention(MultiHead):
  """Exact softmax attention.

  In a stream, tokens beyond the `max_length` of the state have no room: from
  then on the output of that row is NaN.

  Attributes:
    form: 'chunked' (memory-linear, own backward pass), 'dense', or 'fused':
      cuDNN's kernel, for half precision on an NVIDIA GPU; see
      `primitives.fused` for what it is elsewhere. A stream is chunked then.
    block: tokens, side of a tile of the chunked form; 0 chooses it such that
      the tiles of all heads and examples fit a CPU's cache.
  """

  mechanism: ClassVar[str] = 'full'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    cross=True,
    streaming=True,
    packing=True,
    rotary=True,
    relative_bias=True,
    grouped=True,
    row_normalised=True,
    permutation=True,
    linear_memory=True,
  )

  form: str = 'chunked'
  block: int = 0

  def __post_init__(self):
    super().__post_init__()
    self.one_of('form', ('chunked', 'dense', 'fused'))
    self.at_least('block', 0)
    for setting, none in (('dropout', 0.0), ('relative_bias', 'none')):
      if self.form == 'fused' and getattr(self, setting) != none:
        raise ValueError(
          f"full: form 'fused' has no {setting}, got "
          f'{getattr(self, setting)!r}; set it to {none!r}, or use form '
          "'chunked'"
        )

  @nn.nowrap
  def mix_heads(self, head: Head, params, is_per_head, call: Call):
    """See `MultiHead`; a fused kernel takes all heads at once."""
    if self.form != 'fused':
      return super().mix_heads(head, params, is_per_head, call)
    q_BTHK, k_BSHK = head.q_TK, head.k_SK
    if self.rotary:
      rotate = jax.vmap(jax.vmap(positions.rotate, (1, None), 1))
      q_BTHK = rotate(q_BTHK, head.position_T)
      k_BSHK = rotate(k_BSHK, head.position_S)
    return fused.attend(
      q_BTHK, k_BSHK, head.v_SV, head.segment_T, head.segment_S,
      causal=self.causal, is_packed=call.is_packed,
    )  # fmt: skip

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    where = softmax.sites(*head[-4:])
    return self._attend(head, where, call.rows)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`."""
    return cache.empty(max_length, head_width, head_width, dtype)

  @nn.nowrap
  def step(self, head: Head, state: cache.Cache, params, call: Call):
    """See `MultiHead`."""
    state, head, where = cache.append(state, head)
    o_TV = self._attend(head, where, call.rows)
    return jnp.where(state.is_full, jnp.nan, o_TV), state

  @nn.nowrap
  def _attend(self, head, where, rows):
    pattern = softmax.Pattern(
      causal=self.causal,
      dropout=0.0 if head.rng is None else self.dropout,
      bias=self.bias_rule(),
    )
    inputs = (head.q_TK, head.k_SK, head.v_SV, where, head.rng, head.bias)
    if self.form == 'dense':
      return softmax.tile(*inputs, pattern=pattern)[0]
    return chunked.attend(
      *inputs, pattern=pattern, block=self.block, rows=rows
    )[0]
