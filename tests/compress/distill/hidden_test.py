"""Losses of the inside: row by row without padding, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import softmax
from effformer.compress.distill import hidden

B, T, D, E, H, K = 3, 6, 8, 10, 2, 9
LENGTHS = (6, 4, 1)
KEEP_BT = np.arange(T)[None] < np.array(LENGTHS)[:, None]


def arrays(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype('f4')


H_S, H_T = arrays(1, B, T, D), arrays(2, B, T, E)
W_DE = arrays(3, D, E)


def scores(seed, causal=False):
  """Random scores; masked where queries or keys are padding, or ahead."""
  a_BHTT = 2 * arrays(seed, B, H, T, T)
  keep_BTT = KEEP_BT[:, :, None] & KEEP_BT[:, None, :]
  if causal:
    keep_BTT = keep_BTT & np.tri(T, dtype=bool)
  return np.where(keep_BTT[:, None], a_BHTT, np.float32(softmax.MASKED))


def rows(*arrays):
  """Each row of the arrays, float64, cut to its real tokens."""
  for b, n in enumerate(LENGTHS):
    cut = [
      x[b, :n].astype('f8') if x.ndim == 3 else x[b, :, :n].astype('f8')
      for x in arrays
    ]
    yield [
      x[..., :n] if a.ndim == 4 and a.shape[-1] == T else x
      for x, a in zip(cut, arrays, strict=True)
    ]


def probabilities(a_TT):
  p = np.exp(a_TT - a_TT.max(axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


def kl_of_rows(p_s, p_t):
  """Mean over heads and queries of KL(t || s), where t is not 0."""
  total = 0.0
  for h in range(p_t.shape[0]):
    for i in range(p_t.shape[1]):
      for s, t in zip(p_s[h, i], p_t[h, i], strict=True):
        total += t * math.log(t / s) if t > 0 else 0.0
  return total / p_t.shape[0] / p_t.shape[1]


def test_states_without_a_projection():
  other = arrays(4, B, T, D)
  expected_B = [np.square(s - t).mean() for s, t in rows(H_S, other)]
  value_B = hidden.state_mse(H_S, other, KEEP_BT)
  np.testing.assert_allclose(value_B, expected_B, rtol=1e-5)


def test_states_of_another_width():
  expected_B = [
    np.square(s @ W_DE.astype('f8') - t).mean() for s, t in rows(H_S, H_T)
  ]
  value_B = hidden.state_mse(H_S, H_T, KEEP_BT, W_DE)
  np.testing.assert_allclose(value_B, expected_B, rtol=1e-5)
  # The projection is trained with the student, the teacher is not.
  gradients = jax.grad(
    lambda s, t, w: hidden.state_mse(s, t, KEEP_BT, w).sum(), argnums=(0, 1, 2)
  )(H_S, H_T, W_DE)
  assert np.abs(gradients[0])[KEEP_BT].min() > 0
  assert np.abs(gradients[0])[~KEEP_BT].max() == 0
  assert np.abs(gradients[1]).max() == 0
  assert np.abs(gradients[2]).min() > 0


def test_the_projection_starts_at_the_scale_of_its_input():
  w_DE = hidden.init_projection(jax.random.key(0), 300, 200)
  assert w_DE.shape == (300, 200)
  x_BD = arrays(5, 50, 300)
  assert abs(np.std(x_BD @ w_DE) - 1) < 0.05


@pytest.mark.parametrize('projection_DE', [None, W_DE])
def test_cosines_of_states(projection_DE):
  other = arrays(4, B, T, D) if projection_DE is None else H_T
  expected_B = []
  for s, t in rows(H_S, other):
    s = s if projection_DE is None else s @ projection_DE.astype('f8')
    lengths = np.linalg.norm(s, axis=1) * np.linalg.norm(t, axis=1)
    expected_B.append((1 - (s * t).sum(axis=1) / lengths).mean())
  value_B = hidden.state_cosine_distance(H_S, other, KEEP_BT, projection_DE)
  np.testing.assert_allclose(value_B, expected_B, rtol=1e-4)


@pytest.mark.parametrize('causal', [False, True])
def test_attention_before_the_softmax(causal):
  """What is masked is 0, and counts among the pairs of real tokens."""
  a_s, a_t = scores(1, causal), scores(2, causal)
  expected_B = []
  for s, t in rows(a_s, a_t):
    seen = np.tri(s.shape[-1]) if causal else 1.0
    expected_B.append(np.square((s - t) * seen).mean())
  value_B = hidden.attention_mse(a_s, a_t, KEEP_BT)
  np.testing.assert_allclose(value_B, expected_B, rtol=1e-5)


def test_a_student_that_sees_less_has_zeros_where_it_sees_nothing():
  a_s, a_t = scores(1, causal=True), scores(2)
  expected_B = [
    np.square(s * np.tri(s.shape[-1]) - t).mean()
    for s, t in rows(np.where(a_s < -1e9, 0, a_s), a_t)
  ]
  value_B = hidden.attention_mse(a_s, a_t, KEEP_BT)
  np.testing.assert_allclose(value_B, expected_B, rtol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
def test_probabilities_of_attention(causal):
  a_s, a_t = scores(1, causal), scores(2, causal)
  pairs = [(probabilities(s), probabilities(t)) for s, t in rows(a_s, a_t)]
  value_B = hidden.attention_probability_mse(a_s, a_t, KEEP_BT)
  np.testing.assert_allclose(
    value_B, [np.square(s - t).mean() for s, t in pairs], rtol=1e-4, atol=1e-7
  )
  value_B = hidden.attention_kl(a_s, a_t, KEEP_BT)
  np.testing.assert_allclose(
    value_B, [kl_of_rows(s, t) for s, t in pairs], rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  ('number', 'student', 'teacher'),
  [(None, (2, 9), (2, 5)), (3, (2, 9), (4, 3)), (6, (2, 9), (3, 4)),
   (1, (2, 9), (1, 5))],
)  # fmt: skip
def test_relations(number, student, teacher):
  """Heads are laid side by side, and cut anew."""
  x_s, x_t = (
    arrays(seed, B, heads, T, width)
    for seed, (heads, width) in ((1, student), (2, teacher))
  )

  def relations(x_HNK):
    num_heads, n, width = x_HNK.shape
    if number is None:
      parts = list(x_HNK)
    else:
      beside = np.concatenate(list(x_HNK), axis=1)
      width = num_heads * width // number
      parts = [beside[:, r * width : (r + 1) * width] for r in range(number)]
    assert parts[0].shape == (n, width)
    return probabilities(np.stack([x @ x.T / math.sqrt(width) for x in parts]))

  expected_B = [
    kl_of_rows(relations(s), relations(t)) for s, t in rows(x_s, x_t)
  ]
  value_B = hidden.relation_kl(x_s, x_t, KEEP_BT, number)
  np.testing.assert_allclose(value_B, expected_B, rtol=1e-4, atol=1e-6)


LOSSES = {
  'states': lambda x: hidden.state_mse(x['s'], x['t'], x['keep']),
  'cosine': lambda x: hidden.state_cosine_distance(x['s'], x['t'], x['keep']),
  'scores': lambda x: hidden.attention_mse(x['a_s'], x['a_t'], x['keep']),
  'probabilities': lambda x: hidden.attention_probability_mse(
    x['a_s'], x['a_t'], x['keep']
  ),
  'rows': lambda x: hidden.attention_kl(x['a_s'], x['a_t'], x['keep']),
  'relations': lambda x: hidden.relation_kl(x['q_s'], x['q_t'], x['keep']),
  'relations anew': lambda x: hidden.relation_kl(
    x['q_s'], x['q_t'], x['keep'], 3
  ),
}


def inputs():
  return {
    's': H_S, 't': arrays(4, B, T, D), 'keep': KEEP_BT,
    'a_s': scores(1), 'a_t': scores(2),
    'q_s': arrays(6, B, H, T, K), 'q_t': arrays(7, B, H, T, K),
  }  # fmt: skip


def longer(part, x):
  """Three more tokens of padding, and other content in all padding."""
  keep_BT = np.pad(KEEP_BT, ((0, 0), (0, 3)))
  if part == 'keep':
    return keep_BT
  if part.startswith('a_'):
    pads = (0, 0), (0, 0), (0, 3), (0, 3)
    return np.pad(x, pads, constant_values=np.float32(softmax.MASKED))
  is_heads = part.startswith('q_')
  pads = [(0, 3 * (axis == x.ndim - 2)) for axis in range(x.ndim)]
  keep = keep_BT[:, None, :, None] if is_heads else keep_BT[..., None]
  noise = 9 * np.random.default_rng(8).normal(size=(9, x.shape[-1]))
  return np.where(keep, np.pad(x, pads), noise.astype('f4'))


@pytest.mark.parametrize('name', LOSSES)
def test_neither_padding_nor_its_amount_matters(name):
  loss = LOSSES[name]
  value_B = loss(inputs())
  assert value_B.shape == (B,)
  assert (value_B[:2] > 1e-3).all()
  changed = {part: longer(part, x) for part, x in inputs().items()}
  np.testing.assert_allclose(loss(changed), value_B, rtol=1e-5)


def test_scores_of_padding_need_not_be_masked():
  given = inputs()
  value_B = LOSSES['scores'](given)
  pairs_BTT = KEEP_BT[:, :, None] & KEEP_BT[:, None, :]
  for part in ('a_s', 'a_t'):
    noise = arrays(len(part) + ord(part[-1]), B, H, T, T)
    given[part] = np.where(pairs_BTT[:, None], given[part], noise)
  np.testing.assert_allclose(LOSSES['scores'](given), value_B, rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_a_row_without_tokens_is_zero_and_pulls_nowhere(name):
  loss, given = LOSSES[name], inputs()
  given['keep'] = KEEP_BT & (np.arange(B) != 1)[:, None]
  for part in ('a_s', 'a_t'):
    given[part][1] = softmax.MASKED
  floats = {k: v for k, v in given.items() if k != 'keep'}
  value_B, gradients = jax.value_and_grad(
    lambda x: loss({**x, 'keep': given['keep']}).sum()
  )(floats)
  assert loss(given)[1] == 0
  assert value_B > 0
  for part, gradient in gradients.items():
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1]).max() == 0
    # The teacher learns nothing.
    assert np.abs(gradient).max() == 0 or not part.endswith('t')


@pytest.mark.parametrize('name', LOSSES)
def test_zero_at_the_teacher(name):
  given = inputs()
  for part in ('s', 'a_s', 'q_s'):
    given[part] = given[part[:-1] + 't']
  np.testing.assert_allclose(LOSSES[name](given), 0, atol=1e-6)


def test_half_precision_is_summed_in_float32():
  given = {
    k: v if k == 'keep' else jnp.asarray(v, jnp.bfloat16)
    for k, v in inputs().items()
  }
  for name, loss in LOSSES.items():
    value_B = jax.jit(loss)(given)
    assert value_B.dtype == jnp.float32
    np.testing.assert_allclose(
      value_B, LOSSES[name](inputs()), rtol=0.1, atol=1e-3
    )


def test_pairs_of_texts():
  value_B = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 30.0])
  np.testing.assert_allclose(hidden.over_texts(value_B, 3), [5.5, 11, 16.5])
  np.testing.assert_array_equal(hidden.over_texts(value_B, 6), value_B)
  with pytest.raises(ValueError, match='6 rows are no texts of 4'):
    hidden.over_texts(value_B, 4)


def test_what_cannot_be_compared():
  with pytest.raises(ValueError, match=r'states of shape \(3, 6, 8\) and'):
    hidden.state_mse(H_S, H_T, KEEP_BT)
  with pytest.raises(ValueError, match='tokens of shape'):
    hidden.state_mse(H_S, H_S, KEEP_BT[:, :3])
  with pytest.raises(ValueError, match='attention of shape'):
    hidden.attention_mse(scores(1), scores(2)[:, :1], KEEP_BT)
  with pytest.raises(ValueError, match='5 relation heads do not divide the 2'):
    hidden.relation_kl(arrays(1, B, H, T, K), arrays(1, B, H, T, K), KEEP_BT, 5)
  with pytest.raises(ValueError, match='attention of shape'):
    hidden.relation_kl(arrays(1, B, H, T, K), arrays(1, B, 3, T, K), KEEP_BT)
