"""A task with a teacher: the loss of a model that learns from another.

    L = hard L_label + soft L_KL(T) + logits L_MSE + vectors L_vectors
        + states L_states + mixers L_mixers + attention L_attention

`soft` and `logits` are of classes, `vectors` of unit vectors e of texts, which
an embedder makes: 1 - cos(e_s, e_t), plus the mean squared difference of
E_s E_s^T and E_t E_t^T over the texts of a batch.

Each weight of 0 leaves its part out, and what only that part needs is not
computed. With all but `hard` at 0 this is the task itself: the control, the
same student without a teacher. The teacher's parameters are frozen arrays of
the task, so the one loop trains it like any other.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from effformer.compress import inside
from effformer.compress.distill import hidden, losses
from effformer.compress.distill.capture import WITH_SCORES, Captured, capture
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
    hard: of -log p_s(y); without classes, of the loss of the task.
    soft: of KL(p_t || p_s) T^2.
    logits: of the mean squared difference of logits.
    vectors: of vectors of texts, see the module.
    states: of hidden states, the input of the first layer among them, a mean
      over those that `layers` pairs.
    mixers: of outputs of mixers, likewise.
    attention: of scores before the softmax, likewise.
    temperature: T, of `soft`.
    labels: whose y, 'data' or 'teacher', is that of `hard`; for classes.
    keep: which examples `hard` is a mean over: 'all'; 'top', where y is among
      the student's `top_k` largest; 'range', where p_s(y) is in `low` to
      `high`; 'disagree', where student and teacher do. For classes.
    top_k: of keep='top'.
    low, high: of keep='range'.

  Raises:
    ConfigError: a value that it cannot have, or one that nothing reads: a
      setting of a part whose weight is 0, or of another `keep`.
  """

  hard: float = 0.0
  soft: float = 1.0
  logits: float = 0.0
  vectors: float = 0.0
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
    weights = {name: getattr(self, name) for name in _WEIGHTS}
    are_weights = all(0 <= x < math.inf for x in weights.values())
    if not (are_weights and any(weights.values())):
      raise ConfigError(
        f'a lesson needs weights of at least 0, one of them above: {weights}.'
      )
    self._check_values()
    self._check_read()

  def _check_values(self):
    if not 0 < self.temperature < math.inf:
      raise ConfigError(
        f'temperature={self.temperature} of a lesson has to be above 0.'
      )
    if self.top_k < 1:
      raise ConfigError(f'top_k={self.top_k} of a lesson has to be at least 1.')
    if not 0 <= self.low <= self.high <= 1:
      raise ConfigError(
        f'low={self.low} and high={self.high} of a lesson are probabilities, '
        'the first not above the second.'
      )

  def _check_read(self):
    for reader, is_read, names in (
      ('soft above 0', self.soft, ('temperature',)),
      ('hard above 0', self.hard, ('labels', 'keep')),
      ("keep='top'", self.keep == 'top', ('top_k',)),
      ("keep='range'", self.keep == 'range', ('low', 'high')),
    ):
      for name in names:
        value, neutral = getattr(self, name), getattr(type(self), name)
        if not is_read and value != neutral:
          raise ConfigError(
            f'{name}={value!r} of a lesson is read with {reader} only.\n'
            f'Give that too, or leave {name} out.'
          )

  @property
  def inside(self) -> tuple[str, ...]:
    """What of the networks is compared beside their output."""
    parts = {
      'states': self.states, 'mixers': self.mixers, 'scores': self.attention,
    }  # fmt: skip
    return tuple(name for name, weight in parts.items() if weight)


_WEIGHTS = (
  *('hard', 'soft', 'logits', 'vectors', 'states', 'mixers', 'attention'),
)


def taught(
  task: Task, teacher: Trunk, params: Any, lesson: Lesson, layers: LayerMap
) -> Task:
  """The task with the loss of a lesson; its measures stay.

  Args:
    task: of the student, classes or vectors of texts.
    teacher: a network that takes the inputs of the task and has its classes.
    params: of the teacher.
    lesson: the loss.
    layers: which layers are compared.

  Raises:
    ConfigError: student and teacher cannot be compared in this way.
  """
  what, has_classes = lesson.inside, not task.stacks_texts
  _check(task, teacher, lesson, layers)

  def objective(student_params, batch, key, step, teacher_params):
    inputs = task.arguments(batch)
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
    values = {}
    if has_classes:
      y_BC, label_B = student.output, batch['label_B']
      values['accuracy'] = losses.mean(y_BC.argmax(axis=-1) == label_B)
    if lesson.hard and has_classes:
      own = _hard(lesson, y_BC, taught_by.output, label_B)
      parts['hard'], values['kept'] = own.loss, own.fraction
    elif lesson.hard:
      parts['hard'], own = task.objective(student_params, batch, key, step)
      values |= own
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
  if lesson.vectors:
    own_BD, other_BD = student.output, teacher.output
    found['vectors'] = losses.cosine_distance(own_BD, other_BD)
    found['vectors'] += losses.similarity_mse(own_BD, other_BD)
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


def _check(task, teacher, lesson, layers):
  what = lesson.inside
  if task.stacks_texts:
    _check_vectors(task, lesson)
  else:
    _check_classes(task, teacher, lesson)
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
  has_widths = lesson.vectors or {'states', 'mixers'} & {*what}
  if has_widths and task.model.width != teacher.width:
    raise ConfigError(
      f'states of width {task.model.width} and {teacher.width} cannot be '
      'compared: leave them out of the lesson.'
    )
  check_inside(lesson, task.model, teacher, layers)


def check_inside(
  lesson: Lesson, student: Trunk, teacher: Trunk, layers: LayerMap
) -> None:
  """Refuses to compare what two networks compute inside, where it cannot be.

  Args:
    lesson: what is compared.
    student, teacher: the networks.
    layers: which layers are compared.

  Raises:
    ConfigError: one of them cannot be looked at, or has no scores; mixers of
      unequal width, or unequal numbers of heads.
  """
  if not lesson.inside:
    return
  for module in (student, teacher):
    inside.check(module)
  if lesson.mixers:
    _check_mixers(student, teacher, layers)
  if lesson.attention:
    _check_scores(student, teacher, layers)


def _check_scores(student, teacher, layers):
  for whose, module in (('student', student), ('teacher', teacher)):
    for index, layer in enumerate(module.layers):
      if layer.mixer not in WITH_SCORES:
        raise ConfigError(
          f'layer {index} of the {whose} is {layer.mixer}, which has no scores '
          f'of pairs of tokens, as {" and ".join(WITH_SCORES)} have.\n'
          'Use mixers in place of attention in the lesson.'
        )
  for own, other in layers.pairs:
    numbers = [
      dict(module.layers[index].settings)['num_heads']
      for module, index in ((student, own), (teacher, other))
    ]
    if numbers[0] != numbers[1]:
      raise ConfigError(
        f'layer {own} has {numbers[0]} heads, and layer {other} of the teacher '
        f'{numbers[1]}: leave attention out of the lesson.'
      )


def _check_mixers(student, teacher, layers):
  for own, other in layers.pairs:
    widths = [
      module.layers[index].bottleneck or module.width
      for module, index in ((student, own), (teacher, other))
    ]
    if widths[0] != widths[1]:
      raise ConfigError(
        f'what the mixer of layer {own} gives is {widths[0]} wide, and that of '
        f'layer {other} of the teacher {widths[1]}: leave mixers out of the '
        'lesson.'
      )


def _check_classes(task, teacher, lesson):
  if lesson.vectors:
    raise ConfigError(
      f'task={task.name!r} has classes, and a lesson with '
      f'vectors={lesson.vectors:g} is about vectors of texts.\n'
      'Use soft or logits in its place.'
    )
  classes = task.model.num_classes, teacher.num_classes
  if classes[0] != classes[1]:
    raise ConfigError(
      f'the student has {classes[0]} classes and the teacher {classes[1]}: '
      'train a teacher on this task.'
    )


def _check_vectors(task, lesson):
  neutral = Lesson()
  for name in ('soft', 'logits', 'labels', 'keep'):
    value = getattr(lesson, name)
    none = 0 if name in _WEIGHTS else getattr(neutral, name)
    if value != none:
      raise ConfigError(
        f'task={task.name!r} has vectors of texts and no classes, which a '
        f'lesson with {name}={value!r} is about.\n'
        f'Use vectors, and {name}={none!r}.'
      )
