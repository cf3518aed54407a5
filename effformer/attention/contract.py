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
    needs_length: parameters are made for a maximal number of source tokens.
    row_normalised: weights of a query sum to one: constant values come back.
    permutation: source tokens are a set: their order changes nothing.
    linear_memory: memory of forward and backward grows linearly with tokens.
  """

  bidirectional: bool = True
  causal: bool = False
  cross: bool = False
  streaming: bool = False
  packing: bool = False
  rotary: bool = False
  needs_length: bool = False
  row_normalised: bool = False
  permutation: bool = False
  linear_memory: bool = False


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
  def refusal(self, capability: str, when: str = '') -> str:
    """The message for a capability that is not there."""
    where = f' {when}' if when else ''
    return f'{self.mechanism} does not support {capability}{where}'
