"""Scores with intervals, against plain definitions."""

import numpy as np
import pytest
import scipy.stats

from effformer.compress import agreement, quality


@pytest.fixture(scope='module')
def classes():
  rng = np.random.default_rng(0)
  label_N = rng.integers(2, size=150)
  before_NC, after_NC = rng.dirichlet([1, 1], size=(2, 150))
  # The parent is right more often than not.
  wrong = before_NC.argmax(1) != label_N
  flip = wrong & (rng.random(150) < 0.7)
  before_NC[flip] = before_NC[flip][:, ::-1]
  return before_NC, after_NC, label_N


def test_classes(classes):
  before_NC, after_NC, label_N = classes
  found = quality.beside(*classes)
  was, now = (
    np.mean(x.argmax(axis=1) == label_N) for x in (before_NC, after_NC)
  )
  assert found['name'] == 'accuracy'
  assert found['score'] == pytest.approx(now)
  assert found['change'] == pytest.approx(now - was)
  assert found['low'] < now < found['high']
  assert found['change_low'] < now - was < found['change_high'] < 0
  # A normal approximation of the same.
  width = 2 * 1.96 * np.sqrt(now * (1 - now) / 150)
  assert found['high'] - found['low'] == pytest.approx(width, rel=0.15)
  known = agreement.classes(*classes)
  assert {name: found[name] for name in known} == known
  guess_N = after_NC.argmax(axis=1)
  matthews = np.corrcoef(guess_N, label_N)[0, 1]
  assert found['matthews'] == pytest.approx(matthews, abs=1e-5)


def test_more_than_two_classes_have_no_matthews(classes):
  before, after, label_N = classes
  before, after = (
    np.concatenate([x, np.zeros((150, 1))], 1) for x in (before, after)
  )
  assert 'matthews' not in quality.beside(before, after, label_N)


def test_the_parent_beside_itself_has_not_changed(classes):
  before_NC, _, label_N = classes
  found = quality.beside(before_NC, before_NC, label_N)
  assert found['change'] == found['change_low'] == found['change_high'] == 0
  assert found['low'] < found['score'] < found['high']


def test_vectors(monkeypatch):
  rng = np.random.default_rng(1)
  before = rng.normal(size=(80, 2, 5))
  after = before + 0.5 * rng.normal(size=before.shape)
  before, after = (
    x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (before, after)
  )
  score_N = (before[:, 0] * before[:, 1]).sum(-1) + rng.normal(size=80)
  found = quality.beside(before, after, score_N)
  was, now = (
    scipy.stats.spearmanr((x[:, 0] * x[:, 1]).sum(-1), score_N).statistic
    for x in (before, after)
  )
  assert found['name'] == 'spearman'
  assert found['score'] == pytest.approx(now)
  assert found['change'] == pytest.approx(now - was)
  assert found['low'] < now < found['high']
  texts = [x.reshape(160, 5) for x in (before, after)]
  known = agreement.vectors(*texts)
  assert {name: found[name] for name in known} == known
  # Of many texts the first ones, since all pairs of them are compared.
  monkeypatch.setattr(quality, 'MOST_TEXTS', 20)
  found = quality.beside(before, after, score_N)
  assert (
    found['nearest'] == agreement.vectors(*(x[:20] for x in texts))['nearest']
  )
