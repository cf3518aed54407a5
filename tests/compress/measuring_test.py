"""What a compressed model is said to be, and the outcome for people."""

import jax
import numpy as np
import pytest

from effformer.compress import measuring, tensors
from effformer.compress.artefact import Compressed
from effformer.compress.grid import Grid
from tests.models.build_test import make_config
from tests.report import compressions

LAYERS = {
  '0': {'num_heads': 2},
  '1': {'mixer': 'fnet', 'mlp_width': 7, 'activation': 'relu'},
}


@pytest.fixture(scope='module')
def model():
  config = make_config('full', LAYERS, model__position='learned')
  model = Compressed(config, 'classifier', 11, 3, False, None, '0' * 64)
  init = jax.jit(model.module.init)
  inputs = (np.ones((1, 5), 'i4'), np.array([5]))
  params = init(jax.random.key(0), *inputs)['params']
  return model._replace(params=jax.device_get(params))


def shown(model):
  rows = measuring.plan(model)
  assert len({row['part'] for row in rows}) == len(rows)
  return {row['part']: (row['shape'], row['bits']) for row in rows}


def test_every_layer_and_matrix_is_in_the_plan(model):
  plain = 'float32'
  assert shown(model) == {
    'layer 0 mixer': ('full, 2 heads', plain),
    'layer 0 mlp': ('10 columns, gelu', plain),
    'layer 1 mixer': ('fnet', plain),
    'layer 1 mlp': ('7 columns, relu', plain),
    'layer 2 mixer': ('full, 3 heads', plain),
    'layer 2 mlp': ('10 columns, gelu', plain),
    'embedding/embedding': ('11 x 12', plain),
    'positions': ('16 x 12', plain),
    'head_out/kernel': ('12 x 3', plain),
  }


def test_codes_are_in_the_plan_in_words(model):
  kernels = {
    'encoder/layer_0/mixer/query/kernel': Grid(4, 'tile', 6),
    'encoder/layer_0/mixer/out/kernel': Grid(3),
    'encoder/layer_0/mlp/in/kernel': Grid(4, 'tile', 6, rule='clip'),
    'encoder/layer_2/mlp/out/kernel': Grid(2, rule='ternary'),
    'embedding/embedding': Grid(8),
    'head_out/kernel': Grid(5, 'tensor'),
  }
  before = shown(model)
  params = tensors.quantise(model.params, kernels)
  found = shown(model._replace(params=params))
  changed = {
    'layer 0 mixer': '3 a channel and 4 a tile of 6',
    'layer 0 mlp': '4 a tile of 6',
    'layer 2 mlp': '2 a channel, ternary',
    'embedding/embedding': '8 a channel',
    'head_out/kernel': '5 a tensor',
  }
  assert found == {
    part: (shape, changed.get(part, bits))
    for part, (shape, bits) in before.items()
  }


def test_layers_that_share_have_the_same_bits():
  config = make_config('full', {'0': {'share': 'a'}, '2': {'share': 'a'}})
  model = Compressed(config, 'classifier', 11, 3, False, None, '0' * 64)
  inputs = (np.ones((1, 5), 'i4'), np.array([5]))
  params = jax.jit(model.module.init)(jax.random.key(0), *inputs)['params']
  plan = {'encoder/shared_a/mlp/in/kernel': Grid(4)}
  params = tensors.quantise(jax.device_get(params), plan)
  found = shown(model._replace(params=params))
  assert [found[f'layer {n} mlp'][1] for n in range(3)] == [
    '4 a channel', 'float32', '4 a channel',
  ]  # fmt: skip


def test_the_outcome_for_people():
  found = compressions.compression()
  lines = measuring.lines(found)
  for line in (
    'bytes on disk    620,000  of 8,000,000 (12.90 times smaller)',
    'parameters       7,654,321  of 7,654,321',
    'test accuracy    77.00  [75.00, 80.00]  2: round',
    'test accuracy    83.00  [81.00, 86.00]  control: no_teacher',
    'floor            67.89  bag_of_bytes (accuracy)',
    '   1 x 32        2.00 times the speed of the parent [1.89, 2.12]  '
    'compressed',
    'text, real data, 1,234 examples',
  ):
    assert line in lines, line
  # The parent is as fast as itself.
  timed = [line for line in lines if 'times the speed' in line]
  assert len(timed) == 3
  assert lines[-1] == 'text, real data, 1,234 examples'
  found = compressions.compression(stand_in=True)
  assert 'STAND-IN DATA (not a score)' in measuring.lines(found)[-1]
