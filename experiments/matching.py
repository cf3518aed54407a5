"""The width that gives a model as many parameters as the base Transformer.

LRA's rule for its table: at most 10 % more parameters than the Transformer of
the same task, sizes fixed (github.com/google-research/long-range-arena). A
mechanism that has parameters of its own, or fewer, is brought there by the
hidden width of the feed-forward parts, which changes no reach and no state.
"""

import functools
import math

import jax

from effformer import config as config_lib
from effformer import tasks
from effformer.config_words import FLAG
from effformer.errors import ConfigError

BASE = 'full'
MOST = 1.1
# Settings of a mechanism, and of single layers.
_OWN = ('mixer.', 'model.layers.')
# Widths that vector units like.
STEP = 16


def mlp_width(path: str, argument: str, overrides: tuple[str, ...]) -> int:
  """The `model.mlp_width`, a multiple of STEP, nearest to the size of BASE.

  Args:
    path: of the config file.
    argument: mechanism first, as in 'mega,preset=modern,quick'.
    overrides: 'KEY=VALUE' of --config.KEY=VALUE; the base goes without those of
      the mechanism and of single layers.

  Raises:
    ConfigError: no width keeps the rule.
  """
  _, comma, rest = argument.partition(',')
  # Settings of the mechanism mean nothing to the base.
  shared = tuple(
    word for word in overrides if not word.removeprefix(FLAG).startswith(_OWN)
  )
  base = num_params(path, f'{BASE}{comma}{rest}', shared)
  low, high = (
    num_params(path, argument, (*overrides, f'model.mlp_width={STEP * i}'))
    for i in (1, 2)
  )
  if high == low:
    raise ConfigError(
      f'{argument}: no layer heeds model.mlp_width.\n'
      'Leave --matched out, or mlp_width out of model.layers.'
    )
  # The number of parameters is linear in the width.
  steps = max(round(1 + (base - low) / (high - low)), 1)
  if low + (steps - 1) * (high - low) > MOST * base:
    raise ConfigError(
      f'{argument} has {low:,} parameters at model.mlp_width={STEP}, more than '
      f'{MOST} times the {base:,} of {BASE}.\n'
      'Leave it out, or give it a smaller model.qkv_width.'
    )
  return STEP * steps


@functools.lru_cache
def num_params(path: str, argument: str, overrides: tuple[str, ...]) -> int:
  """Parameters of the model that a command line describes; no data needed."""
  config, _ = config_lib.load(f'{path}:{argument}', overrides)
  task = tasks.without_data(config)
  shapes = jax.eval_shape(lambda: task.init(jax.random.key(0)))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
