"""Losses of outputs: logits, labels and vectors of texts.

With logits z_s of the student and z_t of the teacher, temperature T and
p = softmax(z / T) (Hinton et al. 2015, 1503.02531):

    soft cross-entropy   -T^2 sum_c p_t log p_s
    KL                   T^2 sum_c p_t (log p_t - log p_s)
    log-likelihood       -log softmax(z_s)[y]
    logit MSE            mean_c (z_s - z_t)^2

Every loss here has one value an example, [B], except `filtered`; `mean` makes
a number of them, in which rows of weight 0 count nothing. Arrays [B, C] may
have more axes before C: of logits of tokens [B, T, C] the values are [B, T].

Logits are finite. No gradient goes to the teacher, to temperatures or filters.
All sums are float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from effformer.shapes import Array

REDUCTIONS = ('sum', 'mean')
# Of a temperature by schedule, which may fall below 0 by its formula.
LEAST_TEMPERATURE = 0.1
# TextBrewer adds these to what it divides by.
_FLSW_EPSILON, _CWSM_EPSILON = 1e-4, 1e-3
# Squared length of a vector that counts as one of zeros.
_TINY = 1e-24


def mean(value_B: Array, weight_B: Array | None = None) -> Array:
  """sum_b w_b v_b / sum_b w_b; 0 where all weights are 0.

  Args:
    value_B: losses, of any shape.
    weight_B: of the same shape, at least 0, None for 1 everywhere. What has
      weight 0 may have any value.
  """
  if weight_B is None:
    weight_B = jnp.ones(value_B.shape)
  _check_shapes('weights', weight_B, value_B)
  weight_B = weight_B.astype(jnp.float32)
  # Not only weighed: 0 times NaN is NaN.
  total = jnp.where(weight_B > 0, value_B, 0.0) * weight_B
  return total.sum() / _or_one(weight_B.sum())


def soft_cross_entropy(
  student_BC: Array,
  teacher_BC: Array,
  temperature: float | Array = 1.0,
  *,
  reduction: str = 'sum',
) -> Array:
  """Soft cross-entropy of each example, [B].

  Args:
    student_BC, teacher_BC: logits.
    temperature: T, a number or one an example.
    reduction: over classes, 'sum' as above, or 'mean': the C-th part, as
      TinyBERT's code has it (and no T^2, which is 1 there).
  """
  log_s_BC, log_t_BC, square_B = _tempered(student_BC, teacher_BC, temperature)
  return _over_classes(-jnp.exp(log_t_BC) * log_s_BC, reduction) * square_B


def kl(
  student_BC: Array,
  teacher_BC: Array,
  temperature: float | Array = 1.0,
  *,
  reduction: str = 'sum',
) -> Array:
  """KL(p_t || p_s) T^2 of each example, [B]: 0 where both agree.

  It is `soft_cross_entropy` less the entropy of the teacher, and has the same
  gradient; arguments as there.
  """
  log_s_BC, log_t_BC, square_B = _tempered(student_BC, teacher_BC, temperature)
  part_BC = jnp.exp(log_t_BC) * (log_t_BC - log_s_BC)
  return _over_classes(part_BC, reduction) * square_B


def labels(teacher_BC: Array) -> Array:
  """The teacher's answers, int32 [B]: its largest logits, first of equals."""
  return jnp.argmax(teacher_BC, axis=-1).astype(jnp.int32)


def log_likelihood(student_BC: Array, label_B: Array) -> Array:
  """-log softmax(z_s)[y] of each example, [B].

  Args:
    student_BC: logits.
    label_B: integers, gold ones or `labels` of the teacher.
  """
  log_BC = jax.nn.log_softmax(student_BC.astype(jnp.float32))
  return -_at(log_BC, label_B)


def logit_mse(student_BC: Array, teacher_BC: Array) -> Array:
  """Mean over classes of the squared difference of logits, [B]."""
  _check_shapes('logits', student_BC, teacher_BC)
  teacher_BC = jax.lax.stop_gradient(teacher_BC)
  difference_BC = student_BC.astype(jnp.float32) - teacher_BC
  return jnp.square(difference_BC).mean(axis=-1)


def in_top(student_BC: Array, label_B: Array, k: int | Array) -> Array:
  """bool [B], whether fewer than k classes have a larger logit than y.

  Classes that are as likely as y do not count against it. `k` may be traced, to
  grow with the steps.
  """
  own_B1 = _at(student_BC, label_B)[..., None]
  return (student_BC > own_B1).sum(axis=-1) < k


def in_range(
  student_BC: Array, label_B: Array, low: float | Array, high: float | Array
) -> Array:
  """bool [B], whether low <= softmax(z_s)[y] <= high."""
  p_B = jnp.exp(-log_likelihood(student_BC, label_B))
  return (low <= p_B) & (p_B <= high)


def disagree(student_BC: Array, teacher_BC: Array) -> Array:
  """bool [B], whether the two have different answers; see `labels`."""
  return labels(student_BC) != labels(teacher_BC)


class Filtered(NamedTuple):
  """A mean over some examples.

  Attributes:
    loss: weighted mean of what was kept, 0 where that is nothing.
    fraction: weight of what was kept over all weight, from 0 to 1.
  """

  loss: Array
  fraction: Array


def filtered(
  value_B: Array, keep_B: Array, weight_B: Array | None = None
) -> Filtered:
  """The mean of the losses that are kept, and how many that are.

  Hard labels, filtered by the output of the student:

      keep_B = in_top(student_BC, label_B, 5)
      filtered(log_likelihood(student_BC, label_B), keep_B, weight_B)

  Args:
    value_B: losses.
    keep_B: bool.
    weight_B: as of `mean`.
  """
  _check_shapes('what to keep', keep_B, value_B)
  if weight_B is None:
    weight_B = jnp.ones(value_B.shape)
  keep_B = jax.lax.stop_gradient(keep_B)
  kept_B = jnp.where(keep_B, weight_B, 0.0)
  return Filtered(
    mean(value_B, kept_B), mean(keep_B.astype(jnp.float32), weight_B)
  )


def flsw(
  student_BC: Array,
  teacher_BC: Array,
  temperature: float,
  *,
  beta: float,
  gamma: float,
  weight_B: Array | None = None,
) -> Array:
  """Temperatures by the angle of the logits, [B], for the losses above.

      w = (1 - cos(z_s, z_t))^gamma      T = temperature + beta (mean(w) - w)

  An example on which the two are far apart gets a lower temperature than
  others. "Focal loss style weights" of Wen et al. 2019, 1911.07471, as in
  TextBrewer; here T is at least `LEAST_TEMPERATURE`, which both do not ask for.

  Args:
    student_BC, teacher_BC: logits.
    temperature: its mean over the batch.
    beta, gamma: see above.
    weight_B: of the mean, as of `mean`.
  """
  far_B = 1.0 - cosine(student_BC, teacher_BC, epsilon=_FLSW_EPSILON)
  # Rounding may go below 0, which has no power.
  w_B = jnp.maximum(far_B, 0.0) ** gamma
  return _around(temperature, beta, w_B, weight_B)


def cwsm(
  student_BC: Array,
  temperature: float,
  *,
  beta: float,
  weight_B: Array | None = None,
) -> Array:
  """Temperatures by the confidence of the student, [B].

      w = 1 / (max_c softmax(z_s) + 0.001)
      T = temperature + beta (mean(w) - w)

  "Confidence weighted by student max" of Wen et al. 2019, 1911.07471, as in
  TextBrewer; see `flsw` for the arguments and the least temperature.
  """
  p_BC = jax.nn.softmax(student_BC.astype(jnp.float32))
  w_B = 1.0 / (p_BC.max(axis=-1) + _CWSM_EPSILON)
  return _around(temperature, beta, w_B, weight_B)


def cosine(a_BD: Array, b_BD: Array, *, epsilon: float = 0.0) -> Array:
  """Cosine of vectors, [B], 0 for one of zeros.

  `epsilon` is added to both lengths.
  """
  _check_shapes('vectors', a_BD, b_BD)
  a_BD, b_BD = (x.astype(jnp.float32) for x in (a_BD, b_BD))
  square_BN = jnp.stack([jnp.square(x).sum(axis=-1) for x in (a_BD, b_BD)], -1)
  # The root has no gradient at 0, and nothing is divided by it there.
  is_zero_B = (square_BN < _TINY).any(axis=-1)
  length_BN = jnp.sqrt(jnp.where(is_zero_B[..., None], 1.0, square_BN))
  product_B = (a_BD * b_BD).sum(axis=-1) / (length_BN + epsilon).prod(axis=-1)
  return jnp.where(is_zero_B, 0.0, product_B)


def cosine_distance(student_BD: Array, teacher_BD: Array) -> Array:
  """1 - cos(e_s, e_t) of each example, [B]."""
  return 1.0 - cosine(student_BD, jax.lax.stop_gradient(teacher_BD))


def similarity_mse(
  student_BD: Array, teacher_BD: Array, weight_B: Array | None = None
) -> Array:
  """How far the similarities to all texts of the batch differ, [B].

      v_b = sum_c w_c (<e_s b, e_s c> - <e_t b, e_t c>)^2 / sum_c w_c

  so that `mean(v, w)` is the mean squared difference of the matrices E E^T.
  Student and teacher may differ in width. With vectors of length 1, those of
  an `Embedder`, similarities are cosines.

  Args:
    student_BD, teacher_BD: vectors.
    weight_B: as of `mean`.
  """
  if student_BD.shape[0] != teacher_BD.shape[0]:
    raise ValueError(
      f'vectors of {student_BD.shape[0]} and {teacher_BD.shape[0]} texts'
    )
  if weight_B is None:
    weight_B = jnp.ones(student_BD.shape[:1])
  teacher_BD = jax.lax.stop_gradient(teacher_BD)
  own_BB, other_BB = (
    jnp.einsum('bd,cd->bc', x, x, preferred_element_type=jnp.float32)
    for x in (student_BD, teacher_BD)
  )
  weight_1B = weight_B[None].astype(jnp.float32)
  square_BB = jnp.where(weight_1B > 0, jnp.square(own_BB - other_BB), 0.0)
  return (square_BB * weight_1B).sum(axis=1) / _or_one(weight_1B.sum())


def _tempered(student_BC, teacher_BC, temperature):
  _check_shapes('logits', student_BC, teacher_BC)
  temperature = jax.lax.stop_gradient(
    jnp.broadcast_to(
      jnp.asarray(temperature, jnp.float32), student_BC.shape[:-1]
    )
  )
  log_s_BC, log_t_BC = (
    jax.nn.log_softmax(z_BC.astype(jnp.float32) / temperature[..., None])
    for z_BC in (student_BC, jax.lax.stop_gradient(teacher_BC))
  )
  return log_s_BC, log_t_BC, jnp.square(temperature)


def _over_classes(part_BC, reduction):
  if reduction not in REDUCTIONS:
    raise ValueError(
      f'reduction must be one of {", ".join(REDUCTIONS)}; got {reduction!r}'
    )
  is_sum = reduction == 'sum'
  return part_BC.sum(axis=-1) if is_sum else part_BC.mean(axis=-1)


def _around(temperature, beta, w_B, weight_B):
  t_B = temperature + beta * (mean(w_B, weight_B) - w_B)
  return jax.lax.stop_gradient(jnp.maximum(t_B, LEAST_TEMPERATURE))


def _at(x_BC, label_B):
  return jnp.take_along_axis(x_BC, label_B[..., None], axis=-1)[..., 0]


def _or_one(total):
  return jnp.where(total > 0, total, 1.0)


def _check_shapes(what, a, b):
  if a.shape != b.shape:
    raise ValueError(f'{what} of shape {a.shape}, where it must be {b.shape}')
