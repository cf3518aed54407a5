"""The short convolution, against its sum written out token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import short_conv

T, D = 9, 5
# Padding before, between and after segments; the second row has it inside.
SEGMENTS = np.array([
  [0, 1, 1, 1, 0, 2, 2, 3, 0],
  [1, 1, 0, 1, 0, 0, 1, 2, 2],
])  # fmt: skip
WITHOUT_HOLES = SEGMENTS[[0, 0]]


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def one_by_one(x_TD, filter_WD, segment_T):
  y_TD = np.zeros(x_TD.shape, 'f8')
  for segment in set(segment_T) - {0}:
    (own,) = np.nonzero(segment_T == segment)
    for rank, t in enumerate(own):
      for tap in range(min(len(filter_WD), rank + 1)):
        y_TD[t] += filter_WD[tap].astype('f8') * x_TD[own[rank - tap]]
  return y_TD


def expected(x_BTD, filter_WD, segment_BT):
  return np.stack(
    [
      one_by_one(x_TD, filter_WD, segment_T)
      for x_TD, segment_T in zip(x_BTD, segment_BT, strict=True)
    ]
  )


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('taps', [1, 2, 4, 12])
@pytest.mark.parametrize('segment_BT', [SEGMENTS, WITHOUT_HOLES])
def test_sum_over_the_real_tokens_of_the_segment(taps, segment_BT):
  x_BTD, filter_WD = normal(2, T, D), normal(taps, D)
  y_BTD = jax.jit(short_conv.batch)(x_BTD, filter_WD, segment_BT)
  keep_BT1 = (segment_BT > 0)[..., None]
  close(np.where(keep_BT1, y_BTD, 0.0), expected(x_BTD, filter_WD, segment_BT))


@pytest.mark.parametrize('taps', [1, 4])
@pytest.mark.parametrize('sizes', [[1] * T, [2, 3, 4], [8, 1]])
def test_stream_is_the_batch_for_every_cut(taps, sizes):
  x_BTD, filter_WD = normal(2, T, D), normal(taps, D)
  extend = jax.jit(jax.vmap(short_conv.stream, (0, None, 0, 0)))
  tail = short_conv.empty(taps, D)
  tail = jax.tree.map(lambda x: jnp.stack([x, x]), tail)
  outputs, first = [], 0
  for size in sizes:
    part = slice(first, first + size)
    y_BTD, tail = extend(x_BTD[:, part], filter_WD, SEGMENTS[:, part], tail)
    outputs.append(y_BTD)
    first += size
  keep_BT1 = (SEGMENTS > 0)[..., None]
  y_BTD = np.where(keep_BT1, np.concatenate(outputs, axis=1), 0.0)
  close(y_BTD, expected(x_BTD, filter_WD, SEGMENTS))
  if taps > 1:
    # Rows end with real tokens 5, 6, 7 and 6, 7, 8.
    close(tail.x_WD[0], x_BTD[0, 5:8])
    close(tail.x_WD[1], x_BTD[1, 6:9])
    np.testing.assert_array_equal(tail.segment_W, [[2, 2, 3], [1, 2, 2]])


def test_padding_leaves_the_tail_as_it_was():
  tail = short_conv.Tail(normal(3, D), np.array([0, 1, 1]))
  _, after = short_conv.stream(
    normal(T, D), normal(4, D), np.zeros(T, int), tail
  )
  jax.tree.map(np.testing.assert_array_equal, after, tail)


@pytest.mark.parametrize('segment_BT', [SEGMENTS, WITHOUT_HOLES])
def test_gradients_are_those_of_the_sum(segment_BT):
  x_BTD, filter_WD = normal(2, T, D), normal(4, D)
  weights_BTD = normal(2, T, D, seed=1) * (segment_BT > 0)[..., None]

  def loss(x_BTD, filter_WD):
    y_BTD = short_conv.batch(x_BTD, filter_WD, segment_BT)
    return (y_BTD * weights_BTD).sum()

  dx_BTD, dfilter_WD = jax.jit(jax.grad(loss, (0, 1)))(x_BTD, filter_WD)
  # The sum is linear in either: differences of unit steps are exact.
  base = (expected(x_BTD, filter_WD, segment_BT) * weights_BTD).sum()
  for t in range(T):
    step_BTD = x_BTD.copy()
    step_BTD[1, t, 2] += 1.0
    y_BTD = expected(step_BTD, filter_WD, segment_BT)
    difference = (y_BTD * weights_BTD).sum() - base
    np.testing.assert_allclose(dx_BTD[1, t, 2], difference, atol=1e-5)
  for tap in range(4):
    step_WD = filter_WD.copy()
    step_WD[tap, 3] += 1.0
    y_BTD = expected(x_BTD, step_WD, segment_BT)
    difference = (y_BTD * weights_BTD).sum() - base
    np.testing.assert_allclose(dfilter_WD[tap, 3], difference, atol=1e-5)


def test_bfloat16_stays_bfloat16():
  x_BTD = normal(2, T, D).astype(jnp.bfloat16)
  y_BTD = short_conv.batch(x_BTD, normal(4, D), SEGMENTS)
  assert y_BTD.dtype == jnp.bfloat16
  tail = short_conv.empty(4, D)
  _, tail = short_conv.stream(x_BTD[0], normal(4, D), SEGMENTS[0], tail)
  assert tail.x_WD.dtype == jnp.float32


@pytest.mark.parametrize('taps', [2, 4, 7])
def test_gradient_in_several_blocks(monkeypatch, taps):
  monkeypatch.setattr(short_conv, 'BLOCK', 4)
  segment_BT = jnp.asarray(WITHOUT_HOLES)
  sample_BTD = normal(2, T, D, seed=3) * (WITHOUT_HOLES > 0)[..., None]

  def gradient(one):
    def loss(x_BTD, filter_WD):
      return (one(x_BTD, filter_WD, segment_BT) * sample_BTD).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(normal(2, T, D), normal(taps, D))

  # What is differentiated by itself where padding stands within a segment.
  for actual, expected in zip(
    gradient(short_conv.batch), gradient(short_conv._sparse), strict=True
  ):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
