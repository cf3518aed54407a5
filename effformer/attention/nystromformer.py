"""Nystromformer: attention by landmarks (Xiong et al. 2021, 2102.03902).

    O = softmax(Q K~^T) A^+ (softmax(Q~ K^T) V) + conv(V),  A = softmax(Q~ K~^T)

with all logits over sqrt(K). Landmarks Q~, K~ are means of r contiguous groups
of queries and keys. Cost: time T r (K + V) + r^3, memory T (K + V) + r^2.

The inverse A^+ is that of Razavi et al. 2014, of third order,

    Z <- Z / 4 (13 I - AZ (15 I - AZ (7 I - AZ))),   Z_0 = A^T / (|A|_1 |A|_inf)

with norms of this head of this example (public code takes them over the batch,
so that examples depend on each other). A landmark without tokens has zeros in
its row and column of A, and keeps them through all iterations: it takes no
part. With r not less than the number of tokens, each token is a landmark, and
the result tends to exact softmax attention as iterations grow.

conv(V) has one filter a head, for all its channels, centred, with zeros in the
place of padding; it counts padding inside a row. With a context there is none.

Deviations: groups are of real tokens and as equal as can be, token i of n being
in group floor(i r / n), so that neither the amount nor the content of padding
matters, and lengths that r does not divide need none.

Not supported: causal, hence streaming (a landmark holds later tokens); packing;
rotary positions (a mean has no position). Dropout acts on softmax(Q K~^T).
Means, A, and its inverse are float32 in any compute dtype.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import chunked, one_by_one, pooling, softmax
from effformer.shapes import Array

# Tokens that are convolved in one product, if not fewer than the taps.
BLOCK = 128


class NystromformerAttention(MultiHead):
  """Attention through landmarks.

  Attributes:
    rank: r, landmarks.
    iterations: of the inverse.
    conv_width: taps, odd, of the convolution of the values; 0 for none.
  """

  mechanism: ClassVar[str] = 'nystromformer'
  supports: ClassVar[Supports] = Supports(
    cross=True, grouped=True, linear_time=True, linear_memory=True
  )

  rank: int = 64
  iterations: int = 6
  conv_width: int = 33

  def __post_init__(self):
    super().__post_init__()
    self.at_least('rank', 1)
    self.at_least('iterations', 1)
    self.at_least('conv_width', 0)
    if self.conv_width and self.conv_width % 2 == 0:
      raise ValueError(
        f'nystromformer: conv_width must be odd, or 0 for none; got '
        f'{self.conv_width}'
      )

  def head_params(self, num_source, step):
    """The filters [H, W]."""
    if not self.conv_width:
      return None, False
    init = nn.initializers.normal(stddev=self.conv_width**-0.5)
    shape = (self.num_heads, self.conv_width)
    return self.param('conv', init, shape), True

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    q_MK, own_M = pooling.means(head.q_TK, head.segment_T, self.rank)
    k_MK, other_M = pooling.means(head.k_SK, head.segment_S, self.rank)

    def where(segment_T, segment_S):
      return softmax.sites(*(jnp.minimum(s, 1) for s in (segment_T, segment_S)))

    v_MV = chunked.attend(
      q_MK, head.k_SK, head.v_SV, where(own_M, head.segment_S), rows=call.rows
    )[0]
    a_MM = softmax.tile(q_MK, k_MK, jnp.eye(self.rank), where(own_M, other_M))
    v_MV = inverse(a_MM[0], self.iterations) @ v_MV
    o_TV = chunked.attend(
      head.q_TK, k_MK, v_MV, where(head.segment_T, other_M), head.rng,
      pattern=softmax.Pattern(
        dropout=0.0 if head.rng is None else self.dropout
      ),
      rows=call.rows,
    )[0]  # fmt: skip
    if params is None or call.is_cross:
      return o_TV
    v_SV = jnp.where(head.segment_S[:, None] > 0, head.v_SV, 0)
    return o_TV + convolve(v_SV, params)


def inverse(a_MM: Array, iterations: int) -> Array:
  """A^+ of a matrix of weights whose rows sum to 1 or are 0."""
  eye_MM = jnp.eye(a_MM.shape[0])
  # The largest sum of a row is 1.
  norm = a_MM.sum(0).max()
  start_MM = a_MM.T / jnp.where(norm > 0, norm, 1.0)

  @jax.checkpoint
  def improve(z_MM, _):
    az_MM = a_MM @ z_MM
    inner_MM = 7.0 * eye_MM - az_MM
    inner_MM = 15.0 * eye_MM - az_MM @ inner_MM
    return 0.25 * z_MM @ (13.0 * eye_MM - az_MM @ inner_MM), None

  return jax.lax.scan(improve, start_MM, length=iterations)[0]


def convolve(v_TV: Array, filter_W: Array) -> Array:
  """y_i = sum_w filter_w v_{i + w - (W - 1) / 2}, zeros outside; float32.

  A product of overlapping blocks of C tokens with a band [C, C + W - 1].
  """
  return one_by_one.recomputed_rows(
    _convolve, (v_TV, filter_W), None, one_by_one.is_faster(*v_TV.shape)
  )


def _convolve(inputs, _):
  v_TV, filter_W = inputs
  length, taps = v_TV.shape[0], filter_W.shape[0]
  size = max(softmax.even_size(length, BLOCK), taps - 1)
  num_blocks = -(-length // size)
  before = (taps - 1) // 2
  after = (num_blocks + 1) * size - length - before
  v_NCV = jnp.pad(v_TV, ((before, after), (0, 0)))
  v_NCV = v_NCV.reshape(num_blocks + 1, size, -1)
  v_NSV = jnp.concatenate([v_NCV[:-1], v_NCV[1:, : taps - 1]], axis=1)
  # A row of the band is the one above, moved by one.
  row = jnp.pad(filter_W.astype(v_TV.dtype), (0, size))
  width = size + taps - 1
  band_CS = jnp.tile(row, size)[: size * width].reshape(size, width)
  y_NCV = softmax.product('cs,nsv->ncv', band_CS, v_NSV)
  return y_NCV.reshape(-1, y_NCV.shape[-1])[:length]
