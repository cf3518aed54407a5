"""Losses of outputs: against their formulas in float64."""

import hypothesis
import hypothesis.strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress.distill import losses

B, C, D, E = 6, 5, 4, 7
WEIGHT_B = np.array([1.0, 0.5, 2.0, 1.0, 0.0, 0.0], np.float32)
# One temperature for all, or one for each.
TEMPERATURES = (1.0, 2.5, np.array([1, 2, 3, 0.5, 1, 4], np.float32))


def logits(seed, scale=2.0):
  return np.random.default_rng(seed).normal(size=(B, C)).astype('f4') * scale


Z_S, Z_T = logits(1), logits(2)
LABEL_B = np.array([0, 4, 2, 2, 1, 3])


def log_softmax(z_BC):
  z_BC = np.asarray(z_BC, np.float64)
  return z_BC - np.log(np.exp(z_BC).sum(axis=-1, keepdims=True))


def by_hand(temperature):
  """Soft cross-entropy and entropy of the teacher, both times T^2."""
  t_B = np.broadcast_to(np.asarray(temperature, np.float64), (B,))
  log_s, log_t = (log_softmax(z / t_B[:, None]) for z in (Z_S, Z_T))
  return [
    np.array(
      [
        t_B[b] ** 2 * -sum(np.exp(log_t[b, c]) * log[b, c] for c in range(C))
        for b in range(B)
      ]
    )
    for log in (log_s, log_t)
  ]


@pytest.mark.parametrize('temperature', TEMPERATURES, ids=['1', '2.5', 'each'])
@pytest.mark.parametrize(('reduction', 'share'), [('sum', 1), ('mean', C)])
def test_soft_cross_entropy_and_kl(temperature, reduction, share):
  soft_B = losses.soft_cross_entropy(Z_S, Z_T, temperature, reduction=reduction)
  kl_B = losses.kl(Z_S, Z_T, temperature, reduction=reduction)
  expected_B, entropy_B = by_hand(temperature)
  assert soft_B.shape == (B,)
  np.testing.assert_allclose(soft_B, expected_B / share, rtol=1e-5)
  np.testing.assert_allclose(
    kl_B, (expected_B - entropy_B) / share, rtol=1e-4, atol=1e-5
  )
  # Of a teacher that is like the student nothing is left.
  np.testing.assert_allclose(losses.kl(Z_T, Z_T, temperature), 0, atol=1e-6)


def test_both_have_the_gradient_of_the_formula():
  """T (p_s - p_t), whose size does not fall with T, and none of the teacher."""
  t = 3.0
  p_s, p_t = (np.exp(log_softmax(z / t)) for z in (Z_S, Z_T))
  for loss in (losses.soft_cross_entropy, losses.kl):
    own_BC, other_BC, of_t = jax.grad(
      lambda s, z, t, loss=loss: loss(s, z, t).sum(), argnums=(0, 1, 2)
    )(Z_S, Z_T, t)
    np.testing.assert_allclose(own_BC, t * (p_s - p_t), rtol=1e-4, atol=1e-5)
    assert np.abs(other_BC).max() == of_t == 0


def test_logits_of_tokens_and_of_half_precision():
  pair = (z.reshape(2, 3, C) for z in (Z_S, Z_T))
  value_BT = losses.soft_cross_entropy(*pair)
  np.testing.assert_allclose(value_BT.reshape(-1), by_hand(1.0)[0], rtol=1e-5)
  half_B = losses.kl(*(jnp.asarray(z, jnp.bfloat16) for z in (Z_S, Z_T)))
  assert half_B.dtype == jnp.float32


@pytest.mark.parametrize('weight_B', [None, WEIGHT_B])
def test_mean_is_weighted(weight_B):
  value_B = np.arange(1.0, B + 1, dtype=np.float32) ** 2
  actual = losses.mean(value_B, weight_B)
  np.testing.assert_allclose(actual, np.average(value_B, weights=weight_B))
  # What has no weight may be anything.
  if weight_B is not None:
    value_B[4:] = np.nan
    assert losses.mean(value_B, weight_B) == actual
    gradient_B = jax.grad(losses.mean)(value_B, weight_B)
    np.testing.assert_allclose(gradient_B, WEIGHT_B / WEIGHT_B.sum())


def test_log_likelihood_of_gold_labels_and_of_the_teachers():
  log_BC = log_softmax(Z_S)
  np.testing.assert_allclose(
    losses.log_likelihood(Z_S, LABEL_B),
    [-log_BC[b, LABEL_B[b]] for b in range(B)],
    rtol=1e-5,
  )
  answers_B = losses.labels(Z_T)
  assert answers_B.dtype == jnp.int32
  np.testing.assert_array_equal(answers_B, [list(z).index(max(z)) for z in Z_T])
  assert len(set(answers_B.tolist())) > 2


def test_logit_mse():
  square_BC = np.square(Z_S.astype('f8') - Z_T)
  np.testing.assert_allclose(
    losses.logit_mse(Z_S, Z_T), square_BC.mean(axis=1), rtol=1e-5
  )
  own_BC, other_BC = jax.grad(
    lambda s, t: losses.logit_mse(s, t).sum(), argnums=(0, 1)
  )(Z_S, Z_T)
  np.testing.assert_allclose(own_BC, 2 / C * (Z_S - Z_T), rtol=1e-5)
  assert np.abs(other_BC).max() == 0


@pytest.mark.parametrize('k', range(C + 1))
def test_labels_within_the_students_best(k):
  best_B = [np.argsort(-z)[:k] for z in Z_S]
  expected_B = [LABEL_B[b] in best_B[b] for b in range(B)]
  np.testing.assert_array_equal(losses.in_top(Z_S, LABEL_B, k), expected_B)
  traced = jax.jit(losses.in_top)(Z_S, LABEL_B, k)
  np.testing.assert_array_equal(traced, expected_B)


def test_classes_as_likely_as_the_label_do_not_count_against_it():
  z_BC = np.array([[1.0, 3.0, 3.0, 3.0]], np.float32)
  assert losses.in_top(z_BC, np.array([2]), 1)
  assert not losses.in_top(z_BC, np.array([0]), 3)


def test_labels_of_middling_probability():
  p_B = np.exp(log_softmax(Z_S))[np.arange(B), LABEL_B]
  low, high = np.sort(p_B)[[1, 3]] * [0.999, 1.001]
  keep_B = losses.in_range(Z_S, LABEL_B, low, high)
  np.testing.assert_array_equal(keep_B, (p_B >= low) & (p_B <= high))
  assert keep_B.sum() == 3


def test_where_the_two_disagree():
  expected_B = Z_S.argmax(1) != Z_T.argmax(1)
  assert 0 < expected_B.sum() < B
  np.testing.assert_array_equal(losses.disagree(Z_S, Z_T), expected_B)


def test_filtered_means_what_is_kept():
  keep_B = np.array([True, False, True, False, True, False])
  value_B = losses.log_likelihood(Z_S, LABEL_B)
  found = losses.filtered(value_B, keep_B, WEIGHT_B)
  v, w = np.asarray(value_B, np.float64), WEIGHT_B
  np.testing.assert_allclose(
    found.loss, (v[0] * w[0] + v[2] * w[2]) / (w[0] + w[2]), rtol=1e-5
  )
  np.testing.assert_allclose(found.fraction, 3.0 / 4.5, rtol=1e-6)
  plain = losses.filtered(value_B, keep_B)
  np.testing.assert_allclose(plain.loss, v[keep_B].mean(), rtol=1e-5)
  np.testing.assert_allclose(plain.fraction, 0.5)


@pytest.mark.parametrize('weight_B', [None, WEIGHT_B, np.zeros(B, 'f4')])
@pytest.mark.parametrize('is_kept', [False, True])
def test_nothing_kept_is_zero_and_pulls_nowhere(weight_B, is_kept):
  def loss(z_BC):
    value_B = losses.log_likelihood(z_BC, LABEL_B)
    return losses.filtered(value_B, jnp.full(B, is_kept), weight_B)

  found = loss(Z_S)
  gradient_BC = jax.grad(lambda z: loss(z).loss)(Z_S)
  assert np.isfinite(gradient_BC).all()
  is_empty = not is_kept or (weight_B is not None and not weight_B.any())
  assert (found.loss == 0) == (np.abs(gradient_BC).max() == 0) == is_empty
  np.testing.assert_allclose(found.fraction, 0.0 if is_empty else 1.0)


def cosines(a, b, epsilon=0.0):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  lengths = [np.sqrt((x * x).sum(axis=-1)) + epsilon for x in (a, b)]
  return (a * b).sum(axis=-1) / lengths[0] / lengths[1]


@pytest.mark.parametrize('weight_B', [None, WEIGHT_B])
def test_temperatures_by_schedule(weight_B):
  angle_B = (1 - cosines(Z_S, Z_T, 1e-4)) ** 1.5
  flsw_B = losses.flsw(Z_S, Z_T, 4.0, beta=0.7, gamma=1.5, weight_B=weight_B)
  mean = np.average(angle_B, weights=weight_B)
  np.testing.assert_allclose(flsw_B, 4 + 0.7 * (mean - angle_B), rtol=1e-4)
  doubt_B = 1 / (np.exp(log_softmax(Z_S)).max(axis=1) + 1e-3)
  cwsm_B = losses.cwsm(Z_S, 4.0, beta=1.3, weight_B=weight_B)
  mean = np.average(doubt_B, weights=weight_B)
  np.testing.assert_allclose(cwsm_B, 4 + 1.3 * (mean - doubt_B), rtol=1e-4)


def test_temperatures_stay_above_zero_and_have_no_gradient():
  for schedule in (
    lambda z: losses.flsw(z, Z_T, 2.0, beta=9.0, gamma=1.5),
    lambda z: losses.cwsm(z, 2.0, beta=9.0),
  ):
    t_B = schedule(Z_S)
    assert t_B.min() == np.float32(losses.LEAST_TEMPERATURE)
    assert t_B.max() > 3
    gradient = jax.grad(lambda z, of=schedule: of(z).sum())(Z_S)
    assert np.abs(gradient).max() == 0
  # Logits that point the same way: no root of what rounding made negative.
  same_B = losses.flsw(1e4 * Z_S, 3e4 * Z_S, 2.0, beta=1.0, gamma=0.5)
  np.testing.assert_allclose(same_B, 2.0, atol=0.02)


def vectors(seed, width):
  x_BD = np.random.default_rng(seed).normal(size=(B, width))
  return (x_BD / np.linalg.norm(x_BD, axis=1, keepdims=True)).astype('f4')


def test_cosine_distance():
  a, b = 3 * vectors(1, D), vectors(2, D)
  np.testing.assert_allclose(
    losses.cosine_distance(a, b), 1 - cosines(a, b), rtol=1e-4
  )
  # A text without tokens has a vector of zeros.
  a[1] = 0
  distance_B = losses.cosine_distance(a, b)
  assert distance_B[1] == 1
  gradients = jax.grad(
    lambda a, b: losses.cosine_distance(a, b).sum(), argnums=(0, 1)
  )(a, b)
  assert np.isfinite(gradients[0]).all()
  assert np.abs(gradients[0][1]).max() == np.abs(gradients[1]).max() == 0
  assert np.abs(gradients[0][0]).max() > 0.01


@pytest.mark.parametrize('weight_B', [None, WEIGHT_B])
def test_similarities_of_texts(weight_B):
  own_BD, other_BE = vectors(1, D), vectors(2, E)
  w_B = np.ones(B) if weight_B is None else weight_B.astype('f8')
  square_BB = np.square(
    own_BD.astype('f8') @ own_BD.T - other_BE.astype('f8') @ other_BE.T
  )
  value_B = losses.similarity_mse(own_BD, other_BE, weight_B)
  np.testing.assert_allclose(value_B, square_BB @ w_B / w_B.sum(), rtol=1e-4)
  pair_BB = np.outer(w_B, w_B)
  np.testing.assert_allclose(
    losses.mean(value_B, weight_B),
    (square_BB * pair_BB).sum() / pair_BB.sum(),
    rtol=1e-4,
  )
  if weight_B is not None:
    # Rows that fill up a batch are in no other row's value.
    own_BD[4:] = np.nan
    again_B = losses.similarity_mse(own_BD, other_BE, weight_B)
    np.testing.assert_array_equal(again_B[:4], value_B[:4])
  gradient = jax.grad(lambda t: losses.similarity_mse(vectors(1, D), t).sum())(
    other_BE
  )
  assert np.abs(gradient).max() == 0


@hypothesis.given(
  hypothesis.strategies.integers(0, 2**31),
  hypothesis.strategies.floats(0.01, 50.0),
  hypothesis.strategies.floats(0.25, 20.0),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_kl_is_never_negative_and_does_not_see_constants(seed, scale, t):
  z_s, z_t = logits(seed, scale), logits(seed + 1, scale)
  kl_B = losses.kl(z_s, z_t, t)
  assert np.isfinite(kl_B).all()
  assert (kl_B >= -1e-3).all()
  moved_B = losses.kl(z_s + 3, z_t - 5, t)
  np.testing.assert_allclose(kl_B, moved_B, rtol=1e-3, atol=2e-2)


def test_what_does_not_fit():
  with pytest.raises(ValueError, match='logits of shape'):
    losses.kl(Z_S, Z_T[:1])
  with pytest.raises(ValueError, match='reduction must be one of sum, mean'):
    losses.soft_cross_entropy(Z_S, Z_T, reduction='max')
  with pytest.raises(ValueError, match='weights of shape'):
    losses.mean(Z_S[:, 0], WEIGHT_B[:2])
  with pytest.raises(ValueError, match='vectors of 6 and 2 texts'):
    losses.similarity_mse(Z_S, Z_T[:2])
  with pytest.raises(ValueError, match='what to keep of shape'):
    losses.filtered(Z_S[:, 0], np.ones((B, 1), bool))
