"""A task with a teacher: its loss part by part, and what cannot be taught."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress.distill import hidden, losses, maps, teaching
from effformer.compress.distill.capture import capture
from effformer.compress.distill.teaching import Lesson, taught
from effformer.errors import ConfigError
from effformer.models import build
from effformer.tasks import classification
from effformer.tasks.task import stacked
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
  settings = {'temperature': 2.0} if name == 'soft' else {}
  made = taught(task, teacher, other, Lesson(**weights, **settings), LAYERS)
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
  ('keep', 'settings', 'keeps'),
  [
    ('top', {'top_k': 1}, lambda z, t, y: losses.in_top(z, y, 1)),
    (
      'range',
      {'low': 0.4, 'high': 0.6},
      lambda z, t, y: losses.in_range(z, y, 0.4, 0.6),
    ),
    ('disagree', {}, lambda z, t, y: losses.disagree(z, t)),
  ],
)
def test_labels_of_the_teacher_are_filtered(case, keep, settings, keeps):
  task, teacher, own, other = case
  lesson = Lesson(hard=1, soft=0, labels='teacher', keep=keep, **settings)
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
  assert teaching.FILTERS == ('all', 'top', 'range', 'disagree')


@pytest.fixture(scope='module')
def texts():
  """Student, teacher and batch of pairs, of vectors."""
  student, teacher = (
    build.text_embedder(
      tiny_config('full', model__num_layers=number), 257, causal=False
    )
    for number in (2, 3)
  )

  def objective(params, batch, key, step):
    del key, step
    e_ND = student.apply({'params': params}, **stacked(batch))
    return jnp.abs(e_ND).mean(), {'own': jnp.float32(3)}

  task = dataclasses.replace(
    task_of(network(2)),
    name='similarity',
    model=student,
    objective=objective,
    inputs=classification.TWO_TEXTS,
    stacks_texts=True,
  )
  b = batch()
  pairs = {
    **b, 'other_ids_BT': b['ids_BT'][::-1], 'other_lengths_B':
    b['lengths_B'][::-1],
  }  # fmt: skip
  arguments = stacked(pairs)
  own = student.init(jax.random.key(0), **arguments)['params']
  other = teacher.init(jax.random.key(1), **arguments)['params']
  return task, teacher, own, other, pairs


def test_vectors_of_texts_are_taught(texts):
  task, teacher, own, other, pairs = texts
  lesson = Lesson(soft=0, vectors=2, states=0.5, hard=0.25)
  made = taught(task, teacher, other, lesson, LAYERS)
  key = jax.random.key(3)
  loss, values = made.objective(own, pairs, key, 0, other)
  arguments = stacked(pairs)
  s = capture(
    task.model, own, **arguments, what=('states',), deterministic=False,
    step=0, rngs={'dropout': key},
  )  # fmt: skip
  t = capture(teacher, other, **arguments, what=('states',))
  a_ND, b_ND = (np.asarray(x.output, np.float64) for x in (s, t))
  assert a_ND.shape == (8, 12)
  cosine = (a_ND * b_ND).sum(axis=1)
  gap = a_ND @ a_ND.T - b_ND @ b_ND.T
  vectors = (1 - cosine).mean() + (gap**2).mean()
  states = np.mean([
    hidden.state_mse(s.states[i], t.states[j], s.keep_BT).mean()
    for i, j in LAYERS.states
  ])  # fmt: skip
  hard = task.objective(own, pairs, key, 0)[0]
  np.testing.assert_allclose(values['loss_vectors'], vectors, rtol=1e-4)
  np.testing.assert_allclose(
    loss, 2 * vectors + 0.5 * states + 0.25 * hard, rtol=1e-4
  )
  assert values['own'] == 3
  assert 'accuracy' not in values
  # Whoever is the teacher has nothing to learn.
  same = maps.layer_map((0, 1), 2, 2)
  plain = dataclasses.replace(task.model, dropout=0.0)
  still = dataclasses.replace(task, model=plain)
  made = taught(still, plain, own, Lesson(soft=0, vectors=1), same)
  loss, _ = made.objective(own, pairs, key, 0, own)
  np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_vectors_and_classes_are_not_taught_alike(case, texts):
  task, teacher, _, other = case
  with pytest.raises(ConfigError, match='has classes'):
    taught(task, teacher, other, Lesson(vectors=1), LAYERS)
  task, teacher, _, other, _ = texts
  for name, value in (
    ('soft', 1.0), ('logits', 1.0), ('labels', 'teacher'), ('keep', 'top'),
  ):  # fmt: skip
    lesson = Lesson(**{'hard': 1.0, 'soft': 0.0, 'vectors': 1.0, name: value})
    with pytest.raises(ConfigError, match=f'lesson with {name}='):
      taught(task, teacher, other, lesson, LAYERS)
  narrow = dataclasses.replace(teacher, width=15)
  with pytest.raises(ConfigError, match='width 12 and 15'):
    taught(task, narrow, other, Lesson(soft=0, vectors=1), LAYERS)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'reversible': True}, 'got reversible=True'),
    ({'extra_tokens': 2}, 'extra_tokens=2'),
  ],
)
@pytest.mark.parametrize('whose', ['student', 'teacher'])
@pytest.mark.parametrize('part', ['states', 'mixers', 'attention'])
def test_what_cannot_be_looked_at(part, whose, changes, words):
  models = {'student': network(2), 'teacher': network(3)}
  models[whose] = dataclasses.replace(models[whose], **changes)
  task = task_of(models['student'])
  with pytest.raises(ConfigError, match=words):
    taught(task, models['teacher'], {}, Lesson(**{part: 1.0}), LAYERS)
  # Outputs alone are of any network.
  taught(task, models['teacher'], {}, Lesson(logits=1.0), LAYERS)


def with_layer(model, index, **facts):
  """The network with another layer of that number."""
  layers = list(model.layers)
  own = layers[index]
  settings = facts.pop('settings', {})
  settings = tuple(sorted({**dict(own.settings), **settings}.items()))
  layers[index] = dataclasses.replace(own, settings=settings, **facts)
  return dataclasses.replace(model, layers=tuple(layers))


@pytest.mark.parametrize(
  ('whose', 'index', 'facts', 'words'),
  [
    # Layers that are compared with nothing have no scores either.
    ('teacher', 0, {'mixer': 'linear'}, 'layer 0 of the teacher is linear'),
    ('student', 1, {'mixer': 'gla'}, 'layer 1 of the student is gla'),
    (
      'student', 1, {'settings': {'num_heads': 2}},
      'layer 1 has 2 heads, and layer 2 of the teacher 3',
    ),
    (
      'teacher', 1, {'settings': {'num_heads': 4}},
      'layer 0 has 3 heads, and layer 1 of the teacher 4',
    ),
  ],
)  # fmt: skip
def test_attention_needs_scores_of_as_many_heads(whose, index, facts, words):
  models = {'student': network(2), 'teacher': network(3)}
  models[whose] = with_layer(models[whose], index, **facts)
  task = task_of(models['student'])
  with pytest.raises(ConfigError, match=words):
    taught(task, models['teacher'], {}, Lesson(attention=1.0), LAYERS)
  taught(task, models['teacher'], {}, Lesson(mixers=1.0), LAYERS)
