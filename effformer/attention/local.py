"""Softmax attention within a sliding window (Child et al. 2019, 1904.10509;
Beltagy et al. 2020, 2004.05150).

    token i sees token j  iff  |i - j| < window            (bidirectional)
                               0 <= i - j < window         (causal)

with i, j the indices in the row, and only within its segment. This is the true
band, not attention within fixed blocks; the `local` of the Long Range Arena is
neither (its reshape groups strided tokens).

Nothing of size T x T exists; see `primitives.band`. Cost: time T W K, memory
T K. Dropout acts on the attention probabilities. Not supported: a context.

A stream keeps the last `window` tokens. It counts real tokens only, so padding
inside a segment takes up room in the window of a batch call, but not in the
window of a stream.
"""

from typing import ClassVar

import flax.linen as nn

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import band, softmax


class LocalAttention(MultiHead):
  """Attention to the nearest tokens.

  Attributes:
    window: tokens; the distance to a visible token is less than this.
    block: tokens, at most so many queries in a tile, if not less than the
      window; 0 for the window, or 64 if that is more.
  """

  mechanism: ClassVar[str] = 'local'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    streaming=True,
    packing=True,
    rotary=True,
    relative_bias=True,
    grouped=True,
    row_normalised=True,
    linear_time=True,
    linear_memory=True,
  )

  window: int = 64
  block: int = 0

  def __post_init__(self):
    super().__post_init__()
    self.at_least('window', 1)
    self.at_least('block', 0)

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    pattern = self._pattern(head)
    return band.attend(head, pattern, block=self.block, rows=call.rows)[0]

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`; holds the last `window` of any number of tokens."""
    return band.empty(self.window, head_width, dtype)

  @nn.nowrap
  def step(self, head: Head, state: band.Ring, params, call: Call):
    """See `MultiHead`."""
    (o_TV, _), state = band.extend(
      head, state, self._pattern(head), block=self.block, rows=call.rows
    )
    return o_TV, state

  @nn.nowrap
  def _pattern(self, head):
    return softmax.Pattern(
      causal=self.causal,
      window=self.window,
      dropout=0.0 if head.rng is None else self.dropout,
      bias=self.bias_rule(),
    )
