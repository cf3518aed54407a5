"""Agreement of models, against definitions written out."""

import itertools
import math

import numpy as np
import pytest

from effformer.compress import agreement


def test_vectors_by_hand():
  before = np.array([[1, 0], [0, 2], [1, 1], [-3, 0.1]])
  after = np.array([[2, 0], [1, 1], [1, 0.9], [-1, 0]])
  found = agreement.vectors(before, after)
  cosines = [
    1,
    1 / math.sqrt(2),
    1.9 / (math.sqrt(2) * math.hypot(1, 0.9)),
    3 / math.hypot(3, 0.1),
  ]
  assert found['cosine_mean'] == pytest.approx(np.mean(cosines))
  assert found['cosine_min'] == pytest.approx(min(cosines))
  assert found['cosine_p01'] == pytest.approx(np.percentile(cosines, 1))
  # Nearest before: 2, 2, 0 (as near as 1), 1. After: 2, 2, 1, 1.
  assert found['nearest'] == 0.75
  # Of four texts, three others: all are among the nearest.
  assert found['nearest_10'] == 1


def test_neighbours_of_many():
  rng = np.random.default_rng(0)
  before, noise = rng.normal(size=(2, 40, 5))
  after = before + 0.3 * noise
  found = agreement.vectors(before, after)

  def nearest(x, i):
    x = x / np.linalg.norm(x, axis=1)[:, None]
    others = [j for j in range(40) if j != i]
    return sorted(others, key=lambda j: -(x[i] @ x[j]))

  pairs = [(nearest(before, i), nearest(after, i)) for i in range(40)]
  assert found['nearest'] == np.mean([a[0] == b[0] for a, b in pairs])
  overlap = np.mean([len({*a[:10]} & {*b[:10]}) / 10 for a, b in pairs])
  assert found['nearest_10'] == pytest.approx(overlap)
  assert 0.3 < overlap < 1
  same = agreement.vectors(before, 3 * before)
  assert same['nearest'] == same['nearest_10'] == 1
  assert same['cosine_min'] == pytest.approx(1)


def test_classes_by_hand():
  p = np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9], [1.0, 0.0]])
  q = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1]])
  label = np.array([0, 0, 0, 1, 1])
  found = agreement.classes(p, q, label)
  kl = [
    sum(a * math.log(a / b) for a, b in zip(x, y, strict=True) if a)
    for x, y in zip(p, q, strict=True)
  ]
  assert found['kl'] == pytest.approx(np.mean(kl))
  assert found['agreement'] == 0.6
  assert (found['to_right'], found['to_wrong']) == (1, 1)
  assert found['p_value'] == 1
  assert (found['before'], found['after']) == (0.6, 0.6)


@pytest.mark.parametrize(('right', 'wrong'), [(0, 0), (1, 5), (8, 2)])
def test_the_p_value_is_that_of_fair_coins(right, wrong):
  count = right + wrong
  p = np.tile([0.9, 0.1], (count + 3, 1))
  q = p.copy()
  # The parent guesses 0; the first `wrong` of the right ones are lost.
  label = np.array([0] * wrong + [1] * right + [0] * 3)
  q[:count] = q[:count, ::-1]
  found = agreement.classes(p, q, label)
  assert (found['to_right'], found['to_wrong']) == (right, wrong)
  outcomes = itertools.product((0, 1), repeat=count)
  heads = [sum(outcome) for outcome in outcomes]
  far = abs(right - count / 2)
  share = np.mean([abs(h - count / 2) >= far for h in heads])
  assert found['p_value'] == pytest.approx(share)


def test_calibration_error_by_bins():
  confidence = np.array([0.55, 0.58, 0.91, 0.99, 1.0, 0.5])
  p = np.stack([confidence, 1 - confidence], axis=1)
  label = np.array([0, 1, 0, 0, 1, 0])
  expected = (
    abs(1 - 0.5) + abs(1 - (0.55 + 0.58)) + abs(2 - (0.91 + 0.99 + 1.0))
  ) / 6
  assert agreement.calibration_error(p, label) == pytest.approx(expected)
  perfect = np.eye(2)[label]
  assert agreement.calibration_error(perfect, label) == 0


def test_spearman_is_that_of_ranks():
  x, y = [3, 1, 4, 1, 5], [2, 7, 1, 8, 2]

  def ranks(values):
    return [
      np.mean([r for r, v in enumerate(sorted(values), 1) if v == value])
      for value in values
    ]

  expected = np.corrcoef(ranks(x), ranks(y))[0, 1]
  assert agreement.spearman(x, y) == pytest.approx(expected)
  assert agreement.spearman(x, [1] * 5) == 0


def test_an_interval_covers_the_mean_about_as_often_as_it_says():
  rng = np.random.default_rng(1)
  hits, widths = 0, []
  for seed in range(40):
    x = rng.normal(2.0, 1.0, 60)
    low, high = agreement.interval(np.mean, x, seed=seed)
    hits += low <= 2.0 <= high
    widths.append(high - low)
  assert 33 <= hits <= 40
  assert np.mean(widths) == pytest.approx(2 * 1.96 / math.sqrt(60), rel=0.08)
  pair = agreement.interval(lambda a, b: np.mean(a - b), x, x)
  assert pair == [0, 0]
  assert agreement.interval(np.mean, x, seed=3) == agreement.interval(
    np.mean, x, seed=3
  )
