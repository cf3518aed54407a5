"""Everything that mechanisms with heads share.

    q, k, v = x W_q, x W_k, x W_v        (k, v from the context, if any)
    y = [o_1 ... o_H] W_o,  o_h = mix(q_h, k_h, v_h)

A mechanism is a pure function on one head of one example, arrays [T, K], lifted
over heads and batch by `heads`. Its class says which function, and adds
settings.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention import heads
from effformer.attention.contract import Mixer, State, repeated
from effformer.attention.heads import Call, Head
from effformer.attention.primitives import one_by_one, positions
from effformer.shapes import Array, DTypeLike, Tokens

__all__ = ['Call', 'Head', 'MultiHead']


class MultiHead(Mixer):
  """Projections, heads, rotary positions, dropout and output.

  Attributes:
    num_heads: H.
    num_kv_heads: H', heads of keys and values, a divisor of H; None for H.
    head_width: K = V; None for D / H, which must then be whole.
    use_bias: biases in the four projections.
    causal: a token sees itself and earlier ones only.
    rotary: rotary positions on queries and keys; K must be even.
    relative_bias: 'none', 'alibi' (fixed slopes) or 't5' (trained), added to
      the logits.
    dropout: probability, in [0, 1); where it acts the mechanism says.
    dtype: compute dtype; parameters are float32.
  """

  # What a mechanism does itself, because it has to happen inside.
  rotates_itself: ClassVar[bool] = False
  drops_itself: ClassVar[bool] = True
  # Whether all heads that share keys and values are mixed in one call, with
  # queries [T, G, K]; see `heads`.
  mixes_groups: ClassVar[bool] = False
  # Whether it makes choices, which a last bit can turn over: it then computes
  # in the same way with and without a gradient.
  is_discrete: ClassVar[bool] = False
  # Whether a stream has a state of its own before the heads.
  has_carry: ClassVar[bool] = False

  num_heads: int = 4
  num_kv_heads: int | None = None
  head_width: int | None = None
  use_bias: bool = False
  causal: bool = False
  rotary: bool = False
  relative_bias: str = 'none'
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    for capability in ('causal', 'rotary'):
      if getattr(self, capability) and not getattr(self.supports, capability):
        raise NotImplementedError(self.refusal(capability))
    self.one_of('relative_bias', positions.KINDS)
    if self.relative_bias != 'none' and not self.supports.relative_bias:
      raise NotImplementedError(self.refusal('relative_bias'))
    self.at_least('num_heads', 1)
    groups = self.num_kv_heads
    if groups is not None and groups != self.num_heads:
      if not self.supports.grouped:
        raise NotImplementedError(self.refusal('grouped', '(num_kv_heads)'))
      if groups < 1 or self.num_heads % groups:
        raise ValueError(
          f'{self.mechanism}: num_kv_heads must divide num_heads '
          f'{self.num_heads}, got {groups}'
        )
    if self.head_width is not None:
      self.at_least('head_width', 1)
      self._check_rotary(self.head_width)
    self.rate('dropout')

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
  def mix_heads(
    self, head: Head, params: Any, is_per_head: bool, call: Call
  ) -> Array:
    """`mix` for all heads of all examples -> o_BTHV; see `heads.lift`."""

    def one(head, params):
      return self.mix(self._rotated(head), params, call)

    is_long = one_by_one.is_faster(head.q_TK.shape[1], head.q_TK.shape[3])
    if is_long and not self.is_discrete:
      one = one_by_one.forward_rows(one)
    return heads.lift(one, head, params, is_per_head, self.mixes_groups)

  @nn.nowrap
  def step(
    self, head: Head, state: State, params: Any, call: Call
  ) -> tuple[Array, State]:
    """`mix` of new tokens with all that the state holds, and the new state."""
    raise NotImplementedError(self.refusal('streaming'))

  @nn.nowrap
  def head_state(
    self, max_length: int, head_width: int, dtype: DTypeLike
  ) -> State:
    """The state of one head of one example before the first token."""
    raise NotImplementedError(self.refusal('streaming'))

  def head_params(
    self, num_source: int, step: Array | None
  ) -> tuple[Any, bool]:
    """Further parameters, and whether their first axis is that of the heads.

    `num_source` is the number of source tokens, or in a stream that of the new
    ones; `step` is that of `Tokens`.
    """
    return (), False

  def project(
    self, x_BTD: Array, context_BSD: Array, tokens: Tokens, carry: Any
  ) -> tuple[tuple[Array, Array, Array, Any], Any]:
    """q [B, T, H, K]; k, v and more streams [B, S, H', ...]; the new carry.

    `tokens` are those of the context. A carry is what a stream needs before the
    heads (`has_carry`); None outside of a stream.
    """
    width = self.width_of_head(x_BTD.shape[-1])
    sources = (self.num_kv_heads or self.num_heads, width)
    v_BSHV = self.projection('value', sources)(context_BSD)
    k_BSHK = self.projection('key', sources)(context_BSD)
    q_BTHK = self.projection('query', (self.num_heads, width))(x_BTD)
    return (q_BTHK, k_BSHK, v_BSHV, None), carry

  def carry_state(self, batch_size: int, dtype: DTypeLike) -> State:
    """The carry before the first token, [B, ...]; see `project`."""
    raise NotImplementedError(self.refusal('streaming'))

  def refine(self, o_BTHV: Array, x_BTD: Array) -> Array:
    """Norms and gates of the outputs of the heads, before dropout."""
    return o_BTHV

  def finish(self, o_BTHV: Array, x_BTD: Array) -> Array:
    """y_BTD from the outputs of the heads."""
    return self.projection('out', x_BTD.shape[-1], axis=(-2, -1))(o_BTHV)

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
    self.check_call(x_BTD, context_BSD, tokens, context_tokens)
    is_cross = context_BSD is not None
    if not is_cross:
      context_BSD, context_tokens = x_BTD, tokens
    return self.project_and_mix(
      x_BTD, context_BSD, tokens, context_tokens, is_cross, deterministic, None
    )[0]

  def init_state(
    self, batch_size: int, max_length: int, dtype: DTypeLike = jnp.float32
  ) -> State:
    """See `Mixer`."""
    self.check_streaming()
    shape = (batch_size, self.num_kv_heads or self.num_heads)
    state = repeated(
      self.head_state(max_length, self.known_head_width(), dtype), *shape
    )
    if not self.has_carry:
      return state
    return state, self.carry_state(batch_size, dtype)

  def extend(
    self, x_BTD: Array, state: State, *, tokens: Tokens
  ) -> tuple[Array, State]:
    """See `Mixer`."""
    self.check_extend(x_BTD, state, tokens)
    return self.project_and_mix(
      x_BTD, x_BTD, tokens, tokens, False, True, state
    )

  @nn.compact
  def project_and_mix(
    self, x_BTD, context_BSD, tokens, context_tokens, is_cross, deterministic,
    state,
  ):  # fmt: skip
    """Both calls in one, since linen makes parameters in one place."""
    # A custom gradient takes no constants of NumPy.
    tokens, context_tokens = jax.tree.map(jnp.asarray, (tokens, context_tokens))
    is_packed = tokens.is_packed or context_tokens.is_packed
    carry = None
    if state is not None and self.has_carry:
      state, carry = state
    (q_BTHK, k_BSHK, v_BSHV, more), carry = self.project(
      x_BTD, context_BSD, context_tokens, carry
    )
    rng = None
    if self.is_random() and not deterministic:
      rng = self.make_rng('dropout')
    head = Head(
      q_BTHK, k_BSHK, v_BSHV, more,
      self._bias_weights(), self._head_rngs(rng, x_BTD),
      tokens.segment_BT, context_tokens.segment_BT,
      tokens.position_BT, context_tokens.position_BT,
    )  # fmt: skip
    call = Call(is_packed, is_cross, x_BTD.shape[0] * self.num_heads)
    params, is_per_head = self.head_params(context_BSD.shape[1], tokens.step)
    if state is None:
      o_BTHV = self.mix_heads(head, params, is_per_head, call)
    else:
      o_BTHV, state = heads.lift_step(
        lambda head, state, params: self.step(
          self._rotated(head), state, params, call
        ),
        head, state, params, is_per_head, self.mixes_groups,
      )  # fmt: skip
    o_BTHV = self.refine(o_BTHV, x_BTD).astype(self.dtype)
    if not self.drops_itself:
      o_BTHV = nn.Dropout(self.dropout)(
        o_BTHV, deterministic=rng is None, rng=rng
      )
    if state is not None and self.has_carry:
      state = state, carry
    return self.finish(o_BTHV, x_BTD), state

  @nn.nowrap
  def is_random(self) -> bool:
    """Whether a call in training draws something, and needs a key for it."""
    return self.dropout > 0

  @nn.nowrap
  def known_head_width(self) -> int:
    """K, from the settings or from the parameters that this is called with."""
    if self.head_width is not None:
      return self.head_width
    if self.scope is None or not self.has_variable('params', 'query'):
      raise ValueError(
        f'{self.mechanism}: the width of a head is not known; set '
        'head_width, or call module.apply(variables, ..., '
        "method='init_state')"
      )
    return self.get_variable('params', 'query')['kernel'].shape[-1]

  @nn.nowrap
  def bias_rule(self) -> positions.Rule | None:
    """The relative bias, as a `Pattern` takes it."""
    if self.relative_bias == 'none':
      return None
    return positions.Rule(self.relative_bias, self.causal)

  @nn.nowrap
  def _bias_weights(self):
    if self.relative_bias == 'none':
      return None
    if self.relative_bias == 'alibi':
      return jnp.asarray(positions.slopes(self.num_heads))
    weights = self.param(
      'relative_bias',
      nn.initializers.normal(0.02),
      (self.num_heads, self.bias_rule().num_buckets),
    )
    # A custom gradient takes no constants of NumPy.
    return jnp.asarray(weights)

  @nn.nowrap
  def _rotated(self, head):
    if not self.rotary or self.rotates_itself:
      return head
    return head._replace(
      q_TK=positions.rotate(head.q_TK, head.position_T),
      k_SK=positions.rotate(head.k_SK, head.position_S),
    )

  @nn.nowrap
  def _head_rngs(self, rng, x_BTD):
    if rng is None or not self.drops_itself:
      return None
    return jax.random.split(rng, (x_BTD.shape[0], self.num_heads))

  @nn.nowrap
  def projection(self, name, features, axis=-1):
    return nn.DenseGeneral(
      features,
      axis=axis,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      name=name,
    )

  @nn.nowrap
  def width_of_head(self, width):
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
  def _check_rotary(self, head_width):
    if self.rotary and head_width % 2:
      raise ValueError(
        f'{self.mechanism}: rotary needs an even head width, got {head_width}'
      )
