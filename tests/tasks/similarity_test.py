"""How alike two sentences are: rows, loss and gradient by hand, floors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs import common
from effformer import config_check, data, errors, tasks
from effformer.data import similarity_stand_in as stand_in
from effformer.data.dataset import Dataset, MemorySource
from effformer.models import embedder
from effformer.tasks import similarity
from tests.subwords import SPECIAL
from tests.tasks.tiny_tasks import LENGTH, WORDS, subword_config

SCORES = (0, 5000, 2500, 4200, 1333)


@pytest.fixture
def config(tmp_path):
  return subword_config(tmp_path, 'similarity')


def dataset(pairs):
  examples = [
    {'text': a.encode(), 'other': b.encode(), 'label': s, 'id': str(number)}
    for number, (a, b, s) in enumerate(pairs)
  ]
  return Dataset(
    'tiny', False, 'a test', (), 1, (),
    {split: MemorySource(examples) for split in data.SPLITS},
    dict.fromkeys(data.SPLITS, 'none'),
  )  # fmt: skip


def random_pairs():
  rng = np.random.default_rng(0)
  return [
    (*(' '.join(rng.choice(WORDS, n)) for n in rng.integers(1, 6, 2)), score)
    for score in SCORES
  ]


@pytest.fixture
def task(config):
  return tasks.make(config, dataset(random_pairs()))


@pytest.fixture
def batch(task):
  return next(
    data.eval_batches(
      task.dataset.splits['test'], task.encode, batch_size=5,
      max_length=LENGTH, num_threads=0,
    )
  )  # fmt: skip


def by_hand(task, params, batch):
  """Unit vectors of both texts, one text at a time, float64."""

  def vector(ids_T, length):
    alone = jnp.asarray(ids_T[None, :length])
    pooled_D = task.model.apply({'params': params}, alone, jnp.array([length]))
    pooled_D = np.asarray(pooled_D[0], np.float64)
    return pooled_D / np.linalg.norm(pooled_D)

  return np.array(
    [
      [
        vector(batch['ids_BT'][row], batch['lengths_B'][row]),
        vector(batch['other_ids_BT'][row], batch['other_lengths_B'][row]),
      ]
      for row in range(len(SCORES))
    ]
  )


def test_both_texts_are_rows_of_one_batch(task, batch):
  assert isinstance(task.model, embedder.Embedder)
  assert task.num_texts == 2
  assert (task.predict, task.encode_pair) == (None, None)
  assert (task.score, task.select) == ('pearson', 'pearson')
  assert batch['label_B'].dtype == np.int32
  assert batch['label_B'].tolist() == list(SCORES)
  found = task.arguments(batch)
  assert set(found) == {'ids_BT', 'lengths_B'}
  assert found['ids_BT'].shape == (10, LENGTH)
  for name, x in found.items():
    np.testing.assert_array_equal(x[:5], batch[name])
    np.testing.assert_array_equal(x[5:], batch[f'other_{name}'])


def test_tasks_of_one_text_give_the_network_their_inputs(config):
  config.task = 'sentence'
  task = tasks.make(config, dataset(random_pairs()))
  batch = {name: number for number, name in enumerate((*task.inputs, 'other'))}
  assert task.arguments(batch) == {'ids_BT': 0, 'lengths_B': 1}
  assert task.embed is None


def test_loss_and_measures_by_hand(task, batch):
  params = task.init(jax.random.key(1))
  e_B2D = by_hand(task, params, batch)
  np.testing.assert_allclose(task.embed(params, batch), e_B2D, atol=1e-6)
  cosine_B = (e_B2D[:, 0] * e_B2D[:, 1]).sum(axis=-1)
  wanted_B = np.array(SCORES) / 1000 / 5
  loss_B = (cosine_B - wanted_B) ** 2
  measured = task.measure(params, batch)
  np.testing.assert_allclose(measured['loss'], loss_B, atol=1e-6)
  loss, values = task.objective(params, batch, jax.random.key(2), 0)
  assert loss == pytest.approx(loss_B.mean(), abs=1e-6)
  assert values == {}
  means = {k: float(np.asarray(v).mean()) for k, v in measured.items()}
  shown = task.summarise(means)
  assert set(shown) == {'loss', 'pearson'}
  expected = scipy.stats.pearsonr(cosine_B, wanted_B)[0]
  assert shown['pearson'] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_formula(task, batch):
  """dL/dtheta = mean_n 2 (cos_n - y_n) dcos_n/dtheta."""
  params = task.init(jax.random.key(1))

  def cosine(params):
    e_B2D = task.embed(params, batch)
    return (e_B2D[:, 0] * e_B2D[:, 1]).sum(axis=-1)

  found = jax.grad(task.objective, has_aux=True)(
    params, batch, jax.random.key(2), 0
  )[0]
  error_B = np.asarray(cosine(params)) - np.array(SCORES) / 5000
  of_each = jax.jacobian(cosine)(params)
  expected = jax.tree.map(
    lambda x: np.tensordot(2 * error_B / len(SCORES), x, axes=1), of_each
  )
  size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  assert size > 1e-3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * size),
    found, expected,
  )  # fmt: skip


def test_texts_may_change_places(task, batch):
  params = task.init(jax.random.key(1))
  turned = {
    **batch,
    **{
      name: batch[f'other_{name}'] for name in ('ids_BT', 'lengths_B')
    },
    **{
      f'other_{name}': batch[name] for name in ('ids_BT', 'lengths_B')
    },
  }  # fmt: skip
  np.testing.assert_allclose(
    task.measure(params, turned)['loss'], task.measure(params, batch)['loss'],
    atol=1e-6,
  )  # fmt: skip


def test_dropout_is_of_training_only(config, batch):
  config.model.dropout = 0.5
  task = tasks.make(config, dataset(random_pairs()))
  params = task.init(jax.random.key(1))
  first, again, other = (
    task.objective(params, batch, jax.random.key(key), 0)[0]
    for key in (2, 2, 3)
  )
  assert first == again
  assert first != other
  plain = task.measure(params, batch)['loss'].mean()
  assert abs(plain - first) > 1e-6


PAIRS = [
  # Sets {a, b, c}, {b, c, d}: two of four; lengths 5 and 5.
  ('a b c', 'b c d', 3000),
  # The same set, however often; lengths 6 and 4.
  ('a a b b', 'b a', 5000),
  # Nothing shared; lengths 3 and 5.
  ('a', 'e f g', 500),
  # Cut to seven words of which six are shared; lengths 9 and 8.
  ('a b c d e f g h', 'a b c d e f', 4000),
]


def test_floors_by_hand(config):
  config.data.max_length = LENGTH
  floors = tasks.make(config, dataset(PAIRS)).floors()
  labels = [score for _, _, score in PAIRS]
  expected = {'shared_subwords': [2 / 4, 1, 0, 6 / 7], 'lengths': [0, 2, 2, 1]}
  assert set(floors) == set(expected)
  sign = {'shared_subwords': 1, 'lengths': -1}
  for name, values in expected.items():
    r = sign[name] * scipy.stats.pearsonr(values, labels)[0]
    assert floors[name] == pytest.approx(r, abs=1e-12), name
  assert len(SPECIAL) == 4


def test_floors_of_texts_that_are_all_alike_are_zero(config):
  floors = tasks.make(config, dataset([('a', 'a', 5000)] * 3)).floors()
  assert floors == {'shared_subwords': 0, 'lengths': 0}


@pytest.mark.parametrize(
  ('cosine', 'score'), [(-0.3, 0), (0.0, 0), (0.83, 4.15), (1.0000001, 5)]
)
def test_scores_of_cosines(cosine, score):
  assert similarity.in_points(cosine) == pytest.approx(score)


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [
    ('model.pair_head', 'nli', "task='similarity'"),
    ('data.documents', 'x', "task='similarity'"),
    ('data.tokenizer', '', 'data.tokenizer is empty'),
  ],
)
def test_what_does_not_go_with_it_is_refused(config, key, value, words):
  config_check.check(config, common)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(errors.ConfigError, match=words):
    config_check.check(config, common)


def test_without_own_pairs_there_is_a_stand_in(config, tmp_path):
  config.data.directory = str(tmp_path)
  config.data.stand_in = False
  with pytest.raises(errors.DataError, match=r'data\.train, data\.validation'):
    tasks.make(config)
  config.data.stand_in = True
  dataset = tasks.make(config).dataset
  assert dataset.stand_in
  assert {k: len(v) for k, v in dataset.splits.items()} == stand_in.SIZES


def test_pairs_of_the_stand_in_are_alike_by_their_score():
  meaning = {
    word: (part, number)
    for part, meanings in enumerate(stand_in.PARTS)
    for number, words in enumerate(meanings)
    for word in words
  }

  def meanings(text):
    text = text.decode().removesuffix('.')
    text = text[0].lower() + text[1:]
    # The longest wordings first: some stand in others.
    found = set()
    for word in sorted(meaning, key=len, reverse=True):
      if word in text and meaning[word][0] not in {part for part, _ in found}:
        found.add(meaning[word])
        text = text.replace(word, '', 1)
    assert not text.strip()
    return found

  rows = [stand_in.pair(number) for number in range(200)]
  assert rows[7] == stand_in.pair(7)
  for row in rows:
    same = meanings(row['text']) & meanings(row['other'])
    assert row['label'] == 1250 * len(same)
  assert {row['label'] for row in rows} == {0, 1250, 2500, 3750, 5000}
  # Words alone tell something, and not all.
  texts = {row['text'] for row in rows} | {row['other'] for row in rows}
  assert len(texts) > 380
