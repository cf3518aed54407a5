"""--mode=efficiency: three models, both steps, nothing of a run touched."""

import json

import jax
import pytest

from effformer.train import efficiency
from tests.train.tiny_run import quiet_screen, tiny_config


@pytest.fixture(scope='module')
def config():
  return tiny_config('local', mixer__window=3)


def of(outcome, model, kind='train'):
  return [
    row
    for row in outcome['rows']
    if (row['model'], row['kind']) == (model, kind)
  ]


@pytest.mark.slow
def test_measures_the_model_and_exact_softmax(config, tmp_path):
  console = quiet_screen()
  outcome = efficiency.measure(
    config, str(tmp_path), console, lengths=(64, 512), rounds=2
  )
  assert json.loads((tmp_path / 'efficiency.json').read_text()) == outcome
  assert {row['model'] for row in outcome['rows']} == {
    'local',
    'naive',
    'fused',
  }
  assert len(outcome['rows']) == 3 * 2 * 2
  assert all(row['milliseconds'] > 0 for row in outcome['rows'])
  # The naive form alone has the logits of all pairs.
  short, long = of(outcome, 'naive')
  growth = long['temporary_bytes'] - short['temporary_bytes']
  batch, heads = config.train.batch_size, config.model.num_heads
  assert growth > 4 * batch * heads * (512**2 - 64**2)
  for model in ('local', 'fused'):
    assert of(outcome, model)[1]['temporary_bytes'] < growth
  printed = console.console.file.getvalue()
  assert printed.count(' MiB temporary') == 12
  assert {path.name for path in tmp_path.iterdir()} == {
    *('efficiency.json', 'lock')
  }


@pytest.mark.slow
def test_what_does_not_fit_is_not_run(config, tmp_path, monkeypatch):
  outcome = efficiency.measure(
    config, str(tmp_path), quiet_screen(), lengths=(512,), rounds=1
  )
  needed = {
    row['model']: row['temporary_bytes']
    for row in outcome['rows']
    if row['kind'] == 'train'
  }
  assert needed['naive'] > needed['local']
  # Between the two, with state and batch.
  limit = (needed['naive'] + needed['local']) / 2 / efficiency._FITTING
  monkeypatch.setattr(efficiency, '_memory', lambda: limit)
  outcome = efficiency.measure(
    config, str(tmp_path), quiet_screen(), lengths=(512,), rounds=1
  )
  (naive,) = of(outcome, 'naive')
  assert naive['milliseconds'] is None
  assert naive['temporary_bytes'] == needed['naive']
  (local,) = of(outcome, 'local')
  assert local['milliseconds'] > 0


def test_the_models_differ_in_their_mixer_only(config):
  before = jax.tree.map(str, config.to_dict())
  models = efficiency._models(config, 99)
  assert {name: own.mixer.name for name, own in models.items()} == {
    **{'local': 'local', 'naive': 'full', 'fused': 'full'}
  }
  assert models['naive'].mixer.form == 'dense'
  for own in models.values():
    assert own.data.max_length == 99
    assert own.model.to_dict() == config.model.to_dict()
    assert own.train.to_dict() == config.train.to_dict()
  assert jax.tree.map(str, config.to_dict()) == before
