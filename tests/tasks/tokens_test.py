"""Guessing tokens: what is scored, what is hidden, and what it is worth."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effformer import data, tasks
from effformer.data.dataset import MemorySource, Windows
from effformer.tasks import floors, tokens
from effformer.train import state, step
from tests.train.tiny_run import tiny_config, tiny_dataset

Y, T = 6, 5
IDS_BT = np.array([[1, 2, 3, 4, 5], [3, 1, 2, 0, 0]])
BATCH = {
  'ids_BT': IDS_BT,
  'lengths_B': np.array([5, 3]),
  'label_B': np.zeros(2, np.int32),
  'weight_B': np.ones(2, np.float32),
  'index_B': np.array([3, 2]),
}
TABLE_YY = np.random.default_rng(0).normal(size=(Y + 1, Y)).astype(np.float32)
LOG_P = np.asarray(jax.nn.log_softmax(TABLE_YY))


class Table(nn.Module):
  """Logits by the token that stands there, of a hidden one by row Y."""

  has_front: bool = False

  @nn.compact
  def __call__(
    self, ids_BT, lengths_B, hidden_BT=None, *, deterministic=True, step=None
  ):
    table_YY = self.param('table', nn.initializers.normal(), (Y + 1, Y))
    if hidden_BT is not None:
      ids_BT = jnp.where(hidden_BT, Y, ids_BT)
    if self.has_front:
      ids_BT = jnp.pad(ids_BT, ((0, 0), (1, 0)), constant_values=Y)
    return table_YY[ids_BT]


def make(objective, has_front=False, inputs=('ids_BT', 'lengths_B'), share=0.5):
  return tokens.make(
    'name',
    'dataset',
    bytes.split,
    Table(has_front),
    T,
    objective,
    inputs,
    share,
  )


PARAMS = {'table': TABLE_YY}


def of_pairs(pairs):
  """Mean loss and accuracy of guessing the second of each from the first."""
  loss = -np.mean([LOG_P[a, b] for a, b in pairs])
  return loss, np.mean([LOG_P[a].argmax() == b for a, b in pairs])


ROWS = [[(1, 2), (2, 3), (3, 4), (4, 5)], [(3, 1), (1, 2)]]
FIRST = [[(Y, 1)], [(Y, 3)]]


@pytest.mark.parametrize('has_front', [False, True])
def test_causal_guesses_each_token_from_the_one_before(has_front):
  task = make('causal', has_front)
  rows = [f * has_front + r for f, r in zip(FIRST, ROWS, strict=True)]
  measured = task.measure(PARAMS, BATCH)
  for b, row in enumerate(rows):
    loss, accuracy = of_pairs(row)
    assert measured['tokens'][b] == len(row)
    np.testing.assert_allclose(measured['loss'][b], loss, rtol=1e-5)
    np.testing.assert_allclose(measured['bits'][b], loss / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(measured['accuracy'][b], accuracy, rtol=1e-6)
  # Of a batch the mean over tokens, not over rows.
  loss, values = task.objective(PARAMS, BATCH, jax.random.key(0), 0)
  expected, accuracy = of_pairs([*rows[0], *rows[1]])
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(values['bits'], expected / np.log(2), rtol=1e-5)
  np.testing.assert_allclose(values['accuracy'], accuracy, rtol=1e-6)


@pytest.mark.parametrize('has_front', [False, True])
def test_masked_guesses_the_hidden_tokens_and_no_others(has_front):
  measured = make('masked', has_front).measure(PARAMS, BATCH)
  hidden = []
  for b, index in enumerate(BATCH['index_B']):
    key = jax.random.fold_in(jax.random.key(0), index)
    hidden.append(jax.random.uniform(key, (T,)) < 0.5)
    pairs = [
      (Y, i) for i, h in zip(IDS_BT[b], hidden[b], strict=True) if i and h
    ]
    assert measured['tokens'][b] == len(pairs) > 0
    loss, accuracy = of_pairs(pairs)
    np.testing.assert_allclose(measured['loss'][b], loss, rtol=1e-5)
    np.testing.assert_allclose(measured['accuracy'][b], accuracy, rtol=1e-6)
  # Padding would be hidden, too, and one real token is not.
  assert np.any(np.array(hidden) & (IDS_BT == 0))
  assert np.any(~np.array(hidden) & (IDS_BT > 0))


def test_an_evaluation_hides_the_same_tokens_wherever_a_row_stands():
  task = make('masked')
  first = task.measure(PARAMS, BATCH)
  again = task.measure(
    PARAMS, {name: value[::-1] for name, value in BATCH.items()}
  )
  for name, value_B in first.items():
    np.testing.assert_array_equal(value_B, again[name][::-1])


def test_the_share_that_is_hidden_is_the_one_asked_for():
  rows = 400
  batch = {
    'ids_BT': np.ones((rows, T), np.int32),
    'lengths_B': np.full(rows, T),
    'index_B': np.arange(rows),
  }
  for share in (0.15, 0.5):
    hidden = make('masked', share=share).measure(PARAMS, batch)['tokens'].sum()
    # Four standard deviations.
    spread = 4 * np.sqrt(share * (1 - share) / (rows * T))
    assert abs(hidden / (rows * T) - share) < spread


def test_training_hides_other_tokens_at_each_step():
  task = make('masked')
  losses = {
    float(task.objective(PARAMS, BATCH, jax.random.key(step), step)[0])
    for step in range(6)
  }
  assert len(losses) > 3


def test_both_texts_of_a_pair_are_guessed():
  inputs = ('ids_BT', 'lengths_B', 'other_ids_BT', 'other_lengths_B')
  batch = {
    **BATCH,
    'other_ids_BT': IDS_BT[::-1],
    'other_lengths_B': np.array([3, 5]),
  }
  measured = make('causal', inputs=inputs).measure(PARAMS, batch)
  loss, _ = of_pairs([*ROWS[0], *ROWS[1]])
  np.testing.assert_array_equal(measured['tokens'], [6, 6])
  np.testing.assert_allclose(measured['loss'], [loss, loss], rtol=1e-5)


def test_pretraining_has_the_trunk_of_its_task():
  config = tiny_config(model__pooling='cls', model__position='learned')
  own = tasks.make(config, tiny_dataset())
  stage = tasks.pretraining(config, own)
  assert stage.dataset is own.dataset
  key = jax.random.key(0)
  shapes = [
    {
      jax.tree_util.keystr(path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        jax.eval_shape(task.init, key)
      )
    }
    for task in (own, stage)
  ]
  trunk = {k: v for k, v in shapes[0].items() if 'head' not in k}
  assert trunk.items() <= shapes[1].items()
  assert set(shapes[1]) - set(trunk) == {
    "['head_tokens']['bias']",
    "['head_tokens']['kernel']",
    "['mask']",
  }


def test_language_reads_texts_to_their_end():
  config = tiny_config(model__pooling='cls', data__max_length=4)
  texts = [b'good film', b'bad']
  source = MemorySource(
    [{'text': t, 'label': 0, 'id': str(i)} for i, t in enumerate(texts)]
  )
  dataset = dataclasses.replace(
    tiny_dataset(), splits=dict.fromkeys(data.SPLITS, source)
  )
  task = tokens.language(config, dataset)
  pieces = [e['text'] for e in data.read_all(task.dataset.splits['train'])]
  assert pieces == [b'good', b' fil', b'm', b'bad']
  assert task.decode(task.encode(b'film', 4)) == b'film'
  assert (task.select, task.is_lower_better) == ('bits', True)


def test_windows():
  source = MemorySource(
    [
      {'text': t, 'label': 1, 'id': t.decode()}
      for t in (b'abcdefg', b'', b'xyz')
    ]
  )
  windows = Windows(source, 3)
  assert [(e['text'], e['id']) for e in data.read_all(windows)] == [
    (b'abc', 'abcdefg+0'),
    (b'def', 'abcdefg+3'),
    (b'g', 'abcdefg+6'),
    (b'xyz', 'xyz+0'),
  ]
  for index in (4, -1):
    with pytest.raises(IndexError):
      windows[index]


def test_floors_of_the_next_byte():
  train, test = (
    MemorySource([{'text': t, 'label': 0, 'id': ''} for t in texts])
    for texts in ((b'abab', b'aac'), (b'abb',))
  )
  # a is the most frequent byte, comes first, and b comes after it; after b, a.
  assert floors.next_byte(train, test) == {
    'most_frequent_byte': 1 / 3,
    'bigram': 2 / 3,
  }


@pytest.mark.parametrize('objective', ['causal', 'masked'])
def test_parts_of_a_batch_give_the_same_update(objective):
  """Though rows, and so parts, have unequal numbers of guessed tokens."""
  task = make(objective)
  transform = optax.sgd(1.0)
  batch = {
    'ids_BT': np.tile(IDS_BT, (4, 1)),
    'lengths_B': np.array([5, 3, 2, 1, 5, 4, 3, 2]),
  }

  def uniform(key, shape):
    # The same for a row whatever the part that it is in.
    return jnp.where(jnp.arange(shape[1])[None] < 3, 0.0, 1.0) * jnp.ones(shape)

  results = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.random, 'uniform', uniform)
    for parts in (1, 2, 4):
      train_step = step.make_train_step(
        task.objective,
        transform,
        lambda _: 1.0,
        seed=0,
        accumulate_steps=parts,
      )
      params = {'table': jnp.asarray(TABLE_YY)}
      first = state.TrainState(
        params, transform.init(params), jnp.zeros((), int)
      )
      after, metrics = jax.jit(train_step)(first, batch)
      assert 'tokens' not in metrics
      results.append((after.params, metrics['loss'], metrics['bits']))
  for other in results[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      results[0],
      other,
    )


def test_nothing_hidden_is_no_update_and_no_nan():
  task = make('masked', share=1e-9)
  loss, values = task.objective(PARAMS, BATCH, jax.random.key(0), 0)
  assert loss == 0
  assert values['tokens'] == 0


def test_a_model_that_cannot_write_says_so_before_it_is_trained():
  for mechanism, words in (
    ('reformer', 'reformer has no stream'),
    ('linear', ''),
  ):
    config = tiny_config(mechanism, model__pooling='cls')
    notes = tokens.language(config, tiny_dataset()).dataset.notes
    assert len(notes) == bool(words)
    assert words in ''.join(notes)
