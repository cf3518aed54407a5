"""What every mechanism promises: tokens in, tokens out, at model width.

A `Mixer` maps `x_BTD` to `y_BTD`. What it can do is declared in `supports`;
asking for anything else raises `NotImplementedError` naming the mechanism and
the capability. Outputs at padding are finite and otherwise unspecified.

One law joins training to generation: a causal call equals `extend` from the
initial state, for every split of the tokens.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.shapes import Array, DTypeLike, Tokens

State = Any


@dataclasses.dataclass(frozen=True)
class Supports:
  """Capabilities of a mechanism; the laws are tested where one is declared.

  Attributes:
    bidirectional: every token may see every other one.
    causal: `causal=True`, a token sees itself and earlier ones only.
    cross: queries from `x`, keys and values from `context`.
    streaming: `init_state` and `extend`, where causal.
    packing: several segments in a row, none of which sees another.
    rotary: rotary positions (`rotary=True`).
    relative_bias: ALiBi and T5 biases of the logits.
    grouped: fewer heads of keys and values than of queries.
    grouped_choice: heads that share keys and values choose together what they
      see, so that repeating these for each head changes the result.
    needs_length: parameters are made for a maximal number of source tokens.
    row_normalised: weights of a query sum to one: constant values come back.
    permutation: source tokens are a set: their order changes nothing.
    linear_time: operations grow linearly with tokens, up to logarithms.
    linear_memory: memory of forward and backward grows linearly with tokens.
    any_padding: more padding on the right changes nothing.
    dropout_mean: dropout keeps the mean of the output; not where a function
      that is not linear comes after it.
    choice_leaks: where causal, which of the past tokens are seen (never what
      they say) depends on later tokens.
  """

  bidirectional: bool = True
  causal: bool = False
  cross: bool = False
  streaming: bool = False
  packing: bool = False
  rotary: bool = False
  relative_bias: bool = False
  grouped: bool = False
  grouped_choice: bool = False
  needs_length: bool = False
  row_normalised: bool = False
  permutation: bool = False
  linear_time: bool = False
  linear_memory: bool = False
  any_padding: bool = True
  dropout_mean: bool = True
  choice_leaks: bool = False


class Mixer(nn.Module):
  """Base of all mechanisms.

  Attributes:
    mechanism: name in the table, used in messages.
    supports: what can be asked for.
  """

  mechanism: ClassVar[str]
  supports: ClassVar[Supports]

  def __call__(
    self,
    x_BTD: Array,
    context_BSD: Array | None = None,
    *,
    tokens: Tokens,
    context_tokens: Tokens | None = None,
    deterministic: bool = True,
  ) -> Array:
    """Mixes all tokens at once.

    Args:
      x_BTD: tokens that ask.
      context_BSD: tokens that are asked, of the same width; None for `x`.
      tokens: of `x`.
      context_tokens: of the context; given exactly when the context is.
      deterministic: False applies dropout, which needs a key `dropout`.

    Returns:
      y_BTD in the compute dtype.

    Raises:
      NotImplementedError: for a capability that `supports` does not declare.
      ValueError: for shapes that do not fit each other.
    """
    raise NotImplementedError(self.refusal('bidirectional'))

  def init_state(
    self, batch_size: int, max_length: int, dtype: DTypeLike = 'float32'
  ) -> State:
    """The state before the first token: a pytree of fixed shapes.

    Call it on a module that knows the width of its heads: one with
    `head_width`, or through `module.apply(variables, ..., method=...)`.

    Args:
      batch_size: B, rows.
      max_length: real tokens of a row that the state must have room for.
      dtype: of stored keys and values; sums are float32 in any case.
    """
    raise NotImplementedError(self.refusal('streaming'))

  def extend(
    self, x_BTD: Array, state: State, *, tokens: Tokens
  ) -> tuple[Array, State]:
    """Mixes T >= 1 further tokens with all that came before; no dropout.

    Padding leaves the state as it was. The state has fixed shapes, so this
    can be the body of a `lax.scan`.
    """
    raise NotImplementedError(self.refusal('streaming'))

  @nn.nowrap
  def projects_tokens(self) -> bool:
    """Whether every dense layer here has one input for each token.

    False where some are given a choice or mixtures of the tokens.
    """
    return True

  @nn.nowrap
  def refusal(self, capability: str, when: str = '') -> str:
    """The message for a capability that is not there."""
    where = f' {when}' if when else ''
    return f'{self.mechanism} does not support {capability}{where}'

  @nn.nowrap
  def check_call(
    self,
    x_BTD: Array,
    context_BSD: Array | None,
    tokens: Tokens,
    context_tokens: Tokens | None,
  ) -> None:
    """Raises for a call that is not supported or does not fit together."""
    is_cross = context_BSD is not None
    if is_cross and not self.supports.cross:
      raise NotImplementedError(self.refusal('cross'))
    if is_cross and getattr(self, 'causal', False):
      raise NotImplementedError(self.refusal('cross', 'when causal=True'))
    if not (self.supports.bidirectional or getattr(self, 'causal', True)):
      raise NotImplementedError(
        self.refusal('bidirectional', '(set causal=True)')
      )
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

  @nn.nowrap
  def check_extend(self, x_BTD: Array, state: State, tokens: Tokens) -> None:
    """Raises for tokens that do not fit the stream."""
    self.check_streaming()
    self._check(x_BTD, tokens, 'x')
    batch_size = jax.tree.leaves(state)[0].shape[0]
    self._check_equal('batch of x and state', x_BTD.shape[0], batch_size)

  @nn.nowrap
  def check_streaming(self):
    if not self.supports.streaming:
      raise NotImplementedError(self.refusal('streaming'))
    if not getattr(self, 'causal', True):
      raise NotImplementedError(self.refusal('streaming', 'when causal=False'))

  @nn.nowrap
  def _check(self, x_BTD, tokens, name):
    if tokens.is_packed and not self.supports.packing:
      raise NotImplementedError(
        self.refusal('packing', '(tokens.is_packed is True)')
      )
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

  @nn.nowrap
  def at_least(self, setting: str, least: int) -> None:
    """Raises ValueError for a setting below its least value."""
    value = getattr(self, setting)
    if value < least:
      raise ValueError(
        f'{self.mechanism}: {setting} must be at least {least}, got {value}'
      )

  @nn.nowrap
  def rate(self, setting: str) -> None:
    """Raises ValueError for what is no probability below 1."""
    value = getattr(self, setting)
    if not 0.0 <= value < 1.0:
      raise ValueError(
        f'{self.mechanism}: {setting} must be in [0, 1), got {value}'
      )

  @nn.nowrap
  def one_of(self, setting: str, known: tuple[str, ...]) -> None:
    """Raises ValueError for a word that is not among the known ones."""
    value = getattr(self, setting)
    if value not in known:
      raise ValueError(
        f'{self.mechanism}: {setting} must be one of {", ".join(known)}; got '
        f'{value!r}'
      )


def repeated(start: State, *shape: int) -> State:
  """A state for each of many rows, or heads of rows, all alike."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), start)


def _given(argument):
  return 'none' if argument is None else 'one'
