"""Mega, moving average equipped gated attention (Ma et al. 2023, 2209.10655).

    h_i = (1 - p a) h_{i-1} + p b x_i     e_i = sum(c h_i) / sqrt(M)
    m = silu(e + w x)     v = silu(x W_v)     q, k = affine maps of silu(m W_z)
    o = f(q k^T + bias) v   h = silu(m W_h + (o silu(m W_r)) U)
    y = sigmoid(m W_u) (h - x)

M moving averages of each channel with a, p in (0, 1) (damped, of many speeds)
feed a single head of attention as wide as the model, within blocks of tokens; f
is softmax with 1 / sqrt(Z), or the Laplace function of <q, k> over the number
of visible keys, whose rows are not normalised. The bias is a number for each
distance. Bidirectionally there are averages of the past and of the future, the
token itself in both, as published.

Cost: time T (D^2 + D (C + M) + C' V) with chunks C and blocks C', memory T D.
Not supported: a context, and everything for several heads. Dropout acts on the
weights f. Averages and weights are float32 in any compute dtype.

The residual is not part of a mixer: x + y is the output of the paper where the
norm comes after the residual branch; where it comes before, the paper has the
residual in place of the normed x in y. Padding takes up no room in averages and
blocks, wherever it stands, and blocks begin anew with each segment. Matrices
start with variance 1 / fan-in (in the authors' code with a deviation of 0.02).
"""

import functools
import math
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention.contract import Supports, repeated
from effformer.attention.model_width import ModelWidth
from effformer.attention.primitives import diagonal, own_block
from effformer.shapes import DTypeLike

BLOCK = 128


class Stream(NamedTuple):
  """State of one row.

  Attributes:
    averages: of all channels.
    block: the last tokens, as many as a block has.
  """

  averages: diagonal.Memory
  block: own_block.Keys


class MegaMixer(ModelWidth):
  """The attention layer of Mega without norm and residual.

  Attributes:
    block: C', tokens that may see each other in attention; 0 for 128.
    function: f, 'softmax' or 'laplace'.
    num_averages: M, moving averages of each channel.
    key_width: Z, width of queries and keys.
    value_width: V, width of values; 0 for twice the model.
    causal: a token sees itself and earlier ones only.
    chunk: C, tokens, length of a chunk of the parallel form of the averages.
    dropout: probability, in [0, 1), on the weights.
    dtype: compute dtype; parameters are float32.
  """

  mechanism: ClassVar[str] = 'mega'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    streaming=True,
    packing=True,
    linear_time=True,
    linear_memory=True,
    dropout_mean=False,
  )

  block: int = 0
  function: str = 'softmax'
  num_averages: int = 16
  key_width: int = 64
  value_width: int = 0
  causal: bool = False
  chunk: int = 64

  def __post_init__(self):
    super().__post_init__()
    for setting in ('num_averages', 'key_width', 'chunk'):
      self.at_least(setting, 1)
    for setting in ('block', 'value_width'):
      self.at_least(setting, 0)
    self.one_of('function', own_block.FUNCTIONS)

  def init_state(
    self, batch_size: int, max_length: int, dtype: DTypeLike = jnp.float32
  ) -> Stream:
    """See `Mixer`; holds any number of tokens, and needs the parameters."""
    self.check_streaming()
    if self.scope is None or not self.has_variable('params', 'skip'):
      raise ValueError(
        'mega: the width of the model is not known; call '
        "module.apply(variables, ..., method='init_state')"
      )
    width = self.get_variable('params', 'skip').shape[-1]
    start = self._start(width, dtype)
    return repeated(start, batch_size)

  @nn.nowrap
  def _start(self, width, dtype):
    value_width = self.value_width or 2 * width
    zeros_W = jnp.zeros((self._block(),), jnp.int32)
    return Stream(
      diagonal.empty(width * self.num_averages, jnp.float32),
      own_block.Keys(
        jnp.zeros((self._block(), self.key_width), dtype),
        jnp.zeros((self._block(), value_width), dtype),
        zeros_W,
        zeros_W,
      ),
    )

  @nn.compact
  def mix(self, x_BTD, tokens, state, deterministic):
    """See `ModelWidth`."""
    width = x_BTD.shape[-1]
    widths = (width, self.key_width, self.value_width or 2 * width, width)
    keep_BT1 = tokens.keep_BT[..., None]
    x_BTD = jnp.where(keep_BT1, x_BTD, 0).astype(self.dtype)
    # Real tokens first, in order, so that none stands between two others.
    order_BT = jnp.argsort(~tokens.keep_BT, axis=-1, stable=True)
    rank_BT = jnp.maximum(jnp.cumsum(tokens.keep_BT, axis=-1) - 1, 0)
    x_BTD, segment_BT, position_BT = (
      _take(x, order_BT) for x in (x_BTD, tokens.segment_BT, tokens.position_BT)
    )
    memory, ring = (None, None) if state is None else state
    average_BTD, memory = self._averages(
      x_BTD, segment_BT, memory, tokens.is_packed
    )
    v_BTV = nn.silu(self._dense('content', widths[2])(x_BTD))
    parts = self._dense('gates', sum(widths))(average_BTD)
    update_BTD, z_BTK, reset_BTV, h_BTD = jnp.split(
      parts, np.cumsum(widths[:-1]), axis=-1
    )
    q_BTK, k_BTK = self._affine(nn.silu(z_BTK))
    bias_W = self.param(
      'relative_bias', nn.initializers.normal(0.02), (2 * self._block() - 1,)
    )
    rng_B = None
    if self.dropout and not deterministic:
      rng_B = jax.random.split(self.make_rng('dropout'), x_BTD.shape[0])
    attend = functools.partial(
      own_block.attend, rule=self._rule(rng_B), rows=x_BTD.shape[0],
      is_aligned=state is None and not tokens.is_packed,
    )  # fmt: skip
    keys = own_block.Keys(k_BTK, v_BTV, segment_BT, position_BT)
    axes = (0, 0, 0, None, 0)
    o_BTV, ring = jax.vmap(attend, axes)(q_BTK, keys, ring, bias_W, rng_B)
    o_BTV = o_BTV.astype(self.dtype) * nn.silu(reset_BTV)
    h_BTD = nn.silu(h_BTD + self._dense('out', width)(o_BTV))
    y_BTD = nn.sigmoid(update_BTD) * (h_BTD - x_BTD)
    y_BTD = jnp.where(keep_BT1, _take(y_BTD, rank_BT), 0)
    return y_BTD, Stream(memory, ring)

  @nn.nowrap
  def _block(self):
    return self.block or BLOCK

  @nn.nowrap
  def _rule(self, rng_B):
    dropout = 0.0 if rng_B is None else self.dropout
    return own_block.Rule(self._block(), self.function, self.causal, dropout)

  @nn.nowrap
  def _dense(self, name, width):
    return nn.Dense(width, dtype=self.dtype, name=name)

  @nn.nowrap
  def _affine(self, z_BTK):
    """Queries and keys."""
    shape = (2, self.key_width)
    scale_NK = self.param('scale', nn.initializers.normal(0.02), shape)
    shift_NK = self.param('shift', nn.initializers.zeros, shape)
    scale_NK, shift_NK = (x.astype(z_BTK.dtype) for x in (scale_NK, shift_NK))
    return (
      z_BTK * scale_NK[n][None, None] + shift_NK[n][None, None] for n in (0, 1)
    )

  @nn.nowrap
  def _averages(self, x_BTD, segment_BT, memory, is_packed):
    """silu(e + w x), and the memory after these tokens."""
    width = x_BTD.shape[-1]
    inputs_BTD = x_BTD.astype(jnp.float32)
    past = self._average('past', width)
    skip_D = self.param('skip', nn.initializers.normal(1.0), (width,))
    sum_BTD = skip_D[None, None] * inputs_BTD
    if memory is None and not is_packed:

      def average(coefficients, x_BTD, _):
        one = functools.partial(
          diagonal.convolve, coefficients=coefficients, chunk=self.chunk
        )
        return jax.vmap(one)(x_BTD), None

    else:

      def average(coefficients, x_BTD, segment_BT):
        one = functools.partial(
          diagonal.average, coefficients=coefficients, chunk=self.chunk
        )
        if memory is not None:
          return jax.vmap(one)(x_BTD, segment_BT, memory)
        start = diagonal.empty(width * self.num_averages, jnp.float32)
        return jax.vmap(one, (0, 0, None))(x_BTD, segment_BT, start)

    e_BTD, after = average(past, inputs_BTD, segment_BT)
    sum_BTD += e_BTD
    if not self.causal:
      # Zeros of padding come first here, and leave no trace.
      future = self._average('future', width)
      e_BTD, _ = average(future, inputs_BTD[:, ::-1], segment_BT[:, ::-1])
      sum_BTD += e_BTD[:, ::-1]
    return nn.silu(sum_BTD).astype(self.dtype), after

  @nn.nowrap
  def _average(self, name, width):
    """The coefficients of one direction."""
    shape = (width, self.num_averages)

    def normal(setting, deviation):
      init = nn.initializers.normal(deviation)
      return self.param(f'{name}_{setting}', init, shape)

    share_DM = nn.sigmoid(normal('share', 0.2))
    rate_DM = 1.0 - share_DM * nn.sigmoid(normal('damping', 0.2))
    sign_M = jnp.where(jnp.arange(self.num_averages) % 2 == 0, 1.0, -1.0)
    drive_DM = self.param(
      f'{name}_drive',
      lambda rng: sign_M[None] + 0.02 * jax.random.normal(rng, shape),
    )
    read_DM = normal('read', 1.0) / math.sqrt(self.num_averages)
    return diagonal.Coefficients(rate_DM, share_DM * drive_DM, read_DM)


def _take(x, index_BT):
  if x.ndim == 3:
    index_BT = index_BT[..., None]
  return jnp.take_along_axis(x, index_BT, axis=1)
