"""--mode=generate: what is written is what the model says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import errors, tasks
from effformer.models import build
from effformer.train import generation, prediction, preemption
from tests.train.tiny_run import quiet_screen, tiny_config, train

Sampling = generation.Sampling
TEXT = 'the film was good and the other film was bad, ' * 60


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Config and folder of a language model of a text that is gone."""
  place = tmp_path_factory.mktemp('language')
  path = place / 'text.txt'
  path.write_text(TEXT)
  keys = {
    f'data__{split}': str(path) for split in ('train', 'validation', 'test')
  }
  config = tiny_config(
    'linear',
    **keys,
    model__pooling='cls',
    model__conv_width=3,
    train__batch_size=8,
    train__eval_batch_size=8,
  )
  with config.unlocked():
    config.task = 'language'
  train(config, place / 'run')
  path.unlink()
  return config, place / 'run'


def write(run, given, **sampling):
  console = quiet_screen()
  found = generation.generate(
    run[0], str(run[1]), given, Sampling(**sampling), preemption.Stop(), console
  )
  return found, console.console.file.getvalue()


@pytest.mark.parametrize('text', ['the ', ''])
def test_the_most_probable_token_by_the_whole_call(run, text):
  (found,), printed = write(
    run, [text] if text else [], num_tokens=9, temperature=0
  )
  task, params, _ = prediction.trained(
    run[0], str(run[1]), preemption.Stop(), quiet_screen()
  )
  apply = jax.jit(task.model.apply)
  row = text.encode()
  for _ in range(9):
    ids_T = task.encode(row, len(row))
    ids_BT = np.zeros((1, 16), np.int32)
    ids_BT[0, : len(ids_T)] = ids_T
    logits_BTY = apply({'params': params}, ids_BT, jnp.array([len(ids_T)]))
    best = int(np.argmax(logits_BTY[0, len(ids_T), 1:])) + 1
    row += task.decode(np.array([best]))
  assert text.encode() + found == row
  assert row.decode('utf-8', 'replace') in printed


def test_one_seed_one_text(run):
  first, second, third = (
    write(run, ['a', 'a'], num_tokens=30, sampling_seed=seed)[0]
    for seed in (1, 1, 2)
  )
  assert first == second != third
  assert first[0] != first[1]
  assert [len(text) for text in first] == [30, 30]


def test_top_1_is_the_most_probable(run):
  greedy, _ = write(run, ['film'], num_tokens=12, temperature=0)
  assert write(run, ['film'], num_tokens=12, top_k=1)[0] == greedy


LOGITS_Y = np.array([9.0, 1.0, 0.0, 2.0, -1.0], np.float32)


@pytest.mark.parametrize(
  ('temperature', 'top_k', 'kept'),
  [
    (1.0, 0, [1, 2, 3, 4]),
    (0.5, 0, [1, 2, 3, 4]),
    (2.0, 2, [1, 3]),
    (1.0, 9, [1, 2, 3, 4]),
  ],
)
def test_draws_follow_the_probabilities(temperature, top_k, kept):
  sampling = Sampling(temperature=temperature, top_k=top_k)
  count = 4000
  keys = jax.random.split(jax.random.key(0), count)
  drawn = jax.vmap(lambda k: generation.draw(jnp.array(LOGITS_Y), k, sampling))(
    keys
  )
  share_Y = np.bincount(drawn, minlength=5) / count
  expected_Y = np.zeros(5)
  # Id 0 is padding, which is never written.
  expected_Y[kept] = np.exp(LOGITS_Y[kept] / temperature)
  expected_Y /= expected_Y.sum()
  spread_Y = 4 * np.sqrt(expected_Y * (1 - expected_Y) / count)
  assert (np.abs(share_Y - expected_Y) <= spread_Y + 1e-9).all()


@pytest.mark.parametrize(
  'sampling',
  [
    {'num_tokens': 0},
    {'temperature': -1.0},
    {'top_k': -1},
    {'temperature': float('nan')},
    {'sampling_seed': -1},
  ],
)
def test_settings_that_make_no_sense_are_refused(run, sampling):
  with pytest.raises(errors.ConfigError, match='out of range'):
    write(run, ['a'], **sampling)


def test_a_long_text_is_read_in_pieces(run):
  """Of more than two windows of 16; greedy, beside the same read at once."""
  task, params, _ = prediction.trained(
    run[0], str(run[1]), preemption.Stop(), quiet_screen()
  )
  ids_T = task.encode(TEXT[:40].encode(), 40)
  sampling = Sampling(num_tokens=5, temperature=0)
  found = [
    np.asarray(
      generation.continue_row(
        task.model.clone(max_length=length), params, ids_T,
        jax.random.key(0), sampling,
      )
    )
    for length in (16, 7, 64)
  ]  # fmt: skip
  np.testing.assert_array_equal(found[0], found[2])
  np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize(
  ('mechanism', 'keys', 'num_tokens', 'words'),
  [
    ('reformer', {}, 1, 'reformer has no stream'),
    ('local+sinkhorn', {'model__num_layers': 2}, 1, 'sinkhorn has no stream'),
    ('linear', {'model__extra_tokens': 2}, 1, 'extra_tokens=2'),
    ('synthesizer', {}, 17, '17 tokens are more than the 16'),
    ('linear', {'model__position': 'learned'}, 17, 'positions were learnt'),
    ('linear', {'model__position': 'learned'}, 16, ''),
    ('full', {}, 99, ''),
  ],
)
def test_what_cannot_be_streamed_is_said(mechanism, keys, num_tokens, words):
  config = tiny_config(mechanism, model__pooling='cls', **keys)
  refusal = build.stream_refusal(config, num_tokens)
  assert words in refusal
  assert bool(words) == bool(refusal)


def test_generate_refuses_what_cannot_be_streamed(run, monkeypatch):
  monkeypatch.setattr(build, 'stream_refusal', lambda *_: 'it is mute')
  with pytest.raises(errors.ConfigError, match='cannot write: it is mute'):
    write(run, ['a'])


def test_a_low_temperature_writes_no_padding():
  sampling = Sampling(temperature=1e-38)
  drawn = generation.draw(jnp.array(LOGITS_Y), jax.random.key(0), sampling)
  assert drawn == 3


def test_a_model_without_a_front_needs_a_text():
  config = tiny_config(model__pooling='mean')
  with config.unlocked():
    config.task = 'language'
  from tests.train.tiny_run import tiny_dataset

  task = tasks.make(config, tiny_dataset())
  params = task.init(jax.random.key(0))
  key = jax.random.key(0)
  with pytest.raises(errors.ConfigError, match='--input'):
    generation.continue_row(
      task.model, params, np.zeros(0, int), key, Sampling()
    )
  ids_T = generation.continue_row(
    task.model, params, np.array([5]), key, Sampling(num_tokens=3)
  )
  assert ids_T.shape == (3,)
  assert (np.asarray(ids_T) > 0).all()


def test_what_has_no_classes_is_not_predicted(run):
  with pytest.raises(errors.ConfigError, match='--mode=generate'):
    prediction.predict(
      run[0], str(run[1]), ['a'], preemption.Stop(), quiet_screen()
    )
