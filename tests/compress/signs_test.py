"""Gradients of one bit, and the memory of what they leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effformer.compress import signs

STEPS = 20


def params():
  return {'w': jnp.zeros((3, 5)), 'b': jnp.zeros(4), 's': jnp.zeros(())}


def gradients(dtype='f4'):
  rng = np.random.default_rng(0)
  return [
    jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), params()
    )
    for _ in range(STEPS)
  ]


def run(transform, updates):
  state, given = transform.init(params()), []
  step = jax.jit(transform.update)
  for update in updates:
    own, state = step(update, state)
    given.append(own)
  return given, state


def by_hand(gs, block_size):
  """Algorithm 1 on one tensor, float64: updates, last error."""
  e, given = np.zeros(gs[0].size), []
  size = block_size or e.size
  for g in gs:
    p, u = np.ravel(g).astype(np.float64) + e, np.zeros(e.size)
    for start in range(0, e.size, size):
      own = p[start : start + size]
      u[start : start + size] = np.sign(own) * np.abs(own).mean()
    e = p - u
    given.append(u.reshape(gs[0].shape))
  return given, e.reshape(gs[0].shape)


@pytest.mark.parametrize('block_size', [0, 1, 4, 7, 100])
def test_updates_are_those_of_the_algorithm(block_size):
  updates = gradients()
  given, state = run(
    signs.scale_by_sign_with_error_feedback(block_size), updates
  )
  for name in params():
    wanted, error = by_hand([u[name] for u in updates], block_size)
    for u, v in zip(given, wanted, strict=True):
      np.testing.assert_allclose(u[name], v, atol=1e-4)
    np.testing.assert_allclose(state.error[name], error, atol=1e-4)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('block_size', [0, 4])
def test_nothing_of_the_gradients_is_lost(dtype, block_size):
  """Sum of updates + error = sum of gradients, whatever type they have."""
  updates = gradients(dtype)
  given, state = run(
    signs.scale_by_sign_with_error_feedback(block_size), updates
  )
  for name in params():
    total = sum(np.asarray(u[name], np.float64) for u in given)
    wanted = sum(np.asarray(g[name], np.float64) for g in updates)
    assert given[0][name].dtype == dtype
    assert state.error[name].dtype == jnp.float32
    np.testing.assert_allclose(total + state.error[name], wanted, atol=1e-5)
  # Each is one bit an element, and a size a tensor.
  assert len(np.unique(np.abs(np.asarray(given[3]['b'], 'f4')))) == 1


def counterexample(x):
  """eps |x1 + x2| + |x1 - x2|, with eps 1/2; least, 0, at 0.

  Karimireddy et al., counterexample 2: for all x but those on the two lines the
  sign of the gradient is (1, -1) or (-1, 1).
  """
  return 0.5 * jnp.abs(x[0] + x[1]) + jnp.abs(x[0] - x[1])


def descended(transform, start, rate=0.01, steps=1000):
  transform = optax.chain(transform, optax.scale_by_learning_rate(rate))

  def step(carry, _):
    x, state = carry
    update, state = transform.update(jax.grad(counterexample)(x), state)
    return (optax.apply_updates(x, update), state), None

  carry = (start, transform.init(start))
  return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0][0])(carry)


def test_it_converges_where_signs_alone_do_not():
  start = jnp.array([1.3, 0.8])
  stuck = descended(optax.scale_by_sign(), start)
  np.testing.assert_allclose(stuck.sum(), 2.1, atol=1e-4)
  assert counterexample(stuck) > 1
  found = descended(signs.scale_by_sign_with_error_feedback(), start)
  assert counterexample(found) < 0.05


def test_the_state_is_arrays_in_the_shape_of_what_is_trained():
  transform = signs.scale_by_sign_with_error_feedback()
  state = transform.init(jax.tree.map(lambda x: x.astype('bfloat16'), params()))
  leaves = jax.tree.leaves(state, is_leaf=lambda x: x is None)
  assert [x.shape for x in leaves] == [
    x.shape for x in jax.tree.leaves(params())
  ]
  assert all(x.dtype == jnp.float32 and not x.any() for x in leaves)


def test_what_is_masked_stays_as_it_is():
  transform = optax.masked(
    signs.scale_by_sign_with_error_feedback(),
    {'w': True, 'b': False, 's': True},
  )
  updates = gradients()
  given, state = run(transform, updates)
  plain, _ = run(signs.scale_by_sign_with_error_feedback(), updates)
  for own, all_, g in zip(given, plain, updates, strict=True):
    np.testing.assert_array_equal(own['b'], g['b'])
    np.testing.assert_array_equal(own['w'], all_['w'])
  assert len(jax.tree.leaves(state)) == 2


def test_a_negative_block_is_refused():
  with pytest.raises(ValueError, match='block_size has to be 0 or more'):
    signs.scale_by_sign_with_error_feedback(-1)
