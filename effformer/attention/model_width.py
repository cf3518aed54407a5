"""What mechanisms at the width of the model share: they have no heads.

Their class says how tokens are mixed, in one method for both calls of the
contract, since linen makes parameters in one place.
"""

import jax.numpy as jnp

from effformer.attention.contract import Mixer, State
from effformer.shapes import Array, DTypeLike, Tokens


class ModelWidth(Mixer):
  """Checks, then mixes.

  A mechanism has `mix(x_BTD, tokens, state, deterministic)`, which returns
  y_BTD and the state after it; `state` is None outside of a stream.

  Attributes:
    dropout: probability, in [0, 1); where it acts the mechanism says.
    dtype: compute dtype; parameters are float32.
  """

  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    self.rate('dropout')

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
    return self.mix(x_BTD, tokens, None, deterministic)[0]

  def extend(
    self, x_BTD: Array, state: State, *, tokens: Tokens
  ) -> tuple[Array, State]:
    """See `Mixer`."""
    self.check_extend(x_BTD, state, tokens)
    return self.mix(x_BTD, tokens, state, True)
