"""The way into a block that is narrower than the stream, and back.

    pre-LN:   h = W_in x + b_in              y = x + W_out h' + b_out
    post-LN:  h = norm(W_in x + b_in)        y = norm(x + W_out h' + b_out)

with h' what the block makes of h. The stream between blocks stays D wide, and
so do the states that a teacher is compared with, while mixer and feed-forward
part work at a width b < D (MobileBERT, Sun et al. 2020, 2004.02984, section
3.1, figure 1 c). Their NoNorm is our norm 'affine'.

Two things of theirs are left out: several feed-forward parts in one block
(section 3.1, stacked feed-forward networks), and one narrowed input that the
queries and keys of a block share beside its other inputs (figure 1, key-query
sharing of the bottleneck): here all that is in a block reads one h.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.models import norms


class Bottleneck(nn.Module):
  """`enter` before a block, `leave` behind it; see the module.

  Attributes:
    width: b.
    stream_width: D.
    norm_order, norm, norm_epsilon: of the model.
    dropout: rate on what is added to the stream.
    dtype: compute dtype; parameters are float32.
  """

  width: int
  stream_width: int
  norm_order: str = 'pre'
  norm: str = 'layer'
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.narrow = self._dense(self.width)
    self.widen = self._dense(self.stream_width)
    self.drop = nn.Dropout(self.dropout)
    if self.norm_order == 'post':
      self.norm_narrow = self._norm()
      self.norm_widen = self._norm()

  def enter(self, x_BTD: jax.Array) -> jax.Array:
    """h [B, T, b] of the stream."""
    h_BTK = self.narrow(x_BTD)
    return self.norm_narrow(h_BTK) if self.norm_order == 'post' else h_BTK

  def leave(
    self, x_BTD: jax.Array, h_BTK: jax.Array, *, deterministic: bool
  ) -> jax.Array:
    """y [B, T, D] of the stream and of what the block has made of h."""
    update_BTD = self.drop(self.widen(h_BTK), deterministic=deterministic)
    y_BTD = x_BTD + update_BTD
    return self.norm_widen(y_BTD) if self.norm_order == 'post' else y_BTD

  def __call__(
    self, x_BTD: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """y around a block that changes nothing."""
    return self.leave(x_BTD, self.enter(x_BTD), deterministic=deterministic)

  @nn.nowrap
  def _dense(self, features):
    return nn.Dense(
      features,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(1e-6),
    )

  @nn.nowrap
  def _norm(self):
    return norms.norm(self.norm, self.norm_epsilon, dtype=self.dtype)
