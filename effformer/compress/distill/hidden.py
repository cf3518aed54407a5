"""Losses of what networks compute inside: states, attention, relations.

All have one value a row, [B], which is a mean over its real tokens (and pairs
of them, heads and channels): more padding changes nothing, and a row without
tokens has 0. `losses.mean` makes a number of them; rows of pairs of texts are
2 B, see `over_texts`. No gradient goes to the teacher. All sums are float32.

What is compared comes from `capture`. Student and teacher must have the same
tokens. Scores of attention are those before the softmax, `softmax.MASKED`
where a query may not see a key.
"""

import math

import jax
import jax.numpy as jnp

from effformer.attention.primitives import softmax
from effformer.compress.distill import losses
from effformer.shapes import Array


def init_projection(key: Array, width: int, teacher_width: int) -> Array:
  """W_DE of `state_mse`, float32, which keeps the scale of what it projects."""
  shape = (width, teacher_width)
  return jax.random.normal(key, shape, jnp.float32) * width**-0.5


def state_mse(
  student_BTD: Array,
  teacher_BTE: Array,
  keep_BT: Array,
  projection_DE: Array | None = None,
) -> Array:
  """MSE(h_s W, h_t), [B].

  TinyBERT (Jiao et al. 2020, 1909.10351): of hidden states, equation 8, and of
  what enters the first layer, equation 9. Of outputs of mixers it transfers
  attention to mechanisms that have no scores.

  Args:
    student_BTD, teacher_BTE: states.
    keep_BT: bool, real tokens.
    projection_DE: W, trained with the student; None where widths are equal.
  """
  if projection_DE is not None:
    student_BTD = _projected(student_BTD, projection_DE)
  _check_shapes('states', student_BTD, teacher_BTE)
  teacher_BTE = jax.lax.stop_gradient(teacher_BTE)
  difference_BTE = student_BTD.astype(jnp.float32) - teacher_BTE
  return _over_tokens(jnp.square(difference_BTE).mean(axis=-1), keep_BT)


def state_cosine_distance(
  student_BTD: Array,
  teacher_BTE: Array,
  keep_BT: Array,
  projection_DE: Array | None = None,
) -> Array:
  """Mean over tokens of 1 - cos(h_s W, h_t), [B].

  Of the last hidden states a loss of DistilBERT (Sanh et al. 2019, 1910.01108);
  arguments as of `state_mse`.
  """
  if projection_DE is not None:
    student_BTD = _projected(student_BTD, projection_DE)
  _check_shapes('states', student_BTD, teacher_BTE)
  value_BT = losses.cosine_distance(student_BTD, teacher_BTE)
  return _over_tokens(value_BT, keep_BT)


def attention_mse(
  student_BHTT: Array, teacher_BHTT: Array, keep_BT: Array
) -> Array:
  """MSE of the scores before the softmax, [B].

  TinyBERT (1909.10351, equation 7): the mean over heads and pairs of real
  tokens, scores that are masked being 0, each in its own network.

  Args:
    student_BHTT, teacher_BHTT: scores; as many heads in both.
    keep_BT: bool, real tokens.
  """
  scores = _pair(student_BHTT, teacher_BHTT)
  return _over_pairs(*(jnp.where(_seen(x), x, 0.0) for x in scores), keep_BT)


def attention_probability_mse(
  student_BHTT: Array, teacher_BHTT: Array, keep_BT: Array
) -> Array:
  """`attention_mse` of the probabilities, softmax over keys of the scores."""
  scores = _pair(student_BHTT, teacher_BHTT)
  return _over_pairs(*(jax.nn.softmax(x) for x in scores), keep_BT)


def attention_kl(
  student_BHTT: Array, teacher_BHTT: Array, keep_BT: Array
) -> Array:
  """KL of the rows of attention, the mean over heads and real queries, [B].

      1 / (H n) sum_h sum_i KL(A_t[h, i] || A_s[h, i])

  L_AT of MiniLM (Wang et al. 2020, 2002.10957), which takes the last layer of
  both. Both must see the same tokens: it is not finite where the
  teacher sees one that is masked for the student.

  Args:
    student_BHTT, teacher_BHTT: scores; as many heads in both.
    keep_BT: bool, real tokens.
  """
  return _row_kl(*_pair(student_BHTT, teacher_BHTT), keep_BT)


def relation_kl(
  student_BHTK: Array,
  teacher_BHTK: Array,
  keep_BT: Array,
  num_relation_heads: int | None = None,
) -> Array:
  """KL of relations between tokens, [B].

      R = softmax(X X^T / sqrt(d)) over real tokens, for each head
      1 / (R n) sum_r sum_i KL(R_t[r, i] || R_s[r, i])

  Of values L_VR of MiniLM (2002.10957). With a number of relation
  heads the heads of either network, side by side, are cut anew into so many,
  of width d = H K / R; of queries, keys and values these are the losses of
  MiniLMv2 (Wang et al. 2021, 2012.15828, equations 5 to 8).

  Args:
    student_BHTK, teacher_BHTK: queries, keys or values.
    keep_BT: bool, real tokens.
    num_relation_heads: R, a divisor of H K of both networks; None for the
      heads as they are, then as many in both.
  """
  relations = _pair(
    *(
      _relations(x_BHTK, keep_BT, num_relation_heads)
      for x_BHTK in (student_BHTK, teacher_BHTK)
    )
  )
  return _row_kl(*relations, keep_BT)


def over_texts(value_B: Array, num_examples: int) -> Array:
  """Means over the texts of each example, from values a row.

  A `PairClassifier` has the first texts of all examples as its first rows and
  the second texts behind them; of other networks this changes nothing.
  """
  if value_B.shape[0] % num_examples:
    raise ValueError(
      f'{value_B.shape[0]} rows are no texts of {num_examples} examples'
    )
  return value_B.reshape(-1, num_examples).mean(axis=0)


def _projected(x_BTD, projection_DE):
  return jnp.einsum(
    'btd,de->bte', x_BTD, projection_DE, preferred_element_type=jnp.float32
  )


def _pair(student, teacher):
  """Both float32, of equal shape; the second without a gradient."""
  _check_shapes('attention', student, teacher)
  return (
    student.astype(jnp.float32),
    jax.lax.stop_gradient(teacher).astype(jnp.float32),
  )


def _seen(scores_BHTT):
  return scores_BHTT > softmax.FLOOR


def _relations(x_BHTK, keep_BT, number):
  batch_size, num_heads, length, width = x_BHTK.shape
  if number is not None:
    if num_heads * width % number:
      raise ValueError(
        f'{number} relation heads do not divide the {num_heads} heads of '
        f'width {width}'
      )
    x_BTHK = jnp.swapaxes(x_BHTK, 1, 2)
    width = num_heads * width // number
    x_BTHK = x_BTHK.reshape(batch_size, length, number, width)
    x_BHTK = jnp.swapaxes(x_BTHK, 1, 2)
  scores_BHTT = jnp.einsum(
    'bhtk,bhsk->bhts', x_BHTK, x_BHTK, preferred_element_type=jnp.float32
  ) / math.sqrt(width)
  return jnp.where(keep_BT[:, None, None, :], scores_BHTT, softmax.MASKED)


def _row_kl(student_BHTT, teacher_BHTT, keep_BT):
  log_s, log_t = (jax.nn.log_softmax(x) for x in (student_BHTT, teacher_BHTT))
  value_BHT = (jnp.exp(log_t) * (log_t - log_s)).sum(axis=-1)
  return _over_tokens(value_BHT.mean(axis=1), keep_BT)


def _over_pairs(student_BHTT, teacher_BHTT, keep_BT):
  square_BTT = jnp.square(student_BHTT - teacher_BHTT).mean(axis=1)
  keep_BTT = keep_BT[:, :, None] & keep_BT[:, None, :]
  total_B = jnp.where(keep_BTT, square_BTT, 0.0).sum(axis=(1, 2))
  return total_B / jnp.maximum(keep_BTT.sum(axis=(1, 2)), 1)


def _over_tokens(value_BT, keep_BT):
  _check_shapes('tokens', keep_BT, value_BT)
  total_B = jnp.where(keep_BT, value_BT, 0.0).sum(axis=1)
  return total_B / jnp.maximum(keep_BT.sum(axis=1), 1)


def _check_shapes(what, student, teacher):
  if student.shape != teacher.shape:
    raise ValueError(
      f'{what} of shape {student.shape} and {teacher.shape} cannot be compared'
    )
