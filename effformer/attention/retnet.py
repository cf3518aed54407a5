"""Retention of RetNet (Sun et al. 2023, 2307.08621).

    S_i = gamma_h S_{i-1} + k_i v_i^T,  gamma_h = 1 - 2^{-5-h}, h = 0 ... H-1
    o_i = S_i^T q_i / sqrt(K)
    y = (norm(o) * swish(x W_g)) W_o

norm is the layer norm of each head, without scale and shift. Cost: time
T (K V + C (K + V)) with chunks of C tokens, memory T (K + V) + T K V / C. The
state of a stream is K x V numbers a head.

Rotary positions, which the paper has, are a setting here; the paper's xPos
(rotation with a further decay) is not there. The paper's three rescalings of
the products before the norm are left out: they cancel in it, but for its
epsilon. Projections start as those of all mechanisms here; the published code
makes them smaller by 2^{-2.5}.

Not supported: a context and relative biases, since there are no logits; fewer
heads of keys and values, since heads differ in their decay.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Head
from effformer.attention.primitives import recurrence
from effformer.attention.recurrent import SUPPORTS, Recurrent, layer_norm
from effformer.shapes import Array


class RetNetAttention(Recurrent):
  """Linear attention with a fixed decay for each head.

  V is 2K in the paper.
  """

  mechanism: ClassVar[str] = 'retnet'
  supports: ClassVar[Supports] = dataclasses.replace(SUPPORTS, rotary=True)

  def head_params(self, num_source: int, step: Array | None):
    """See `MultiHead`: log gamma, fixed."""
    share_H = 2.0 ** (-5.0 - jnp.arange(self.num_heads, dtype=jnp.float32))
    return jnp.log1p(-share_H), True

  @nn.nowrap
  def streams(self, head: Head, params: Array) -> recurrence.Streams:
    """See `Recurrent`."""
    decay_T = jnp.broadcast_to(params, head.segment_T.shape)
    return super().streams(head, params)._replace(decay=decay_T)

  @nn.nowrap
  def norm(self, o_BTHV: Array) -> Array:
    """See `Recurrent`."""
    return layer_norm(o_BTHV)
