"""The diagonal recurrence, against the recurrence token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import diagonal

T, M = 37, 4
SEGMENTS = np.array([1] * 9 + [0] * 2 + [1] * 3 + [2] * 15 + [0] + [3] * 7)
KINDS = {'real': 'f4', 'complex': 'c8'}
assert SEGMENTS.shape == (T,)


def normal(kind, *shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  x = rng.normal(size=(2, *shape))
  return (x[0] + 1j * x[1] if kind == 'complex' else x[0]).astype(KINDS[kind])


def rate_of(kind):
  rate_M = np.array([0.999, 0.9, 0.3, 0.0])
  if kind == 'complex':
    rate_M = rate_M * np.exp(1j * np.array([0.1, 3.0, -1.0, 0.0]))
  return rate_M.astype(KINDS[kind])


def memory_of(kind):
  return diagonal.Memory(normal(kind, M, seed=1), np.int32(1))


def one_by_one(rate_M, drive_TM, state_M, where=np):
  """The definition; `state_M` is of segment 1."""
  outputs, segment = [], 1
  for t in range(T):
    if SEGMENTS[t]:
      kept_M = rate_M * state_M if SEGMENTS[t] == segment else 0.0
      state_M, segment = kept_M + drive_TM[t], SEGMENTS[t]
    outputs.append(state_M)
  return where.stack(outputs)


@pytest.mark.parametrize('chunk', [1, 5, 36, 37, 64])
@pytest.mark.parametrize('kind', KINDS)
def test_chunks_equal_token_by_token(kind, chunk):
  drive_TM, memory = normal(kind, T, M), memory_of(kind)
  run = jax.jit(functools.partial(diagonal.scan, chunk=chunk))
  h_TM, after = run(rate_of(kind), drive_TM, SEGMENTS, memory)
  rate_M, drive_TM, state_M = (
    x.astype('c16') for x in (rate_of(kind), drive_TM, memory.state_M)
  )
  expected_TM = one_by_one(rate_M, drive_TM, state_M)
  np.testing.assert_allclose(h_TM, expected_TM, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(after.state_M, h_TM[-1])
  assert after.segment == 3
  assert h_TM.dtype == KINDS[kind]


@pytest.mark.parametrize('chunk', [5, 64])
@pytest.mark.parametrize('kind', KINDS)
def test_gradients_equal_those_of_the_definition(kind, chunk):
  weight_TM, memory = normal(kind, T, M, seed=2), memory_of(kind)

  def ours(rate_M, drive_TM, state_M):
    h_TM, after = diagonal.scan(
      rate_M,
      drive_TM,
      jnp.asarray(SEGMENTS),
      memory._replace(state_M=state_M),
      chunk=chunk,
    )
    loss = (weight_TM * h_TM**2).sum() + (after.state_M * h_TM[0]).sum()
    return loss.real

  def definition(rate_M, drive_TM, state_M):
    h_TM = one_by_one(rate_M, drive_TM, state_M, jnp)
    return ((weight_TM * h_TM**2).sum() + (h_TM[-1] * h_TM[0]).sum()).real

  inputs = rate_of(kind), normal(kind, T, M), memory.state_M
  gradients = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*inputs)
  expected = jax.jit(jax.grad(definition, argnums=(0, 1, 2)))(*inputs)
  for actual, wanted in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize('split', [0, 1, 10, 36])
def test_a_stream_goes_on_where_it_stopped(split):
  rate_M, drive_TM = rate_of('complex'), normal('complex', T, M)
  whole_TM, whole = diagonal.scan(
    rate_M, drive_TM, SEGMENTS, memory_of('complex'), chunk=5
  )
  # Padding stands for the other part.
  memory, h_TM = memory_of('complex'), 0
  for is_here_T in (np.arange(T) < split, np.arange(T) >= split):
    part_TM, memory = diagonal.scan(
      rate_M, drive_TM, np.where(is_here_T, SEGMENTS, 0), memory, chunk=5
    )
    h_TM += np.where(is_here_T[:, None], part_TM, 0)
  keep_T = SEGMENTS > 0
  np.testing.assert_allclose(h_TM[keep_T], whole_TM[keep_T], rtol=1e-5)
  np.testing.assert_allclose(memory.state_M, whole.state_M, rtol=1e-5)


def test_the_past_of_another_segment_leaves_nothing():
  rate_M, drive_TM = rate_of('real'), normal('real', T, M)
  soiled_TM = np.where((SEGMENTS == 2)[:, None], drive_TM, 1e30).astype('f4')
  run = functools.partial(diagonal.scan, chunk=8)
  h_TM, _ = run(rate_M, drive_TM, SEGMENTS, memory_of('real'))
  soiled_TM, _ = run(rate_M, soiled_TM, SEGMENTS, memory_of('real'))
  here_T = SEGMENTS == 2
  np.testing.assert_array_equal(soiled_TM[here_T], h_TM[here_T])


def test_backward_keeps_no_more_than_the_states():
  def bytes_of(length):
    def loss(rate_M, drive_TM, segment_T):
      start = diagonal.empty(M, jnp.float32)
      return (diagonal.scan(rate_M, drive_TM, segment_T, start)[0] ** 2).sum()

    shapes = (rate_of('real'), np.zeros((length, M), 'f4'))
    segment_T = np.ones(length, 'i4')
    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    compiled = step.lower(*shapes, segment_T).compile()
    return compiled.memory_analysis().temp_size_in_bytes / length

  # A chunk is run twice, but what it passes on the way is not kept.
  assert bytes_of(1 << 14) < 8 * M * 4 + 64


D = 3


def coefficients():
  rate_DM = 1 / (1 + np.exp(-normal('real', D, M, seed=3)))
  rate_DM[0, 0], rate_DM[1, 1] = 0.0, 1.0
  return diagonal.Coefficients(
    rate_DM.astype('f4'), normal('real', D, M), normal('real', D, M, seed=4)
  )


def averages_one_by_one(x_TD, segments, state_DM, where=np):
  """The definition; `state_DM` is of segment 1."""
  rate_DM, drive_DM, read_DM = coefficients()
  outputs, segment = [], 1
  for t in range(T):
    if segments[t]:
      kept_DM = rate_DM * state_DM if segments[t] == segment else 0.0
      state_DM = kept_DM + drive_DM * x_TD[t][:, None]
      segment = segments[t]
    outputs.append((read_DM * state_DM).sum(-1))
  return where.stack(outputs)


@pytest.mark.parametrize('chunk', [1, 5, 64])
def test_averages_equal_token_by_token(chunk):
  x_TD, state_DM = normal('real', T, D), normal('real', D, M, seed=5)
  memory = diagonal.Memory(state_DM.reshape(-1), np.int32(1))
  y_TD, _ = jax.jit(
    functools.partial(
      diagonal.average, coefficients=coefficients(), chunk=chunk
    )
  )(x_TD, SEGMENTS, memory)
  expected_TD = averages_one_by_one(x_TD, SEGMENTS, state_DM)
  np.testing.assert_allclose(y_TD, expected_TD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 5, 36, 64])
def test_convolution_equals_averages_with_gradients(chunk):
  x_TD = normal('real', T, D)
  x_TD[-4:] = 0.0
  weight_TD, ones_T = normal('real', T, D, seed=6), np.ones(T, 'i4')
  run = functools.partial(diagonal.convolve, chunk=chunk)
  y_TD = jax.jit(run)(x_TD, coefficients=coefficients())
  zeros_DM = np.zeros((D, M), 'f4')
  expected_TD = averages_one_by_one(x_TD, ones_T, zeros_DM)
  np.testing.assert_allclose(y_TD, expected_TD, rtol=1e-5, atol=1e-5)

  def ours(x_TD, coefficients):
    return (weight_TD * run(x_TD, coefficients=coefficients)).sum()

  def definition(x_TD, coefficients):
    start = diagonal.empty(D * M, jnp.float32)
    y_TD, _ = diagonal.average(
      x_TD, jnp.asarray(ones_T), start, coefficients=coefficients
    )
    return (weight_TD * y_TD).sum()

  # A rate of 0 is cut off, and so is its gradient.
  inputs = x_TD, coefficients()._replace(rate_DM=np.full((D, M), 0.7, 'f4'))
  gradients = jax.jit(jax.grad(ours, argnums=(0, 1)))(*inputs)
  expected = jax.jit(jax.grad(definition, argnums=(0, 1)))(*inputs)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradients,
    expected,
  )
