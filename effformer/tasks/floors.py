"""Floors: what a score must beat before it says anything about attention.

Each floor is fitted on train and is the accuracy on the evaluated split.

- majority: always the most frequent label of train.
- bag of tokens: multinomial logistic regression on how often each token
  occurs; it knows nothing of order.
- root operator (ListOps): the most frequent label of train given the first
  symbol. Most published ListOps scores of 36-37 % are this one.

- bags of tokens (pairs): the same on the bags of both texts and what they have
  in common.
- linear (images): multinomial logistic regression on the pixels; it knows what
  stands where, but no shape in two places.
- most frequent byte, bigram (next byte): the most frequent byte of train; and
  the most frequent one after the byte before.

All are deterministic.
"""

import functools
from collections.abc import Callable

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

from effformer.data.dataset import Source, first_examples, read_all
from effformer.data.tokenizers import Tokenizer

# Pixels that the linear floor is fitted on: more change it by tenths.
MAX_LINEAR = 20_000 * 1024

# Features of examples, one a row.
Table = np.ndarray | scipy.sparse.csr_array

_L2 = 1.0
# On IMDb at 512 bytes 30 iterations and 400 differ by 0.03 points.
_MAX_ITERATIONS = 100


def majority(train: Source, evaluated: Source) -> float:
  """Accuracy of the most frequent label of train; ties go to the smallest."""
  guess = np.bincount(_labels(train)).argmax()
  return float(np.mean(_labels(evaluated) == guess))


def root_operator(train: Source, evaluated: Source) -> float:
  """Accuracy of the most frequent label of train given the first symbol.

  A symbol is what stands before the first space. One that train does not
  start with is given the majority label.
  """
  labels_by_root: dict[bytes, list[int]] = {}
  for example in read_all(train):
    labels_by_root.setdefault(_root(example), []).append(example['label'])
  guesses = {
    root: np.bincount(labels).argmax()
    for root, labels in labels_by_root.items()
  }
  default = np.bincount(np.concatenate(list(labels_by_root.values()))).argmax()
  hits = [
    guesses.get(_root(example), default) == example['label']
    for example in read_all(evaluated)
  ]
  return float(np.mean(hits))


def bag_of_tokens(
  train: Source, evaluated: Source, tokenizer: Tokenizer, max_length: int
) -> float:
  """Accuracy of logistic regression on the first `max_length` tokens.

  Minimises sum_n -log softmax(x_n W + b)[y_n] + |W|^2 / 2 by L-BFGS, with x_n
  the frequencies of the tokens in text n, each less its mean over train and
  divided by its standard deviation over train. Tokens that vary nowhere in
  train are left out.
  """
  return _regression(
    *(frequencies(s, tokenizer, max_length) for s in (train, evaluated))
  )


def bags_of_tokens(
  train: Source, evaluated: Source, tokenizer: Tokenizer, max_length: int
) -> float:
  """Accuracy of logistic regression on the frequencies a, b in two texts.

  As `bag_of_tokens`, on [a, b, a * b, |a - b|]: what two bags tell about how
  alike the texts are.
  """

  def features(source):
    a_NY, labels_N = frequencies(source, tokenizer, max_length)
    b_NY, _ = frequencies(source, tokenizer, max_length, 'other')
    parts = [a_NY, b_NY, a_NY * b_NY, abs(a_NY - b_NY)]
    return scipy.sparse.hstack(parts, 'csr'), labels_N

  return _regression(features(train), features(evaluated))


def linear(train: Source, evaluated: Source) -> float:
  """Accuracy of logistic regression on the pixels, as in `bag_of_tokens`.

  Fitted on the first examples of `dataset.first_examples`, with MAX_LINEAR
  pixels in all; all images have one size.
  """
  count = max(MAX_LINEAR // len(train[0]['text']), 1)
  train = first_examples(train, count)
  return _regression(_pixels(train), _pixels(evaluated))


def next_byte(train: Source, evaluated: Source) -> dict[str, float]:
  """Accuracies of guessing each byte of the texts, the first ones included.

  What comes first in a text follows a byte of its own kind.
  """
  learnt, scored = (_pairs_of_bytes(source) for source in (train, evaluated))
  guess_Y = learnt.argmax(axis=1)
  hits = scored[np.arange(257), guess_Y].sum()
  most = scored[:, learnt.sum(axis=0).argmax()].sum()
  return {
    'most_frequent_byte': float(most / scored.sum()),
    'bigram': float(hits / scored.sum()),
  }


def _pairs_of_bytes(source: Source) -> np.ndarray:
  """How often [257, 256] each byte follows each, or the beginning (256)."""
  count = np.zeros(257 * 256, np.int64)
  for example in read_all(source):
    next_T = np.frombuffer(example['text'], np.uint8)
    before_T = np.concatenate([[256], next_T[:-1]])
    count += np.bincount(256 * before_T + next_T, minlength=count.size)
  return count.reshape(257, 256)


def _pixels(source: Source) -> tuple[np.ndarray, np.ndarray]:
  texts = [example['text'] for example in read_all(source)]
  x_NP = np.frombuffer(b''.join(texts), np.uint8).reshape(len(texts), -1)
  return x_NP.astype(np.float32), _labels(source)


def _regression(
  train: tuple[Table, np.ndarray], evaluated: tuple[Table, np.ndarray]
) -> float:
  (x_NY, labels_N), (x_BY, labels_B) = train, evaluated
  used_Y = _varies(x_NY)
  x_NU = x_NY[:, used_Y]
  num_classes = int(max(labels_N.max(), labels_B.max())) + 1
  logits_of = _fit(x_NU, *_moments(x_NU), labels_N, num_classes)
  guess_B = logits_of(x_BY[:, used_Y]).argmax(axis=-1)
  return float(np.mean(guess_B == labels_B))


def _varies(x_NY: Table) -> np.ndarray:
  low_Y, high_Y = x_NY.min(axis=0), x_NY.max(axis=0)
  if scipy.sparse.issparse(x_NY):
    low_Y, high_Y = low_Y.toarray().ravel(), high_Y.toarray().ravel()
  return low_Y < high_Y


def _moments(x_NU: Table) -> tuple[np.ndarray, np.ndarray]:
  """Means and standard deviations."""
  mean_U = np.asarray(x_NU.mean(axis=0)).ravel()
  if not scipy.sparse.issparse(x_NU):
    return mean_U, x_NU.std(axis=0)
  # Of what differs from 0, and of the rest.
  size = x_NU.shape[0]
  apart = x_NU.tocsc(copy=True)
  counts_U = np.diff(apart.indptr)
  apart.data = (apart.data - np.repeat(mean_U, counts_U)) ** 2
  total_U = np.asarray(apart.sum(axis=0)).ravel()
  total_U += (size - counts_U) * mean_U**2
  return mean_U, np.sqrt(total_U / size)


def frequencies(
  source: Source, tokenizer: Tokenizer, max_length: int, name: str = 'text'
) -> tuple[scipy.sparse.csr_array, np.ndarray]:
  """Shares of the tokens among the first `max_length` of each text, float64.

  `name` says which text of an example.

  Returns:
    frequency_NY, each row of which sums to 1, and labels_N.
  """
  tokens, shares, ends = [], [], [0]
  labels_N = np.zeros(len(source), np.int64)
  for row, example in enumerate(read_all(source)):
    ids_T = tokenizer.encode(example[name], max_length)
    found, counts = np.unique(ids_T, return_counts=True)
    tokens.append(found)
    shares.append(counts / len(ids_T))
    ends.append(ends[-1] + len(found))
    labels_N[row] = example['label']
  frequency_NY = scipy.sparse.csr_array(
    (np.concatenate(shares), np.concatenate(tokens), np.array(ends)),
    shape=(len(source), tokenizer.vocab_size),
  )
  return frequency_NY, labels_N


def _labels(source: Source) -> np.ndarray:
  return np.array([example['label'] for example in read_all(source)])


def _root(example) -> bytes:
  return example['text'].partition(b' ')[0]


def _fit(
  x_NU: Table,
  mean_U: np.ndarray,
  std_U: np.ndarray,
  labels_N: np.ndarray,
  num_classes: int,
) -> Callable[[Table], np.ndarray]:
  """The function from features, not yet scaled, to logits."""
  size, width = x_NU.shape
  target_NC = np.eye(num_classes)[labels_N]

  # Centred, a table of the few tokens that occur would be one of all.
  def logits(flat, x_NU):
    params = flat.reshape(width + 1, num_classes)
    scaled_UC = params[:-1] / std_U[:, None]
    return x_NU @ scaled_UC - mean_U @ scaled_UC + params[-1]

  def loss_and_gradient(flat):
    weights_UC = flat.reshape(width + 1, num_classes)[:-1]
    log_p_NC = scipy.special.log_softmax(logits(flat, x_NU), axis=-1)
    error_NC = np.exp(log_p_NC) - target_NC
    error_C = error_NC.sum(axis=0)
    loss = -np.sum(log_p_NC * target_NC) + _L2 * np.sum(weights_UC**2) / 2
    centred_UC = x_NU.T @ error_NC - mean_U[:, None] * error_C
    gradient = np.concatenate(
      [centred_UC / std_U[:, None] + _L2 * weights_UC, error_C[None]]
    )
    # By the number of examples, so that the stopping rule does not depend
    # on it.
    return loss / size, gradient.ravel() / size

  result = scipy.optimize.minimize(
    loss_and_gradient,
    np.zeros((width + 1) * num_classes),
    jac=True,
    method='L-BFGS-B',
    options={'maxiter': _MAX_ITERATIONS},
  )
  return functools.partial(logits, result.x)
