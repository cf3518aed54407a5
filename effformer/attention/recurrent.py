"""What the recurrences share: heads whose state is a matrix.

    S_i = Lambda_i S_{i-1} + k_i u_i^T        o_i = S_i^T q_i / sqrt(K)

with decay and delta rule as `primitives.recurrence` has them. A mechanism makes
the streams q, k, v, the decay and the rate from x (`project`), and norms and
gates the outputs of its heads (`refine`).

The papers are causal. The bidirectional form is ours: the same heads read the
tokens in both directions, o_i = past with the token itself + future, with one
set of parameters. Short convolutions look back in either form.

Rows are not normalised. Everything inside the recurrence is float32. There are
no attention probabilities, so dropout acts on the output of the heads, after
norm and gate.
"""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import recurrence, short_conv
from effformer.shapes import Array, DTypeLike, Tokens

# RMS and layer norm of the outputs of a head.
EPSILON = 1e-5

SUPPORTS = Supports(
  causal=True,
  streaming=True,
  packing=True,
  linear_time=True,
  linear_memory=True,
)


class Recurrent(MultiHead):
  """Base of the mechanisms with a decaying state.

  Attributes:
    chunk: tokens, length of a chunk of the parallel form.
    value_width: V of a head; 0 for the width of the paper, which the mechanism
      names.
  """

  drops_itself: ClassVar[bool] = False

  chunk: int = 64
  value_width: int = 0

  def __post_init__(self):
    super().__post_init__()
    self.at_least('chunk', 1)
    self.at_least('value_width', 0)

  def project(
    self, x_BTD: Array, context_BSD: Array, tokens: Tokens, carry: Any
  ):
    """See `MultiHead`; V may differ from K."""
    key_width = self.width_of_head(x_BTD.shape[-1])
    value_width = self.width_of_value(x_BTD.shape[-1], key_width)
    v_BTHV = self.projection('value', (self.num_heads, value_width))(x_BTD)
    k_BTHK = self.projection('key', (self.num_heads, key_width))(x_BTD)
    q_BTHK = self.projection('query', (self.num_heads, key_width))(x_BTD)
    return (q_BTHK, k_BTHK, v_BTHV, None), carry

  @nn.nowrap
  def width_of_value(self, width: int | None, key_width: int) -> int:
    """V, from the settings, D (None if not known) and K; here 2K."""
    return self.value_width or 2 * key_width

  @nn.nowrap
  def streams(self, head: Head, params: Any) -> recurrence.Streams:
    """The recurrence of one head; `more` holds its decay and beta, if any."""
    more = head.more or {}
    q_TK, k_TK, v_TV = (
      x.astype(jnp.float32) for x in (head.q_TK, head.k_SK, head.v_SV)
    )
    q_TK *= 1.0 / math.sqrt(q_TK.shape[-1])
    return recurrence.Streams(
      q_TK, k_TK, v_TV, more.get('decay'), more.get('beta')
    )

  @nn.nowrap
  def read(
    self,
    streams: recurrence.Streams,
    segment_T: Array,
    memory: recurrence.Memory | None,
  ) -> tuple[Array, recurrence.Memory | None]:
    """o_TV and, where causal, the memory; None for a memory without tokens."""
    if not self.causal:
      return recurrence.bidirectional(
        streams, segment_T, chunk=self.chunk
      ), None
    if memory is None:
      memory = recurrence.empty(streams.k_TK.shape[-1], streams.v_TV.shape[-1])
    return recurrence.causal(streams, segment_T, memory, chunk=self.chunk)

  @nn.nowrap
  def outputs(self, head: Head, params: Any, memory: Any) -> tuple[Array, Any]:
    """o_TV of one head of one example, and the memory as in `read`."""
    return self.read(self.streams(head, params), head.segment_T, memory)

  @nn.nowrap
  def mix(self, head: Head, params: Any, call: Call):
    """See `MultiHead`."""
    return self.outputs(head, params, None)[0]

  @nn.nowrap
  def step(self, head: Head, state: Any, params: Any, call: Call):
    """See `MultiHead`."""
    return self.outputs(head, params, state)

  @nn.nowrap
  def head_state(self, max_length: int, head_width: int, dtype: DTypeLike):
    """See `MultiHead`; holds any number of tokens, always in float32."""
    return recurrence.empty(head_width, self.known_value_width())

  @nn.nowrap
  def known_value_width(self) -> int:
    """V, from the parameters that this is called with, or the settings."""
    if self.scope is not None and self.has_variable('params', 'value'):
      return self.get_variable('params', 'value')['kernel'].shape[-1]
    return self.width_of_value(None, self.known_head_width())

  def refine(self, o_BTHV: Array, x_BTD: Array) -> Array:
    """Norm and gate: norm(o) * swish(x W_g)."""
    gate_BTHV = self.projection('gate', o_BTHV.shape[2:])(x_BTD)
    gate_BTHV = nn.silu(gate_BTHV.astype(jnp.float32))
    return self.norm(o_BTHV) * gate_BTHV

  @nn.nowrap
  def norm(self, o_BTHV: Array) -> Array:
    """Of each head; here the RMS norm, with a scale that heads share."""
    return rms_norm(o_BTHV, self.scale(o_BTHV.shape[-1:]))

  @nn.nowrap
  def scale(self, shape: tuple[int, ...]) -> Array:
    """Trained factors of the norm, at first 1."""
    return self.param('norm', nn.initializers.ones, shape)

  @nn.nowrap
  def exact_projection(
    self, name: str, features: int | tuple[int, ...], use_bias: bool = False
  ) -> nn.DenseGeneral:
    """In float32 for every compute dtype: for decays, which add up."""
    return nn.DenseGeneral(
      features,
      use_bias=use_bias,
      dtype=jnp.float32,
      kernel_init=nn.initializers.xavier_uniform(),
      name=name,
    )

  @nn.nowrap
  def convolve(
    self,
    streams: tuple[Array, ...],
    tokens: Tokens,
    tail: short_conv.Tail | None,
    taps: int,
    use_bias: bool = False,
  ) -> tuple[tuple[Array, ...], short_conv.Tail | None]:
    """silu of the short causal convolution of all channels of the streams.

    Args:
      streams: arrays [B, T, ...].
      tokens: where they stand.
      tail: of the stream, None outside of one.
      taps: W; filters start uniform in +-1 / sqrt(W), biases at 0.
      use_bias: whether there are biases.
    """
    flat_BTM = jnp.concatenate(
      [x.reshape(*x.shape[:2], -1) for x in streams], axis=-1
    )

    def start(rng, shape):
      return jax.random.uniform(rng, shape, minval=-1, maxval=1) / taps**0.5

    num_channels = flat_BTM.shape[-1]
    filter_WM = self.param('conv', start, (taps, num_channels))
    if tail is None:
      flat_BTM = short_conv.batch(flat_BTM, filter_WM, tokens.segment_BT)
    else:
      flat_BTM, tail = jax.vmap(short_conv.stream, (0, None, 0, 0))(
        flat_BTM, filter_WM, tokens.segment_BT, tail
      )
    if use_bias:
      bias_M = self.param('conv_bias', nn.initializers.zeros, (num_channels,))
      flat_BTM += bias_M[None, None].astype(flat_BTM.dtype)
    ends = np.cumsum([math.prod(x.shape[2:]) for x in streams])
    parts = jnp.split(nn.silu(flat_BTM), ends[:-1], axis=-1)
    return tuple(
      part.reshape(x.shape) for part, x in zip(parts, streams, strict=True)
    ), tail

  @nn.nowrap
  def tail_state(
    self, batch_size: int, taps: int, width: int, dtype: DTypeLike
  ) -> short_conv.Tail:
    """The tail of `convolve` before the first token."""
    tail = short_conv.empty(taps, width, dtype)
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x, (batch_size, *x.shape)), tail
    )


def rms_norm(x: Array, scale: Array) -> Array:
  """scale * x / sqrt(mean(x^2) + eps) over the last axis, float32."""
  x = x.astype(jnp.float32)
  x *= jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + EPSILON)
  return x * scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)


def layer_norm(x: Array) -> Array:
  """(x - mean(x)) / sqrt(var(x) + eps) over the last axis, float32."""
  x = x.astype(jnp.float32)
  x -= x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + EPSILON)


def l2_norm(x: Array) -> Array:
  """x / sqrt(sum(x^2) + 1e-6) over the last axis, float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def start_log_rate(least: float, most: float):
  """An initialiser: log of numbers uniform in [least, most)."""

  def start(rng, shape):
    # log 0 would be a decay that never learns.
    return jnp.log(
      jax.random.uniform(rng, shape, minval=max(least, 1e-4), maxval=most)
    )

  return start


def start_step_bias(rng: Array, shape: tuple[int, ...]) -> Array:
  """softplus^{-1} of step sizes that are log-uniform in [1e-3, 1e-1].

  As Mamba starts (Gu & Dao 2023, 2312.00752, section 3.6).
  """
  log_step = jax.random.uniform(
    rng, shape, minval=math.log(1e-3), maxval=math.log(1e-1)
  )
  step = jnp.exp(log_step)
  return step + jnp.log(-jnp.expm1(-step))
