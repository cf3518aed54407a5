"""One block of the encoder: mixer and feed-forward part, and what they are."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import attention, shapes
from effformer.models import layers, norms
from effformer.models.bottleneck import Bottleneck

# What a stream keeps: a pytree, or None where there is no stream.
State = Any


@dataclasses.dataclass(frozen=True)
class LayerConfig:
  """What one block is.

  Attributes:
    mixer: row of `attention.TABLE`.
    settings: settings of the mixer, as sorted (name, value) pairs.
    mlp_width: F of the feed-forward part.
    activation: key of `layers.ACTIVATIONS`.
    conv_width: taps of the depthwise convolution before the mixer, 0 = none.
    mlp_chunk: tokens of a row that the feed-forward part works on together,
      0 = all; see `layers.FeedForward`.
    share: blocks with the same non-empty group have the same parameters.
    causal: of the convolution; that of the mixer is one of its settings.
    mlp_rank: of the two products of the feed-forward part, 0 = full; see
      `layers.FeedForward`.
    bottleneck: width b of all that is in the block, 0 = that of the stream;
      see `bottleneck.Bottleneck`.
  """

  mixer: str
  settings: tuple[tuple[str, Any], ...]
  mlp_width: int
  activation: str = 'gelu'
  conv_width: int = 0
  mlp_chunk: int = 0
  share: str = ''
  causal: bool = False
  mlp_rank: int = 0
  bottleneck: int = 0


class Block(nn.Module):
  """Mixer and feed-forward part, each with norm, dropout and residual.

  Pre-LN (`x + f(LN(x))`, Xiong et al. 2020) or post-LN (`LN(x + f(x))`,
  Vaswani et al. 2017). With a bottleneck all of this is at another width than
  the stream, and has a residual of its own around it.
  """

  layer: LayerConfig
  norm_order: str = 'pre'
  norm: str = 'layer'
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    tokens: shapes.Tokens,
    deterministic: bool,
    branch: str = '',
    state: State = None,
  ) -> tuple[jax.Array, State]:
    """The output, and the state of a stream after it (None without one).

    With `branch` only what this adds to the residual stream. Branches, of
    pre-LN only, are 'mixer', with the convolution, and 'mlp'. With a state the
    tokens are further ones, see `contract.Mixer.extend`.

    Raises:
      ValueError: `branch` of a block with a bottleneck, whose branches add
        nothing to the stream by themselves.
    """
    layer = self.layer
    if layer.bottleneck and branch:
      raise ValueError(
        f'a block with bottleneck={layer.bottleneck} has no branch {branch!r} '
        'of the residual stream'
      )
    mixer = self._mixer()
    conv_state, mixer_state = (None, None) if state is None else state
    feed_forward = layers.FeedForward(
      layer.mlp_width,
      activation=layer.activation,
      dropout=self.dropout,
      chunk=layer.mlp_chunk,
      rank=layer.mlp_rank,
      dtype=self.dtype,
      name='mlp',
    )
    before_BTD = x_BTD
    if layer.bottleneck:
      bottleneck = self._bottleneck(x_BTD.shape[-1])
      x_BTD = bottleneck.enter(x_BTD)
    if layer.conv_width and branch != 'mlp':
      # On the residual stream: what it gathers reaches the layers above even
      # where the mixer averages it away.
      x_BTD, conv_state = self._convolution('conv')(x_BTD, tokens, conv_state)

    def mix(h_BTD):
      nonlocal mixer_state
      if state is None:
        return mixer(h_BTD, tokens=tokens, deterministic=deterministic)
      y_BTD, mixer_state = mixer.extend(h_BTD, mixer_state, tokens=tokens)
      return y_BTD

    if branch != 'mlp':
      x_BTD = self._residual('norm_mixer', mix, x_BTD, deterministic)
    if branch != 'mixer':
      x_BTD = self._residual(
        'norm_mlp',
        lambda h_BTD: feed_forward(h_BTD, deterministic=deterministic),
        x_BTD,
        deterministic,
      )
    if layer.bottleneck:
      x_BTD = bottleneck.leave(before_BTD, x_BTD, deterministic=deterministic)
    after = None if state is None else (conv_state, mixer_state)
    return (x_BTD - before_BTD if branch else x_BTD), after

  @nn.nowrap
  def init_state(
    self, params: Any, batch_size: int, max_length: int, width: int
  ) -> State:
    """The state of a stream before its first token; `width` is D."""
    width = self.layer.bottleneck or width
    conv_state = None
    if self.layer.conv_width:
      conv_state = self._convolution().init_state(batch_size, width, self.dtype)
    mixer_state = self._mixer().apply(
      {'params': params['mixer']},
      batch_size,
      max_length,
      self.dtype,
      method='init_state',
    )
    return conv_state, mixer_state

  @nn.nowrap
  def _mixer(self):
    return attention.build(
      self.layer.mixer,
      module_name='mixer',
      dtype=self.dtype,
      **dict(self.layer.settings),
    )

  @nn.nowrap
  def _bottleneck(self, stream_width):
    return Bottleneck(
      self.layer.bottleneck,
      stream_width,
      norm_order=self.norm_order,
      norm=self.norm,
      norm_epsilon=self.norm_epsilon,
      dropout=self.dropout,
      dtype=self.dtype,
      name='bottleneck',
    )

  @nn.nowrap
  def _convolution(self, name=None):
    return layers.DepthwiseConvolution(
      self.layer.conv_width, self.layer.causal, self.dtype, name=name
    )

  def _residual(self, name, function, x_BTD, deterministic):
    norm = norms.norm(self.norm, self.norm_epsilon, dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout)
    if self.norm_order == 'pre':
      update_BTD = function(norm(x_BTD))
      return x_BTD + drop(update_BTD, deterministic=deterministic)
    update_BTD = function(x_BTD)
    return norm(x_BTD + drop(update_BTD, deterministic=deterministic))
