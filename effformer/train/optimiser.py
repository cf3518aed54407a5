"""Learning-rate schedules and the AdamW family, as functions of the step.

The learning rate is applied by the training step from the global step, not
from a counter inside the optimiser, so a skipped update moves no schedule and
a resumed run needs nothing but its step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

Schedule = Callable[[jax.Array], jax.Array]

# Tables that are looked up, not multiplied: decay pulls rare rows to zero.
# Biases of projections to heads have two axes too.
NOT_DECAYED = ('embedding', 'positions', 'cls', 'extra_tokens', 'bias')


def learning_rate(train: ml_collections.ConfigDict) -> Schedule:
  """The schedule of `train.schedule`, a function step -> learning rate.

  With base rate a, warm-up w and n steps, and r(t) = min(1, t / w):

  - constant: `a r(t)`
  - rsqrt: `a r(t) / sqrt(max(t, w))`, LRA's; not renormalised, so its peak is
    `a / sqrt(w)`
  - cosine: `a r(t) (1 + cos(pi p)) / 2`, p = (t - w) / (n - w) in [0, 1]
  """
  base, warmup = train.learning_rate, train.warmup_steps
  num_steps, kind = train.num_steps, train.schedule

  def rate(step: jax.Array) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    value = base * (jnp.minimum(1.0, step / warmup) if warmup else 1.0)
    if kind == 'rsqrt':
      return value / jnp.sqrt(jnp.maximum(step, max(warmup, 1)))
    if kind == 'cosine':
      span = max(num_steps - warmup, 1)
      progress = jnp.clip((step - warmup) / span, 0.0, 1.0)
      return value * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return jnp.asarray(value, jnp.float32)

  return rate


def decay_mask(params: Any) -> Any:
  """True for matrices and filters that multiply, false for the rest."""

  def decayed(path, leaf):
    return leaf.ndim >= 2 and path[-1].key not in NOT_DECAYED

  return jax.tree_util.tree_map_with_path(decayed, params)


def build(train: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """AdamW without its learning rate: the direction d in `p <- p - a d`.

  `d = m̂ / (sqrt(v̂) + epsilon) + lambda p` (Loshchilov & Hutter 2019, Alg. 2),
  after clipping the gradient to a global norm of `clip_norm`. `decay='all'`
  decays every parameter as LRA's optimiser did, 'matrices' those of
  `decay_mask`.
  """
  parts = []
  if train.clip_norm:
    parts.append(optax.clip_by_global_norm(train.clip_norm))
  parts.append(
    optax.scale_by_adam(b1=train.beta1, b2=train.beta2, eps=train.epsilon)
  )
  mask = decay_mask if train.decay == 'matrices' else None
  if train.weight_decay:
    parts.append(optax.add_decayed_weights(train.weight_decay, mask=mask))
  return optax.chain(*parts)
