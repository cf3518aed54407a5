"""A task with a teacher: its loss part by part, and what cannot be taught."""

import dataclasses

import jax
import numpy as np
import pytest

from effformer.compress.distill import hidden, losses, maps, teaching
from effformer.compress.distill.capture import capture
from effformer.compress.distill.teaching import Lesson, taught
from effformer.errors import ConfigError
from effformer.models import build
from effformer.tasks import classification
from tests.train.tiny_run import LENGTH, tiny_config, tiny_dataset

# Many models are compiled.
pytestmark = pytest.mark.slow

LAYERS = maps.layer_map((1, 2), 2, 3)


def network(num_layers, num_classes=2, **keys):
  config = tiny_config('full', model__num_layers=num_layers, **keys)
  return build.sequence_classifier(config, 257, num_classes)


def task_of(model):
  return classification.make(
    'text', tiny_dataset(), lambda text, n: np.ones(1, 'i4'), model, LENGTH,
    dict,
  )  # fmt: skip


def batch():
  rng = np.random.default_rng(0)
  lengths_B = np.array([5, 16, 3, 9], 'i4')
  ids_BT = rng.integers(1, 257, (4, LENGTH)).astype('i4')
  ids_BT = np.where(np.arange(LENGTH) < lengths_B[:, None], ids_BT, 0)
  return {
    'ids_BT': ids_BT,
    'lengths_B': lengths_B,
    'label_B': np.array([0, 1, 1, 0], 'i4'),
  }


@pytest.fixture(scope='module')
def case():
  student, teacher = network(2), network(3)
  task = task_of(student)
  own = task.init(jax.random.key(0))
  other = task_of(teacher).init(jax.random.key(1))
  return task, teacher, own, other


def seen(module, params, what, **keywords):
  b = batch()
  return capture(
    module, params, b['ids_BT'], b['lengths_B'], what=what, **keywords
  )


def student_of(case, what, key):
  task, _, own, _ = case
  return seen(
    task.model, own, what, deterministic=False, step=0, rngs={'dropout': key}
  )


def expected(case, name, key):
  """The part of that name alone, of outputs with the same dropout."""
  _, teacher, _, other = case
  what = ('states', 'mixers', 'scores')
  s, t = student_of(case, what, key), seen(teacher, other, what)
  label_B = batch()['label_B']
  pairs = {
    'states': [(0, 0), (1, 2), (2, 3)], 'mixers': [(0, 1), (1, 2)],
    'attention': [(0, 1), (1, 2)],
  }  # fmt: skip
  if name == 'hard':
    return losses.log_likelihood(s.output, label_B).mean()
  if name == 'soft':
    return losses.kl(s.output, t.output, 2.0).mean()
  if name == 'logits':
    return losses.logit_mse(s.output, t.output).mean()
  parts, compare = {
    'states': ((s.states, t.states), hidden.state_mse),
    'mixers': ((s.mixers, t.mixers), hidden.state_mse),
    'attention': ((s.scores, t.scores), hidden.attention_mse),
  }[name]
  each = [
    compare(parts[0][a], parts[1][b], s.keep_BT).mean() for a, b in pairs[name]
  ]
  return np.mean(each)


PARTS = ('hard', 'soft', 'logits', 'states', 'mixers', 'attention')


@pytest.mark.parametrize('name', PARTS)
def test_a_part_is_the_loss_of_its_name(case, name):
  task, teacher, own, other = case
  weights = {**dict.fromkeys(PARTS, 0.0), name: 3.0}
  made = taught(task, teacher, other, Lesson(**weights, temperature=2), LAYERS)
  assert made.frozen == (other,)
  key = jax.random.key(5)
  loss, values = made.objective(own, batch(), key, 0, *made.frozen)
  part = expected(case, name, key)
  assert part > 1e-4
  np.testing.assert_allclose(loss, 3 * part, rtol=1e-5)
  np.testing.assert_allclose(values[f'loss_{name}'], part, rtol=1e-5)
  assert ('kept' in values) == (name == 'hard')


def test_the_parts_are_added_and_the_teacher_gets_no_gradient(case):
  task, teacher, own, other = case
  lesson = Lesson(hard=0.3, soft=0.7, states=0.5, temperature=2)
  made = taught(task, teacher, other, lesson, LAYERS)
  key = jax.random.key(6)
  loss, values = made.objective(own, batch(), key, 0, other)
  parts = [expected(case, name, key) for name in ('hard', 'soft', 'states')]
  np.testing.assert_allclose(loss, np.dot([0.3, 0.7, 0.5], parts), rtol=1e-5)
  assert 0 <= values['accuracy'] <= 1
  gradients = jax.grad(
    lambda a, b: made.objective(a, batch(), key, 0, b)[0], argnums=(0, 1)
  )(own, other)
  largest = [
    max(np.abs(x).max() for x in jax.tree.leaves(g)) for g in gradients
  ]
  assert largest[0] > 0
  assert largest[1] == 0


def test_without_a_teacher_it_is_the_task_itself(case):
  task, teacher, own, other = case
  control = taught(task, teacher, other, Lesson(hard=1, soft=0), LAYERS)
  key = jax.random.key(7)
  loss, values = control.objective(own, batch(), key, 0, other)
  plain, plain_values = task.objective(own, batch(), key, 0)
  np.testing.assert_allclose(loss, plain, rtol=1e-6)
  assert values['accuracy'] == plain_values['accuracy']
  assert values['kept'] == 1
  assert control.measure is task.measure


@pytest.mark.parametrize(
  ('keep', 'keeps'),
  [
    ('top', lambda z, t, y: losses.in_top(z, y, 1)),
    ('range', lambda z, t, y: losses.in_range(z, y, 0.4, 0.6)),
    ('disagree', lambda z, t, y: losses.disagree(z, t)),
  ],
)
def test_labels_of_the_teacher_are_filtered(case, keep, keeps):
  task, teacher, own, other = case
  lesson = Lesson(
    hard=1, soft=0, labels='teacher', keep=keep, top_k=1, low=0.4, high=0.6
  )
  made = taught(task, teacher, other, lesson, LAYERS)
  key = jax.random.key(8)
  loss, values = made.objective(own, batch(), key, 0, other)
  z = student_of(case, (), key).output
  t = seen(teacher, other, ()).output
  y = np.argmax(t, axis=-1)
  kept = np.asarray(keeps(z, t, y))
  each = np.asarray(losses.log_likelihood(z, y))
  expected_loss = each[kept].mean() if kept.any() else 0
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(values['kept'], kept.mean())


def test_what_cannot_be_taught(case):
  task, _, _, other = case
  for teacher, lesson, layers, words in (
    (
      network(3, num_classes=3),
      Lesson(),
      LAYERS,
      '2 classes and the teacher 3',
    ),
    (network(4), Lesson(), LAYERS, 'the student has 2, the teacher 4'),
    (
      network(3, model__width=15),
      Lesson(states=1),
      LAYERS,
      'states of width 12 and 15',
    ),
    (
      dataclasses.replace(network(3), vocabulary_size=9),
      Lesson(),
      LAYERS,
      '257 ids and the teacher 9',
    ),
  ):
    with pytest.raises(ConfigError, match=words):
      taught(task, teacher, other, lesson, layers)
  for wrong, words in (
    ({'soft': 0}, 'one of them above'),
    ({'soft': -1, 'hard': 1}, 'at least 0'),
    ({'keep': 'some'}, "no filter 'some'"),
    ({'labels': 'mine'}, "'data' or 'teacher'"),
  ):
    with pytest.raises(ConfigError, match=words):
      Lesson(**wrong)
  assert teaching.FILTERS == ('all', 'top', 'range', 'disagree')
