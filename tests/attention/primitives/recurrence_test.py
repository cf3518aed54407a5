"""Every form of the recurrence, against the recurrence token by token."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import recurrence
from effformer.attention.primitives.recurrence import Streams

T, K, V = 37, 4, 5
SEGMENTS = np.array([1] * 9 + [0] * 2 + [1] * 3 + [2] * 15 + [0] + [3] * 7)
FORMS = ('sum', 'decay', 'channels', 'delta', 'gated delta', 'strong decay',
         'strong channels')  # fmt: skip
assert SEGMENTS.shape == (T,)


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def streams_of(form):
  q_TK, k_TK, v_TV = normal(T, K), normal(T, K, seed=1), normal(T, V)
  decay = beta_T = None
  if 'delta' in form:
    k_TK /= np.linalg.norm(k_TK, axis=-1, keepdims=True)
    beta_T = 1 / (1 + np.exp(-normal(T, seed=2)))
  if form in ('decay', 'gated delta', 'strong decay'):
    decay = -np.exp(normal(T, seed=3))
  if 'channels' in form:
    decay = -np.exp(normal(T, K, seed=3))
  if 'strong' in form:
    # Most tokens forget everything, some of their neighbours nothing.
    decay = np.where(decay < -1.0, -20.0, 0.01 * decay).astype('f4')
  return Streams(q_TK, k_TK, v_TV, decay, beta_T)


def one_by_one(streams, is_inclusive=True):
  """The definition, in float64."""
  q, k, v, decay, beta = (
    None if x is None else np.asarray(x, 'f8') for x in streams
  )
  outputs, state, segment = np.zeros((T, V)), np.zeros((K, V)), 0
  for t in range(T):
    if SEGMENTS[t] == 0:
      continue
    if SEGMENTS[t] != segment:
      state, segment = np.zeros((K, V)), SEGMENTS[t]
    if decay is not None:
      state = np.broadcast_to(np.exp(decay[t]), (K,))[:, None] * state
    before = state
    u = v[t] if beta is None else beta[t] * (v[t] - state.T @ k[t])
    state = state + np.outer(k[t], u)
    outputs[t] = (state if is_inclusive else before).T @ q[t]
  return outputs, state


def both_ways(streams):
  global SEGMENTS
  past, _ = one_by_one(streams)
  backwards = Streams(*(None if x is None else x[::-1] for x in streams))
  kept, SEGMENTS = SEGMENTS, SEGMENTS[::-1]
  future, _ = one_by_one(backwards, is_inclusive=False)
  SEGMENTS = kept
  return past + future[::-1]


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 5, 16, 32, 64])
@pytest.mark.parametrize('form', FORMS)
def test_chunks_equal_token_by_token(form, chunk):
  streams = streams_of(form)
  run = jax.jit(functools.partial(recurrence.causal, chunk=chunk))
  o_TV, memory = run(streams, SEGMENTS, recurrence.empty(K, V))
  expected_TV, state_KV = one_by_one(streams)
  close(o_TV, expected_TV)
  close(memory.sum_KV, state_KV)
  assert memory.segment == 3


@pytest.mark.parametrize('form', FORMS)
def test_both_directions(form):
  streams = streams_of(form)
  run = jax.jit(functools.partial(recurrence.bidirectional, chunk=8))
  close(run(streams, SEGMENTS), both_ways(streams))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.slow
def test_state_goes_on(form):
  streams = streams_of(form)
  run = jax.jit(functools.partial(recurrence.causal, chunk=4))
  expected_TV, _ = one_by_one(streams)
  for split in (1, 10, 12, 20):
    first, second = (
      jax.tree.map(operator.itemgetter(part), (streams, SEGMENTS))
      for part in (slice(0, split), slice(split, T))
    )
    head_TV, memory = run(*first, recurrence.empty(K, V))
    tail_TV, _ = run(*second, memory)
    close(np.concatenate([head_TV, tail_TV]), expected_TV)


@pytest.mark.parametrize('form', FORMS)
def test_gradients_are_those_of_the_recurrence(form):
  streams, weights_TV = streams_of(form), normal(T, V, seed=4)

  def chunked(streams):
    o_TV, _ = recurrence.causal(
      streams, SEGMENTS, recurrence.empty(K, V), chunk=20
    )
    return (o_TV * weights_TV).sum()

  def scanned(streams):
    def step(carry, token):
      state_KV, segment = carry
      streams, new = token
      q_K, k_K, v_V, decay, beta = streams
      state_KV = jnp.where((new == segment) | (new == 0), state_KV, 0.0)
      old_KV = state_KV
      if decay is not None:
        state_KV *= jnp.broadcast_to(jnp.exp(decay), (K,))[:, None]
      u_V = v_V if beta is None else beta * (v_V - k_K @ state_KV)
      state_KV += jnp.outer(k_K, u_V)
      o_V = jnp.where(new > 0, q_K @ state_KV, 0.0)
      state_KV = jnp.where(new > 0, state_KV, old_KV)
      return (state_KV, jnp.where(new > 0, new, segment)), o_V

    start = jnp.zeros((K, V)), jnp.zeros((), jnp.int32)
    _, o_TV = jax.lax.scan(step, start, (streams, jnp.asarray(SEGMENTS)))
    return (o_TV * weights_TV).sum()

  expected = jax.jit(jax.grad(scanned))(streams)
  actual = jax.jit(jax.grad(chunked))(streams)
  for ours, theirs in zip(actual, expected, strict=True):
    if ours is not None:
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_delta_rule_is_a_dictionary():
  """Orthonormal keys at rate 1: reading a key gives its last value."""
  keys = np.eye(K, dtype='f4')
  k_TK = keys[[0, 1, 0, 2, 1, 3]]
  v_TV = normal(6, V)
  streams = Streams(k_TK, k_TK, v_TV, beta_T=np.ones(6, 'f4'))
  segments = np.ones(6, int)
  o_TV, memory = recurrence.causal(
    streams, segments, recurrence.empty(K, V), chunk=4
  )
  close(o_TV, v_TV)
  close(memory.sum_KV, v_TV[[2, 4, 3, 5]])
