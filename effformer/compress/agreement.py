"""How far a compressed model agrees with its parent, and how sure that is.

Closeness flatters: vectors of cosine 0.998 can change every twentieth nearest
neighbour. So decisions are counted, too.
"""

from typing import Any

import numpy as np
import scipy.special
import scipy.stats

# Of bootstrap intervals.
LEVEL = 0.95
DRAWS = 2000
NEIGHBOURS = 10


def vectors(before_ND: np.ndarray, after_ND: np.ndarray) -> dict[str, float]:
  """Agreement of vectors of the same N texts.

  Returns:
    cosine_mean, cosine_min and cosine_p01 (its 1st percentile) of each text's
    two vectors; nearest, the share of texts whose nearest other text is the
    same; nearest_10, the mean overlap of the ten nearest (fewer of fewer
    texts).
  """
  a_ND, b_ND = (_unit(x) for x in (before_ND, after_ND))
  cosine_N = np.sum(a_ND * b_ND, axis=1)
  count = min(NEIGHBOURS, len(a_ND) - 1)
  a_NK, b_NK = (_nearest(x, count) for x in (a_ND, b_ND))
  shared_N = [
    len(np.intersect1d(a, b)) / count for a, b in zip(a_NK, b_NK, strict=True)
  ]
  return {
    'cosine_mean': float(cosine_N.mean()),
    'cosine_min': float(cosine_N.min()),
    'cosine_p01': float(np.percentile(cosine_N, 1)),
    'nearest': float(np.mean(a_NK[:, 0] == b_NK[:, 0])),
    f'nearest_{NEIGHBOURS}': float(np.mean(shared_N)),
  }


def _unit(x_ND):
  x_ND = np.asarray(x_ND, np.float64)
  norm_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
  return x_ND / np.maximum(norm_N1, 1e-12)


def _nearest(x_ND, count):
  similarity_NN = x_ND @ x_ND.T
  np.fill_diagonal(similarity_NN, -np.inf)
  return np.argsort(-similarity_NN, axis=1, kind='stable')[:, :count]


def classes(
  before_NC: np.ndarray, after_NC: np.ndarray, label_N: np.ndarray
) -> dict[str, Any]:
  """Agreement of probabilities of classes on N labelled examples.

  Returns:
    kl, mean of sum_c p log(p / q) with p of the parent, in nats; agreement, the
    share of equal guesses; to_right and to_wrong, the numbers of examples whose
    guess became so; p_value of McNemar's exact test of these two; before and
    after, accuracies; calibration_before and _after, see `calibration_error`.
  """
  p_NC, q_NC = (np.asarray(x, np.float64) for x in (before_NC, after_NC))
  label_N = np.asarray(label_N)
  a_N, b_N = p_NC.argmax(axis=1), q_NC.argmax(axis=1)
  was_N, is_N = a_N == label_N, b_N == label_N
  to_right, to_wrong = int((~was_N & is_N).sum()), int((was_N & ~is_N).sum())
  kl_N = scipy.special.rel_entr(p_NC, np.maximum(q_NC, 1e-30)).sum(axis=1)
  return {
    'kl': float(kl_N.mean()),
    'agreement': float(np.mean(a_N == b_N)),
    'to_right': to_right,
    'to_wrong': to_wrong,
    'p_value': _mcnemar(to_right, to_wrong),
    'before': float(was_N.mean()),
    'after': float(is_N.mean()),
    'calibration_before': calibration_error(p_NC, label_N),
    'calibration_after': calibration_error(q_NC, label_N),
  }


def _mcnemar(to_right, to_wrong):
  if to_right + to_wrong == 0:
    return 1.0
  test = scipy.stats.binomtest(to_right, to_right + to_wrong, 0.5)
  return float(test.pvalue)


def calibration_error(
  p_NC: np.ndarray, label_N: np.ndarray, bins: int = 10
) -> float:
  """Expected calibration error (Guo et al. 2017, 1706.04599, equation 3).

  sum_b n_b / N |accuracy(b) - confidence(b)| over bins of equal width of the
  confidence, the greatest probability.
  """
  confidence_N = p_NC.max(axis=1)
  right_N = p_NC.argmax(axis=1) == label_N
  bin_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
  gaps = [
    abs(right_N[bin_N == b].sum() - confidence_N[bin_N == b].sum())
    for b in range(bins)
  ]
  return float(sum(gaps) / len(label_N))


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float:
  """Rank correlation, ties by mean ranks; 0 where one does not vary."""
  x_N, y_N = np.asarray(x_N), np.asarray(y_N)
  if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
    return 0.0
  return float(scipy.stats.spearmanr(x_N, y_N).statistic)


def interval(statistic, *arrays_N: np.ndarray, seed: int = 0) -> list[float]:
  """Percentile bootstrap over examples (Efron 1979), at `LEVEL`.

  Args:
    statistic: (arrays) -> number, of examples drawn with replacement.
    *arrays_N: of one entry for each example.
    seed: of the draws.
  """
  rng, size = np.random.default_rng(seed), len(arrays_N[0])
  values = []
  for _ in range(DRAWS):
    drawn_N = rng.integers(size, size=size)
    values.append(statistic(*(array[drawn_N] for array in arrays_N)))
  tail = 100 * (1 - LEVEL) / 2
  low, high = np.percentile(values, [tail, 100 - tail])
  return [float(low), float(high)]
