"""Everything that mechanisms with heads share.

    q, k, v = x W_q, x W_k, x W_v        (k, v from the context, if any)
    y = [o_1 ... o_H] W_o,  o_h = mix(q_h, k_h, v_h)

A mechanism is a pure function on one head of one example, arrays [T, K], lifted
here over heads and batch. Its class says which function, and adds settings.

Rotary positions (Su et al. 2021, 2104.09864): pairs (x_t, x_{t + K/2}) turn by
position * 10000^{-2t/K}; angles are float32.
"""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Mixer, State
from effformer.shapes import Array, DTypeLike, Tokens


class Head(NamedTuple):
  """What the mathematics of one head of one example works on.

  Attributes:
    q_TK: queries in the compute dtype.
    k_SK: keys.
    v_SV: values.
    segment_T: int32, of the queries; 0 is padding.
    segment_S: int32, of the keys.
    position_T: int32, of the queries, within their segments.
    position_S: int32, of the keys.
    rng: key for dropout within the mechanism, or None for no dropout.
  """

  q_TK: Array
  k_SK: Array
  v_SV: Array
  segment_T: Array
  segment_S: Array
  position_T: Array
  position_S: Array
  rng: Array | None


# Axis of the heads in each field, once the batch is taken off.
HEAD_AXES = Head(1, 1, 1, None, None, None, None, 0)


def rotate(x_TK: Array, position_T: Array, base: float = 10_000.0) -> Array:
  """Turns each pair of halves by its position; the norm stays. K is even."""
  half = x_TK.shape[-1] // 2
  rate_K = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_TK = position_T.astype(jnp.float32)[:, None] * rate_K[None, :]
  cos_TK, sin_TK = jnp.cos(angle_TK), jnp.sin(angle_TK)
  first_TK, second_TK = jnp.split(x_TK.astype(jnp.float32), 2, axis=-1)
  turned_TK = jnp.concatenate(
    [
      first_TK * cos_TK - second_TK * sin_TK,
      second_TK * cos_TK + first_TK * sin_TK,
    ],
    axis=-1,
  )
  return turned_TK.astype(x_TK.dtype)


class Call(NamedTuple):
  """Static facts of one call.

  Attributes:
    is_packed: False promises at most one segment a row.
    is_cross: keys and values come from a context.
    rows: B H, heads of examples that are computed together.
  """

  is_packed: bool
  is_cross: bool
  rows: int


class MultiHead(Mixer):
  """Projections, heads, rotary positions, dropout and output.

  Attributes:
    num_heads: H.
    head_width: K = V; None for D / H, which must then be whole.
    use_bias: biases in the four projections.
    causal: a token sees itself and earlier ones only.
    rotary: rotary positions on queries and keys; K must be even.
    dropout: probability, in [0, 1); where it acts the mechanism says.
    dtype: compute dtype; parameters are float32.
  """

  # What a mechanism does itself, because it has to happen inside.
  rotates_itself: ClassVar[bool] = False
  drops_itself: ClassVar[bool] = True

  num_heads: int = 4
  head_width: int | None = None
  use_bias: bool = False
  causal: bool = False
  rotary: bool = False
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    for capability in ('causal', 'rotary'):
      if getattr(self, capability) and not getattr(self.supports, capability):
        raise NotImplementedError(self.refusal(capability))
    self.at_least('num_heads', 1)
    if self.head_width is not None:
      self.at_least('head_width', 1)
      self._check_rotary(self.head_width)
    if not 0.0 <= self.dropout < 1.0:
      raise ValueError(
        f'{self.mechanism}: dropout must be in [0, 1), got {self.dropout}'
      )

  @nn.nowrap
  def mix(self, head: Head, params: Any, call: Call) -> Array:
    """The mechanism: o_TV of one head of one example.

    Args:
      head: queries, keys, values and where they stand.
      params: this head's share of `head_params`.
      call: static facts.
    """
    raise NotImplementedError(self.refusal('bidirectional'))

  @nn.nowrap
  def step(self, head: Head, state: State, call: Call) -> tuple[Array, State]:
    """`mix` of new tokens with all that the state holds, and the new state."""
    raise NotImplementedError(self.refusal('streaming'))

  @nn.nowrap
  def head_state(
    self, max_length: int, head_width: int, dtype: DTypeLike
  ) -> State:
    """The state of one head of one example before the first token."""
    raise NotImplementedError(self.refusal('streaming'))

  def head_params(self, num_source: int) -> tuple[Any, Any]:
    """Further parameters, and the axis of the heads in each (or None)."""
    return (), None

  def __call__(
    self,
    x_BTD: Array,
    context_BSD: Array | None = None,
    *,
    tokens: Tokens,
    context_tokens: Tokens | None = None,
    deterministic: bool = True,
  ) -> Array:
    """See `Mixer`."""
    is_cross = context_BSD is not None
    if is_cross and not self.supports.cross:
      raise NotImplementedError(self.refusal('cross'))
    if is_cross and self.causal:
      raise NotImplementedError(self.refusal('cross', 'when causal=True'))
    if is_cross != (context_tokens is not None):
      raise ValueError(
        f'{self.mechanism}: context and context_tokens go together; '
        f'got {_given(context_BSD)} and {_given(context_tokens)}'
      )
    self._check(x_BTD, tokens, 'x')
    if is_cross:
      self._check(context_BSD, context_tokens, 'context')
      self._check_equal('batch', x_BTD.shape[0], context_BSD.shape[0])
      self._check_equal('width', x_BTD.shape[2], context_BSD.shape[2])
    else:
      context_BSD, context_tokens = x_BTD, tokens
    return self.project_and_mix(
      x_BTD, context_BSD, tokens, context_tokens, is_cross, deterministic, None
    )[0]

  def init_state(
    self, batch_size: int, max_length: int, dtype: DTypeLike = jnp.float32
  ) -> State:
    """See `Mixer`."""
    self._check_streaming()
    head_width = self.head_width
    if head_width is None:
      if self.scope is None or not self.has_variable('params', 'query'):
        raise ValueError(
          f'{self.mechanism}: the width of a head is not known; set '
          'head_width, or call module.apply(variables, ..., '
          "method='init_state')"
        )
      kernel_DHK = self.get_variable('params', 'query')['kernel']
      head_width = kernel_DHK.shape[-1]
    state = self.head_state(max_length, head_width, dtype)
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x, (batch_size, self.num_heads, *x.shape)),
      state,
    )

  def extend(
    self, x_BTD: Array, state: State, *, tokens: Tokens
  ) -> tuple[Array, State]:
    """See `Mixer`."""
    self._check_streaming()
    self._check(x_BTD, tokens, 'x')
    batch_size = jax.tree.leaves(state)[0].shape[0]
    self._check_equal('batch of x and state', x_BTD.shape[0], batch_size)
    return self.project_and_mix(
      x_BTD, x_BTD, tokens, tokens, False, True, state
    )

  @nn.compact
  def project_and_mix(
    self, x_BTD, context_BSD, tokens, context_tokens, is_cross, deterministic,
    state,
  ):  # fmt: skip
    """Both calls in one, since linen makes parameters in one place."""
    is_packed = tokens.is_packed or context_tokens.is_packed
    if is_packed and not self.supports.packing:
      raise NotImplementedError(
        self.refusal('packing', '(tokens.is_packed is True)')
      )
    width = x_BTD.shape[-1]
    heads = (self.num_heads, self._width_of_head(width))
    v_BSHV = self._projection('value', heads)(context_BSD)
    k_BSHK = self._projection('key', heads)(context_BSD)
    q_BTHK = self._projection('query', heads)(x_BTD)
    rng = None
    if self.dropout and not deterministic:
      rng = self.make_rng('dropout')
    head = Head(
      q_BTHK, k_BSHK, v_BSHV,
      tokens.segment_BT, context_tokens.segment_BT,
      tokens.position_BT, context_tokens.position_BT,
      self._head_rngs(rng, x_BTD),
    )  # fmt: skip
    call = Call(is_packed, is_cross, x_BTD.shape[0] * self.num_heads)
    if state is None:
      params, axes = self.head_params(context_BSD.shape[1])
      o_BTHV = self._mix_all(head, params, axes, call)
    else:
      o_BTHV, state = self._step_all(head, state, call)
    o_BTHV = o_BTHV.astype(self.dtype)
    if not self.drops_itself:
      o_BTHV = nn.Dropout(self.dropout)(
        o_BTHV, deterministic=rng is None, rng=rng
      )
    return self._projection('out', width, axis=(-2, -1))(o_BTHV), state

  @nn.nowrap
  def _mix_all(self, head, params, axes, call):
    def one(head, params):
      return self.mix(self._rotated(head), params, call)

    over_heads = jax.vmap(one, in_axes=(HEAD_AXES, axes), out_axes=1)
    return jax.vmap(over_heads, in_axes=(0, None))(head, params)

  @nn.nowrap
  def _step_all(self, head, state, call):
    def one(head, state):
      return self.step(self._rotated(head), state, call)

    over_heads = jax.vmap(one, in_axes=(HEAD_AXES, 0), out_axes=(1, 0))
    return jax.vmap(over_heads)(head, state)

  @nn.nowrap
  def _rotated(self, head):
    if not self.rotary or self.rotates_itself:
      return head
    return head._replace(
      q_TK=rotate(head.q_TK, head.position_T),
      k_SK=rotate(head.k_SK, head.position_S),
    )

  @nn.nowrap
  def _head_rngs(self, rng, x_BTD):
    if rng is None or not self.drops_itself:
      return None
    return jax.random.split(rng, (x_BTD.shape[0], self.num_heads))

  @nn.nowrap
  def _projection(self, name, features, axis=-1):
    return nn.DenseGeneral(
      features,
      axis=axis,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      name=name,
    )

  @nn.nowrap
  def _width_of_head(self, width):
    if self.head_width is not None:
      return self.head_width
    if width % self.num_heads:
      raise ValueError(
        f'{self.mechanism}: width {width} is not a multiple of num_heads '
        f'{self.num_heads}; set head_width'
      )
    self._check_rotary(width // self.num_heads)
    return width // self.num_heads

  @nn.nowrap
  def at_least(self, setting: str, least: int) -> None:
    """Raises ValueError for a setting below its least value."""
    value = getattr(self, setting)
    if value < least:
      raise ValueError(
        f'{self.mechanism}: {setting} must be at least {least}, got {value}'
      )

  @nn.nowrap
  def _check_rotary(self, head_width):
    if self.rotary and head_width % 2:
      raise ValueError(
        f'{self.mechanism}: rotary needs an even head width, got {head_width}'
      )

  @nn.nowrap
  def _check_streaming(self):
    if not self.supports.streaming:
      raise NotImplementedError(self.refusal('streaming'))
    if not self.causal:
      raise NotImplementedError(self.refusal('streaming', 'when causal=False'))

  @nn.nowrap
  def _check(self, x_BTD, tokens, name):
    if x_BTD.ndim != 3:
      raise ValueError(
        f'{self.mechanism}: {name} must have 3 dimensions (batch, tokens, '
        f'width), got {x_BTD.ndim}: {x_BTD.shape}'
      )
    for field in ('segment_BT', 'position_BT'):
      shape = getattr(tokens, field).shape
      if shape != x_BTD.shape[:2]:
        raise ValueError(
          f'{self.mechanism}: {field} of {name} is {shape}, but {name} is '
          f'{x_BTD.shape}'
        )

  @nn.nowrap
  def _check_equal(self, what, first, second):
    if first != second:
      raise ValueError(f'{self.mechanism}: {what} {first} is not {second}')


def _given(argument):
  return 'none' if argument is None else 'one'
