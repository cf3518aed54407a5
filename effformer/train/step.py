"""The jitted step: gradient, guard against non-finite values, update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from effformer.train import state as state_lib
from effformer.train.optimiser import Schedule

# (params, batch, key, step, *frozen) -> (loss, values to report); both means
# over the batch, or over so many tokens as the value `tokens` says, which is
# not reported.
Objective = Callable[..., tuple[jax.Array, dict[str, Any]]]


def make_train_step(
  objective: Objective,
  optimiser: optax.GradientTransformation,
  schedule: Schedule,
  *,
  seed: int,
  accumulate_steps: int = 1,
) -> Callable[..., tuple[state_lib.TrainState, dict]]:
  """A function (state, batch, *frozen) -> (state, metrics), to be jitted.

  With `accumulate_steps` > 1 the batch is cut into so many equal parts whose
  gradients are averaged, weighed by their tokens where these are counted: the
  same update at a fraction of the memory. Where the loss or the gradient norm
  is not finite, `finite` is 0 and parameters and optimiser state stay as they
  were; only the step moves on.
  """
  gradient = jax.value_and_grad(objective, has_aux=True)

  def accumulated(params, batch, key, step, frozen):
    if accumulate_steps == 1:
      (loss, values), grads = gradient(params, batch, key, step, *frozen)
      return (loss, _reported(values)), grads

    # Part a takes the rows a, a + A, ...: this cut leaves every device with
    # its own rows, a contiguous one would move them.
    def parts(leaf):
      rows = leaf.shape[0] // accumulate_steps
      cut = leaf.reshape(rows, accumulate_steps, *leaf.shape[1:])
      return jnp.swapaxes(cut, 0, 1)

    def body(total, element):
      part, index = element
      (loss, values), grads = gradient(
        params, part, jax.random.fold_in(key, index), step, *frozen
      )
      weight = values.get('tokens', jnp.ones(()))
      result = jax.tree.map(
        lambda leaf: leaf * weight.astype(leaf.dtype),
        ((loss, _reported(values)), grads),
      )
      return jax.tree.map(jnp.add, total, (result, weight)), None

    batches = jax.tree.map(parts, batch)
    indices = jnp.arange(accumulate_steps)
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    (loss, values), grads = jax.eval_shape(
      gradient, params, first, key, step, *frozen
    )
    shapes = (((loss, _reported(values)), grads), jnp.ones(()))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (total, weight), _ = jax.lax.scan(body, zeros, (batches, indices))
    # Nothing may have been hidden.
    weight = jnp.maximum(weight, 1)
    return jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), total)

  def train_step(state, batch, *frozen):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    (loss, values), grads = accumulated(
      state.params, batch, key, state.step, frozen
    )
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    rate = schedule(state.step)
    direction, opt_state = optimiser.update(
      grads, state.opt_state, state.params
    )
    params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, opt_state),
      (state.params, state.opt_state),
    )
    metrics = {
      'loss': loss,
      **values,
      'grad_norm': norm,
      'learning_rate': rate,
      'finite': finite,
    }
    return state_lib.TrainState(params, opt_state, state.step + 1), metrics

  return train_step


def _reported(values):
  return {name: value for name, value in values.items() if name != 'tokens'}
