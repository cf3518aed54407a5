"""Models whose matrices are sums of two: outputs, codes, files, and counts."""

import dataclasses
import hashlib
import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

from effformer import pretrained
from effformer.compress import (
  artefact,
  halves,
  measuring,
  running,
  sizes,
  split,
  tensors,
)
from effformer.compress.grid import Grid
from effformer.errors import CheckpointError, ConfigError
from effformer.train import optimiser
from tests import slow
from tests.compress.fold_test import CASES, IDS, LENGTHS, T, model_of
from tests.compress.networks import batch_of, layer, network
from tests.pretrained.golden_test import folder_of, golden, outputs

TERNARY = Grid(2, rule='ternary')
K, N, L = 7, 3, 5
# What is rounded otherwise stays whole.
PLANS = {
  'channel': (TERNARY, None),
  'tile': (Grid(2, 'tile', 5, rule='ternary'), None),
  'tensor': (Grid(2, 'tensor', rule='ternary'), Grid(8)),
}
NETWORKS = {
  'full': lambda: network([layer(), layer(mlp_width=9)]),
  'performer': lambda: network([layer('performer', num_features=4)]),
  'pair': lambda: network([layer('local', window=3)], 'pair_classifier'),
  'narrow': lambda: network(
    [layer()], 'predictor', embedding_width=5, token_head='tied'
  ),
}


def plans(params, name):
  """What is ternary, and what halves are rounded to."""
  grid, tables = PLANS[name]
  made = halves.of(params, tensors.uniform_plan(params, grid, tables=tables))
  own = split.binary(grid)
  return (
    tensors.uniform_plan(params, grid, tables=tables),
    made,
    tensors.uniform_plan(made, own, tables=tables),
  )


def flat(params):
  return tensors.flatten(params)


def run(module, params, *batch, **keywords):
  return np.asarray(
    jax.jit(lambda p: running.apply(module, p, *batch, **keywords))(params)
  )


@pytest.mark.parametrize('plan', slow.after(1, PLANS))
@pytest.mark.parametrize('name', slow.after(1, NETWORKS))
def test_the_binary_model_begins_as_the_ternary_one(name, plan):
  module, params = NETWORKS[name]()
  batch = batch_of('pair_classifier' if name == 'pair' else 'classifier')
  ternary, made, binary = plans(params, plan)
  wanted = run(
    module, tensors.dequantise(tensors.quantise(params, ternary)), *batch
  )
  codes = tensors.quantise(made, binary)
  numbers = halves.joined(tensors.dequantise(codes))
  assert jax.tree.structure(numbers) == jax.tree.structure(params)
  for own in (codes, numbers):
    np.testing.assert_allclose(run(module, own, *batch), wanted, atol=1e-4)
  plain = run(module, params, *batch)
  assert np.abs(plain - wanted).max() > 1e-2
  # Without rounding it is the model as it was.
  np.testing.assert_allclose(run(module, made, *batch), plain, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('mechanism', 'settings'), CASES, ids=str)
def test_every_mechanism_runs_from_both_halves(mechanism, settings):
  _, module, params = model_of(mechanism, settings)
  _, made, binary = plans(params, 'channel')
  codes = tensors.quantise(made, binary)
  numbers = halves.joined(tensors.dequantise(codes))
  keep_BT = np.arange(T) < LENGTHS[:, None]
  own, wanted = (
    run(module, x, IDS, LENGTHS, method='vectors')[keep_BT]
    for x in (codes, numbers)
  )
  np.testing.assert_allclose(own, wanted, atol=1e-4)
  dynamic = run(
    module, codes, IDS, LENGTHS, method='vectors', activations='dynamic'
  )
  assert np.isfinite(dynamic[keep_BT]).all()


def test_a_pretrained_encoder_begins_as_the_ternary_one(tmp_path):
  model = pretrained.load(folder_of('bert-classifier', tmp_path))
  arrays = golden('bert-classifier')[2]
  ternary, made, binary = plans(model.params, 'channel')
  rounded = artefact.make(model, tensors.quantise(made, binary))
  before, after = (
    outputs(model._replace(params=own), arrays)
    for own in (
      tensors.dequantise(tensors.quantise(model.params, ternary)),
      rounded.numbers,
    )
  )
  np.testing.assert_allclose(after, before, atol=1e-5)
  assert np.abs(outputs(model, arrays) - before).max() > 1e-3


@pytest.mark.parametrize('plan', PLANS)
def test_what_is_split(plan):
  _, params = NETWORKS['full']()
  ternary, made, binary = plans(params, plan)
  before, after = flat(params), flat(made)
  split_up = {path for path, grid in ternary.items() if grid.rule == 'ternary'}
  assert ('embedding/embedding' in split_up) == (plan != 'tensor')
  assert set(after) == {
    *before, *(f'other_half/{path}' for path in split_up)
  }  # fmt: skip
  assert {path for path in after if halves.is_other(path)} == {
    f'other_half/{path}' for path in split_up
  }
  # Off the device, as parameters are between steps.
  assert all(isinstance(x, np.ndarray) for x in after.values())
  for path, x in before.items():
    if path not in split_up:
      np.testing.assert_array_equal(after[path], x)
      continue
    other = after[f'other_half/{path}']
    assert binary[path] == binary[f'other_half/{path}']
    assert (binary[path].bits, binary[path].rule) == (1, 'sign')
    assert other.shape == x.shape
    np.testing.assert_allclose(after[path] + other, x, atol=1e-6)
    assert np.any(after[path] != other)
  joined = flat(halves.joined(made))
  assert set(joined) == set(before)
  for path, x in joined.items():
    np.testing.assert_allclose(x, before[path], atol=1e-6)
  assert halves.joined(params) is params
  # Tables are still what does not decay.
  decayed = optimiser.decay_mask(made)
  assert flat(decayed['other_half']) == {
    path: own for path, own in flat(decayed).items() if path in split_up
  }


def test_grids_of_both_kinds():
  for grid, _ in PLANS.values():
    assert split.ternary(split.binary(grid)) == grid


# By hand.


def decoded(x):
  """float64, of a channel scale."""
  return np.asarray(x.codes, 'f8') * np.asarray(x.scale, 'f8')


def layer_of_codes(seed=0):
  """Halves that are no split of anything, and the bias."""
  rng = np.random.default_rng(seed)
  first, second = (rng.normal(size=(K, N)).astype('f4') for _ in range(2))
  params = {
    'kernel': first,
    'bias': rng.normal(size=N).astype('f4'),
    'other_half': {'kernel': 3 * second},
  }
  grid = split.binary(TERNARY)
  codes = tensors.quantise(params, tensors.uniform_plan(params, grid))
  x_LK = rng.normal(size=(L, K)).astype('f4')
  return codes, x_LK


def test_products_of_both_halves_are_added():
  codes, x_LK = layer_of_codes()
  w_KN = decoded(codes['kernel']) + decoded(codes['other_half']['kernel'])
  y_LN = run(nn.Dense(N), codes, x_LK)
  np.testing.assert_allclose(
    y_LN, x_LK @ w_KN + codes['bias'], rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('scale', [None, 0.01])
def test_integers_of_both_halves_are_added(scale):
  """With a scale for each token, and one that is given and clips."""
  codes, x_LK = layer_of_codes()
  a = scale or np.abs(x_LK).max(axis=1, keepdims=True) / np.float32(127)
  q_LK = np.clip(np.round(x_LK / a), -127, 127).astype('f8')
  assert scale is None or (np.abs(q_LK) == 127).any()
  w_KN = decoded(codes['kernel']) + decoded(codes['other_half']['kernel'])
  activations = 'dynamic' if scale is None else {'kernel': np.float32(scale)}
  y_LN = run(nn.Dense(N), codes, x_LK, activations=activations)
  np.testing.assert_allclose(
    y_LN, a * q_LK @ w_KN + codes['bias'], rtol=1e-5, atol=1e-5
  )
  assert np.abs(y_LN - x_LK @ w_KN - codes['bias']).max() > 1e-3


def test_a_scale_is_of_both_halves():
  codes, x_LK = layer_of_codes()
  with pytest.raises(ConfigError, match='a scale for other_half/kernel'):
    run(nn.Dense(N), codes, x_LK, activations={'other_half/kernel': 1.0})


def test_vectors_of_both_halves_are_added():
  rng = np.random.default_rng(1)
  params = {
    'embedding': rng.normal(size=(N, K)).astype('f4'),
    'other_half': {'embedding': rng.normal(size=(N, K)).astype('f4')},
  }
  grid = split.binary(TERNARY)
  codes = tensors.quantise(params, tensors.uniform_plan(params, grid))
  ids_L = np.array([2, 0, 2, 1])
  x_LK = run(nn.Embed(N, K), codes, ids_L)
  w_KN = decoded(codes['embedding']) + decoded(codes['other_half']['embedding'])
  np.testing.assert_allclose(x_LK, w_KN.T[ids_L], rtol=1e-6)


# What is trained.


@dataclasses.dataclass(frozen=True)
class Trained:
  """As much of a task as halves have to do with."""

  init: object
  objective: object
  measure: object
  predict: object
  embed: object = None


def test_a_task_of_halves():
  _, params = NETWORKS['full']()
  _, made, _ = plans(params, 'channel')
  seen = []

  def objective(params, *rest):
    seen.append((params, rest))
    return sum(float(x.sum()) for x in jax.tree.leaves(params)), {}

  task = Trained(
    lambda key: jax.tree.map(lambda x: x + 1, params), objective,
    lambda params, batch: ('measured', params, batch),
    lambda params, batch: ('predicted', params, batch),
  )  # fmt: skip
  assert halves.doubled(task, params) is task
  own = halves.doubled(task, made)
  first = own.init(None)
  assert jax.tree.structure(first) == jax.tree.structure(made)
  for path, x in flat(first).items():
    wanted = 0 if halves.is_other(path) else flat(params)[path] + 1
    np.testing.assert_array_equal(x, wanted * np.ones(made_shape(made, path)))
  loss, _ = own.objective(made, 'batch', 'key', 3)
  wanted = sum(np.asarray(x, 'f8').sum() for x in jax.tree.leaves(params))
  assert loss == pytest.approx(wanted, abs=1e-3)
  assert seen[0][1] == ('batch', 'key', 3)
  for name, function in (('measured', own.measure), ('predicted', own.predict)):
    said, given, batch = function(made, 'batch')
    assert (said, batch) == (name, 'batch')
    assert jax.tree.structure(given) == jax.tree.structure(params)
  assert own.embed is None
  vectors = dataclasses.replace(task, embed=task.measure)
  _, given, _ = halves.doubled(vectors, made).embed(made, 'batch')
  assert jax.tree.structure(given) == jax.tree.structure(params)


def made_shape(made, path):
  return flat(made)[path].shape


# Files and counts.


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A tiny encoder of binary halves."""
  folder = tmp_path_factory.mktemp('bert')
  model = pretrained.load(folder_of('bert-classifier', folder))
  _, made, binary = plans(model.params, 'channel')
  return artefact.make(model, tensors.quantise(made, binary))


def test_reading_gives_the_same_bits(small, tmp_path):
  artefact.save(small, tmp_path)
  again = artefact.load(tmp_path)
  assert jax.tree.structure(again.params) == jax.tree.structure(small.params)
  jax.tree.map(np.testing.assert_array_equal, again.params, small.params)
  arrays = golden('bert-classifier')[2]
  batch = arrays['ids'], arrays['lengths']
  found = [
    run(own.module, own.params, *batch, types_BT=arrays['types'])
    for own in (again, small)
  ]
  np.testing.assert_array_equal(*found)
  np.testing.assert_allclose(
    found[0], outputs(again._replace(params=again.numbers), arrays), atol=1e-5
  )


def refusal(folder, facts=None, arrays=None):
  """What is said of the folder, with another manifest or other weights."""
  weights, manifest = folder / artefact.WEIGHTS, folder / artefact.MANIFEST
  before = weights.read_bytes(), manifest.read_text()
  facts = dict(facts or json.loads(before[1]))
  if arrays is not None:
    weights.write_bytes(safetensors.numpy.save(arrays))
    data = weights.read_bytes()
    facts['weights_sha256'] = hashlib.sha256(data).hexdigest()
  manifest.write_text(json.dumps(facts))
  with pytest.raises(CheckpointError) as caught:
    artefact.load(folder)
  weights.write_bytes(before[0])
  manifest.write_text(before[1])
  assert len(str(caught.value).splitlines()) <= 5
  return str(caught.value)


def test_half_of_a_matrix_is_refused(small, tmp_path):
  artefact.save(small, tmp_path)
  facts = json.loads((tmp_path / artefact.MANIFEST).read_text())
  arrays = safetensors.numpy.load_file(tmp_path / artefact.WEIGHTS)
  path = 'encoder/layer_1/mlp/in/kernel'
  other = f'other_half/{path}'

  def without(*names):
    tensors_ = {k: x for k, x in facts['tensors'].items() if k not in names}
    return {**facts, 'tensors': tensors_}

  assert f'codes of {other}, which' in refusal(tmp_path, without(other))
  assert f'codes of {path}, which' in refusal(tmp_path, without(path))
  left = {k: x for k, x in arrays.items() if not k.startswith(f'{path}#')}
  words = refusal(tmp_path, without(path), left)
  assert f'{other} without the half {path}' in words
  numbers = {
    **{k: x for k, x in arrays.items() if not k.startswith(f'{other}#')},
    other: np.zeros(facts['tensors'][path]['shape'], 'f4'),
  }
  words = refusal(tmp_path, without(other), numbers)
  assert f'of {path} one half is codes' in words
  numbers = {**left, path: np.zeros((2, 3), 'f4')}
  words = refusal(tmp_path, without(path), numbers)
  assert re.search(
    rf'{other} is \(\d+, \d+\), and its half {path} \(2, 3\)', words
  )
  # Put back, it is read.
  artefact.load(tmp_path)


def test_both_halves_are_counted(small):
  before = halves.joined(tensors.dequantise(small.params))
  found, plain = sizes.sizes(small.params, 0), sizes.sizes(before, 0)
  codes = {
    path: x for path, x in flat(small.params).items()
    if isinstance(x, tensors.QTensor)
  }  # fmt: skip
  weights = sum(
    x.codes.size for path, x in codes.items() if not halves.is_other(path)
  )
  assert found['parameters'] == plain['parameters'] + weights
  # A sign is never 0.
  vectors = sum(
    np.count_nonzero(x) for path, x in flat(small.params).items()
    if path not in codes
  )  # fmt: skip
  assert found['nonzero'] == 2 * weights + vectors
  for name, own in found['components'].items():
    paths = [path for path in flat(before) if sizes.component(path) == name]
    count = sum(
      np.size(flat(before)[path]) * (1 + (path in codes)) for path in paths
    )
    assert own['parameters'] == count, name
  packed = sum(own['packed_bytes'] for own in found['components'].values())
  rest = sum(x.nbytes for p, x in flat(small.params).items() if p not in codes)
  bits = sum(
    -(-x.codes.size // 8) + 4 * x.codes.shape[1] for x in codes.values()
  )
  assert packed == bits + rest


def test_the_plan_says_that_bits_are_of_both(small):
  rows = {row['part']: row['bits'] for row in measuring.plan(small)}
  assert {*rows.values()} == {'twice 1 a channel, sign'}
  assert 'layer 1 mlp' in rows
  assert not any('other_half' in part for part in rows)
  whole = small._replace(params=small.numbers)
  assert {row['part'] for row in measuring.plan(whole)} == {*rows}
