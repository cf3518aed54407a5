"""Every task from its config file to a loss, on generated data."""

import importlib

import jax
import numpy as np
import pytest

from effformer import data, tasks
from effformer.data import (
  builders,
  cifar,
  image_stand_in,
  imdb,
  pair_stand_in,
  stand_in,
)
from tests import slow
from tests.subwords import save_tokenizer

SIZES = {'train': 40, 'validation': 6, 'test': 20}
# Name -> floors, of tasks with classes beside the majority.
FLOORS = {
  'text': {'bag_of_bytes'},
  'listops': {'root_operator', 'bag_of_tokens'},
  'image': {'bag_of_pixels', 'linear'},
  'retrieval': {'bags_of_bytes'},
  'language': {'most_frequent_byte', 'bigram'},
  'sentence': {'bag_of_subwords'},
  'pair': {'bags_of_subwords'},
  'similarity': {'shared_subwords', 'lengths'},
  **{
    f'pathfinder{size}': {'bag_of_pixels', 'linear'}
    for size in builders.PATHFINDER_RESOLUTIONS
  },
}


def write_scored(path):
  rng = np.random.default_rng(0)
  lines = ['sentence1\tsentence2\tscore']
  for number in range(60):
    texts = (' '.join(rng.choice(list('abcdefgh'), 5)) for _ in range(2))
    lines.append('\t'.join((*texts, str(number % 21 / 4))))
  path.write_text('\n'.join(lines))
  return str(path)


@pytest.fixture
def config_of(tmp_path, monkeypatch):
  monkeypatch.setattr(builders, 'LISTOPS_SIZES', SIZES)
  monkeypatch.setattr(builders, 'PATHFINDER_SIZES', SIZES)
  monkeypatch.setattr(builders, 'PATHFINDER_FEWER', 1)
  for module in (stand_in, image_stand_in, pair_stand_in):
    monkeypatch.setattr(module, 'SIZES', SIZES)
  for archive in (imdb.ARCHIVE, cifar.ARCHIVE):
    monkeypatch.setattr(archive, 'url', f'http://127.0.0.1:9/{archive.name}')

  def make(name):
    is_lra = name not in ('language', 'sentence', 'pair', 'similarity')
    file = f'lra_{name}' if is_lra else name
    module = importlib.import_module(f'configs.{file}')
    config = module.get_config('linear,quick')
    if config.data.tokenizer:
      config.model.pretrained = ''
      words = tuple('abcdefghijklmnopqrstuvwxyz')
      config.data.tokenizer = str(save_tokenizer(tmp_path, words))
    if name == 'similarity':
      config.data.train = write_scored(tmp_path / 'own.tsv')
    config.data.directory = str(tmp_path)
    config.model.num_layers = 1
    config.model.width = config.model.mlp_width = 8
    config.model.num_heads = 2
    return config

  return make


def test_every_task_has_a_config_and_floors():
  assert set(FLOORS) == set(tasks.TABLE) == set(data.KNOWN)


# The larger ones are the same code on more pixels.
@pytest.mark.parametrize(
  'name',
  slow.after(2, [n for n in FLOORS if n[-3:] not in ('r64', '128', '256')]),
)
def test_from_config_to_loss(config_of, name):
  config = config_of(name)
  task = tasks.make(config)
  source = task.dataset.splits['train']
  batch = data.batch_at(
    source, task.encode, 0, seed=0, batch_size=4,
    max_length=config.data.max_length, encode_pair=task.encode_pair,
  )  # fmt: skip
  assert set(task.inputs) <= set(batch)
  params = task.init(jax.random.key(0))
  loss, values = task.objective(params, batch, jax.random.key(1), 0)
  is_language, is_scored = name == 'language', name == 'similarity'
  num_classes = 257 if is_language else task.dataset.num_classes
  assert 0 < loss < (4 if is_scored else 3 * np.log(num_classes))
  measured = task.measure(params, batch)
  assert {value.shape for value in measured.values()} == {(4,)}
  shown = task.summarise({k: float(v.mean()) for k, v in measured.items()})
  assert {task.select, task.score} <= set(shown)
  assert task.score == ('pearson' if name == 'similarity' else 'accuracy')
  assert set(values) == {
    *([] if is_scored else ['accuracy']),
    *(['bits', 'tokens'] * is_language),
  }
  # Every text of an example is read.
  for key in task.inputs:
    if key.endswith('ids_BT'):
      changed = {**batch, key: np.where(batch[key] > 0, 1, 0)}
      changed = task.measure(params, changed)['loss']
      assert np.abs(changed - measured['loss']).max() > 1e-6, key
  floors = task.floors()
  majority = set() if is_language or is_scored else {'majority'}
  assert set(floors) == majority | FLOORS[name]
  assert all(-is_scored <= floor <= 1 for floor in floors.values())
