"""How sparsity grows over the steps of a training.

Zhu & Gupta 2017, 1710.01878, equation 1, from 0:

    s_t = s (1 - (1 - t)^3),    t from 0 to 1
"""

import jax.numpy as jnp

from effformer.errors import ConfigError
from effformer.shapes import Array, ArrayLike


def cubic(
  step: ArrayLike,
  num_steps: int,
  final: float,
  *,
  warmup_steps: int = 0,
  final_steps: int = 0,
) -> Array:
  """The sparsity of a step, fast at first.

  Args:
    step: from 0; may be traced.
    num_steps: of the training.
    final: s, share that leaves in the end.
    warmup_steps: first steps, which are dense.
    final_steps: last steps, which have all of s.

  Raises:
    ConfigError: there are no steps left to grow in, or s is no share.
  """
  growing = num_steps - warmup_steps - final_steps
  if growing < 1 or min(warmup_steps, final_steps) < 0 or not 0 <= final <= 1:
    raise ConfigError(
      f'sparsity cannot grow to {final} in {num_steps} steps with '
      f'{warmup_steps} before and {final_steps} after.\nIt has to be 0 to 1, '
      'and there has to be a step to grow in.'
    )
  share = jnp.clip((jnp.asarray(step) - warmup_steps) / growing, 0.0, 1.0)
  return final * (1.0 - (1.0 - share) ** 3)
