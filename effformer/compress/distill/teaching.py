"""A task with a teacher: the loss of a classifier that learns from another.

    L = hard L_label + soft L_KL(T) + logits L_MSE
        + states L_states + mixers L_mixers + attention L_attention

Each weight of 0 leaves its part out, and what only that part needs is not
computed. With all but `hard` at 0 this is the task itself: the control, the
same student without a teacher. The teacher's parameters are frozen arrays of
the task, so the one loop trains it like any other.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from effformer.compress.distill import hidden, losses
from effformer.compress.distill.capture import Captured, capture
from effformer.compress.distill.maps import LayerMap
from effformer.errors import ConfigError
from effformer.models.trunk import Trunk
from effformer.tasks.task import Task

# Which examples the label of the teacher or of the data counts on.
FILTERS = ('all', 'top', 'range', 'disagree')


@dataclasses.dataclass(frozen=True)
class Lesson:
  """Weights of the parts of the loss, and their settings.

  Attributes:
    hard: of -log p_s(y).
    soft: of KL(p_t || p_s) T^2.
    logits: of the mean squared difference of logits.
    states: of hidden states, the input of the first layer among them, a mean
      over those that `layers` pairs.
    mixers: of outputs of mixers, likewise.
    attention: of scores before the softmax, likewise.
    temperature: T.
    labels: whose y, 'data' or 'teacher'.
    keep: which examples `hard` is a mean over: 'all'; 'top', where y is among
      the student's `top_k` largest; 'range', where p_s(y) is in `low` to
      `high`; 'disagree', where student and teacher do.
    top_k, low, high: see `keep`.
  """

  hard: float = 0.0
  soft: float = 1.0
  logits: float = 0.0
  states: float = 0.0
  mixers: float = 0.0
  attention: float = 0.0
  temperature: float = 1.0
  labels: str = 'data'
  keep: str = 'all'
  top_k: int = 5
  low: float = 0.05
  high: float = 1.0

  def __post_init__(self):
    if self.labels not in ('data', 'teacher'):
      raise ConfigError(
        f"labels are of 'data' or 'teacher', not {self.labels!r}."
      )
    if self.keep not in FILTERS:
      raise ConfigError(
        f'no filter {self.keep!r}; there are {", ".join(FILTERS)}.'
      )
    weights = [getattr(self, name) for name in _WEIGHTS]
    if min(weights) < 0 or max(weights) <= 0:
      raise ConfigError(
        'a lesson needs weights of at least 0, one of them above: '
        f'{dict(zip(_WEIGHTS, weights, strict=True))}.'
      )

  @property
  def inside(self) -> tuple[str, ...]:
    """What of the networks is compared beside their output."""
    parts = {
      'states': self.states, 'mixers': self.mixers, 'scores': self.attention,
    }  # fmt: skip
    return tuple(name for name, weight in parts.items() if weight)


_WEIGHTS = ('hard', 'soft', 'logits', 'states', 'mixers', 'attention')


def taught(
  task: Task, teacher: Trunk, params: Any, lesson: Lesson, layers: LayerMap
) -> Task:
  """The task with the loss of a lesson; its measures stay.

  Args:
    task: classification, of the student.
    teacher: a network that takes the inputs of the task and has its classes.
    params: of the teacher.
    lesson: the loss.
    layers: which layers are compared.

  Raises:
    ConfigError: student and teacher cannot be compared in this way.
  """
  what = lesson.inside
  _check(task, teacher, what, layers)

  def objective(student_params, batch, key, step, teacher_params):
    inputs = {name: batch[name] for name in task.inputs}
    student = _seen(
      task.model,
      student_params,
      inputs,
      what,
      deterministic=False,
      step=step,
      rngs={'dropout': key},
    )
    taught_by = _seen(teacher, teacher_params, inputs, what)
    parts = {
      name: part.mean()
      for name, part in _parts(lesson, student, taught_by, layers).items()
    }
    z_BC, label_B = student.output, batch['label_B']
    values = {'accuracy': losses.mean(z_BC.argmax(axis=-1) == label_B)}
    if lesson.hard:
      own = _hard(lesson, z_BC, taught_by.output, label_B)
      parts['hard'], values['kept'] = own.loss, own.fraction
    loss = sum(getattr(lesson, name) * part for name, part in parts.items())
    return loss, {**values, **{f'loss_{name}': x for name, x in parts.items()}}

  return dataclasses.replace(
    task, objective=objective, frozen=(*task.frozen, params)
  )


def _seen(module, params, inputs, what, **keywords) -> Captured:
  if what:
    return capture(module, params, **inputs, what=what, **keywords)
  # Scanned, where layers are alike.
  output = module.apply({'params': params}, **inputs, **keywords)
  return Captured(output, None, (), {}, {}, {}, {}, {})


def _parts(lesson, student, teacher, layers):
  """Losses of each example, or of each row where texts are two."""
  found = {}
  z_BC, t_BC = student.output, jax.lax.stop_gradient(teacher.output)
  if lesson.soft:
    found['soft'] = losses.kl(z_BC, t_BC, lesson.temperature)
  if lesson.logits:
    found['logits'] = losses.logit_mse(z_BC, t_BC)
  if lesson.states:
    found['states'] = _over_layers(
      hidden.state_mse, student.states, teacher.states, layers.states, student
    )
  if lesson.mixers:
    found['mixers'] = _over_layers(
      hidden.state_mse, student.mixers, teacher.mixers, layers.pairs, student
    )
  if lesson.attention:
    found['attention'] = _over_layers(
      hidden.attention_mse, student.scores, teacher.scores, layers.pairs,
      student,
    )  # fmt: skip
  return found


def _over_layers(compare, student, teacher, pairs, seen):
  each = [
    compare(student[own], teacher[other], seen.keep_BT) for own, other in pairs
  ]
  return sum(each) / len(each)


def _hard(lesson, z_BC, t_BC, label_B):
  y_B = losses.labels(t_BC) if lesson.labels == 'teacher' else label_B
  keep_B = {
    'all': lambda: jnp.ones(y_B.shape, bool),
    'top': lambda: losses.in_top(z_BC, y_B, lesson.top_k),
    'range': lambda: losses.in_range(z_BC, y_B, lesson.low, lesson.high),
    'disagree': lambda: losses.disagree(z_BC, t_BC),
  }[lesson.keep]()
  return losses.filtered(losses.log_likelihood(z_BC, y_B), keep_B)


def _check(task, teacher, what, layers):
  classes = task.model.num_classes, teacher.num_classes
  if classes[0] != classes[1]:
    raise ConfigError(
      f'the student has {classes[0]} classes and the teacher {classes[1]}: '
      'train a teacher on this task.'
    )
  if task.model.vocabulary_size != teacher.vocabulary_size:
    raise ConfigError(
      f'the student reads {task.model.vocabulary_size} ids and the teacher '
      f'{teacher.vocabulary_size}: both need one tokenizer.'
    )
  numbers = len(task.model.layers), layers.num_teacher
  expected = len(layers.layers), len(teacher.layers)
  if numbers != expected:
    raise ConfigError(
      f'the layer map is of {expected[0]} and {layers.num_teacher} layers; '
      f'the student has {numbers[0]}, the teacher {expected[1]}.'
    )
  if {'states', 'mixers'} & {*what} and task.model.width != teacher.width:
    raise ConfigError(
      f'states of width {task.model.width} and {teacher.width} cannot be '
      'compared: leave them out of the lesson.'
    )
