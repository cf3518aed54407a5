"""Codebooks in a model: grids, storage, running, and what trains them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from effformer import pretrained
from effformer.compress import (
  artefact,
  calibrate,
  gptq,
  int8,
  kmeans,
  lloyd,
  lsq,
  qat,
  running,
  tensors,
)
from effformer.compress import grid as grids
from effformer.compress.grid import Grid
from effformer.compress.prune import sparsegpt
from effformer.errors import ConfigError
from tests import slow
from tests.compress.tensors_test import OUT, QUERY, D, F, H, K, Y, params
from tests.pretrained.golden_test import folder_of, golden

TENSOR, CHANNEL = (
  Grid(3, group, rule='kmeans') for group in ('tensor', 'channel')
)
MLP = 'encoder/layer_0/mlp/in/kernel'


def weights(k=40, n=3, seed=0):
  w_KN = np.random.default_rng(seed).normal(0.3, size=(k, n)).astype('f4')
  return w_KN * np.geomspace(1, 9, n).astype('f4')


def rounded(w_KN, grid):
  found = grids.scales(w_KN, grid)
  return np.asarray(grids.decode(grids.encode(w_KN, found, grid), found, grid))


def gram(k=40, seed=1):
  """Of inputs of which each depends on those before, some near to silent."""
  rng = np.random.default_rng(seed)
  x_RK = rng.normal(size=(200, k)) @ (np.eye(k) + 0.4 * np.tri(k, k=-1)).T
  x_RK *= np.geomspace(0.05, 4, k)
  return (x_RK.T @ x_RK).astype('f4')


def loss(w_KN, found_KN, gram_KK):
  lost_KN = w_KN.astype('f8') - np.asarray(found_KN)
  return np.einsum('kn,kj,jn->', lost_KN, gram_KK, lost_KN)


# The grid.


@pytest.mark.parametrize('grid', [TENSOR, CHANNEL], ids=str)
def test_a_group_has_a_codebook(grid):
  w_KN = weights()
  found = grids.scales(w_KN, grid)
  codes_KN = np.asarray(grids.encode(w_KN, found, grid))
  y_KN = np.asarray(grids.decode(codes_KN, found, grid))
  assert found.scale.shape == grids.scales_shape(w_KN.shape, grid)
  assert (codes_KN.min(), codes_KN.max()) == (grid.low, grid.high) == (0, 7)
  columns = [w_KN.reshape(-1, 1)]
  if grid is CHANNEL:
    columns = [w_KN[:, n : n + 1] for n in range(3)]
  for column, w_T1 in enumerate(columns):
    codebook_V1 = lloyd.codebook(w_T1, 3)
    np.testing.assert_allclose(
      found.scale[:, column], codebook_V1[:, 0], rtol=1e-6
    )
    expected_T1 = lloyd.decode(lloyd.encode(w_T1, codebook_V1), codebook_V1)
    own = y_KN.reshape(-1, 1) if grid is TENSOR else y_KN[:, [column]]
    np.testing.assert_allclose(own, expected_T1, rtol=1e-6)


@pytest.mark.parametrize('group', ['tensor', 'channel'])
@pytest.mark.parametrize('bits', [1, 2, 4])
def test_it_is_no_worse_than_even_spacing(bits, group):
  w_KN, grid = weights(), Grid(bits, group, rule='kmeans')
  columns = [w_KN] if group == 'tensor' else list(w_KN.T)
  found_KN = rounded(w_KN, grid)
  found = [found_KN] if group == 'tensor' else list(found_KN.T)
  for w, y in zip(columns, found, strict=True):
    values = np.linspace(w.min(), w.max(), 2**bits)
    even = values[np.abs(w[..., None] - values).argmin(axis=-1)]
    assert ((w - y) ** 2).sum() < 0.95 * ((w - even) ** 2).sum()


@pytest.mark.parametrize('group', ['tensor', 'channel'])
def test_normal_weights_lose_less_than_as_integers(group):
  w_KN = np.random.default_rng(0).normal(size=(400, 3)).astype('f4')
  errors = [
    ((rounded(w_KN, Grid(4, group, rule=rule)) - w_KN) ** 2).sum()
    for rule in ('kmeans', 'clip')
  ]
  assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize('grid', [TENSOR, CHANNEL], ids=str)
def test_fake_is_what_storing_gives_and_gradients_go_through(grid):
  w_KN = weights()
  fake_KN = jax.jit(lambda w: grids.fake_quantise(w, grid))(w_KN)
  assert np.asarray(fake_KN).tobytes() == rounded(w_KN, grid).tobytes()
  assert rounded(fake_KN, grid).tobytes() == np.asarray(fake_KN).tobytes()
  gradient = jax.grad(lambda w: grids.fake_quantise(w, grid).sum())(w_KN)
  np.testing.assert_array_equal(gradient, np.ones_like(w_KN))


def test_what_is_no_codebook():
  for arguments, words in (
    ({'bits': 9}, 'bits has to be 1 to 8'),
    ({'bits': 4, 'group': 'tile', 'tile': 8}, 'not for tiles'),
    ({'bits': 4, 'symmetric': False}, 'has no zero point'),
  ):
    with pytest.raises(ValueError, match=words):
      Grid(**arguments, rule='kmeans')


# Tensors and files.


def test_bytes_are_those_of_codes_and_codebooks():
  plan = {QUERY: TENSOR, OUT: CHANNEL, MLP: Grid(8, 'tensor', rule='kmeans')}
  small = tensors.quantise(params(), plan)
  flat = tensors.flatten(small)
  assert all(flat[path].codes.dtype == jnp.uint8 for path in plan)
  # 36 codes of 3 bits: 8 values for the tensor, or for each of 6 channels.
  assert flat[QUERY].packed_bytes == 14 + 4 * 8
  assert flat[OUT].packed_bytes == 14 + 4 * 8 * D
  assert flat[MLP].packed_bytes == D * F + 4 * 256


@pytest.mark.parametrize('grid', slow.after(1, (TENSOR, CHANNEL)), ids=str)
def test_what_is_rounded_is_rounded_once(grid):
  plan = tensors.uniform_plan(params(), grid)
  once = tensors.dequantise(tensors.quantise(params(), plan))
  again = tensors.dequantise(tensors.quantise(once, plan))
  jax.tree.map(np.testing.assert_array_equal, again, once)


def bert(path):
  model = pretrained.load(folder_of('bert-classifier', path))
  arrays = golden('bert-classifier')[2]
  arguments = arrays['ids'], arrays['lengths'], arrays['types']
  return model, arguments


def some(params, grid):
  """A plan of a table, and of one layer: each shape is compiled."""
  plan = tensors.uniform_plan(params, grid)
  own = ('embedding/embedding', 'encoder/layer_1')
  return {path: plan[path] for path in plan if path.startswith(own)}


def applied(model, args, call):
  return jax.jit(
    lambda p: call(model.module, p, *args[:2], types_BT=args[2])
  )(model.params)  # fmt: skip


@pytest.mark.parametrize('grid', slow.after(1, (TENSOR, CHANNEL)), ids=str)
def test_a_model_of_codebooks_is_stored_and_run(grid, tmp_path):
  model, args = bert(tmp_path / 'bert')
  plan = some(model.params, grid)
  small = artefact.make(model, tensors.quantise(model.params, plan))
  artefact.save(small, tmp_path / 'small')
  again = artefact.load(tmp_path / 'small')
  jax.tree.map(np.testing.assert_array_equal, again.params, small.params)
  assert jax.tree.structure(again.params) == jax.tree.structure(small.params)
  stored = safetensors.numpy.load_file(tmp_path / 'small' / artefact.WEIGHTS)
  for path in plan:
    x = tensors.flatten(small.params)[path]
    own = [y for name, y in stored.items() if name.startswith(f'{path}#')]
    assert sum(y.nbytes for y in own) == x.packed_bytes
  y = applied(again, args, running.apply)
  expected = small.module.apply(
    {'params': small.numbers}, *args[:2], types_BT=args[2]
  )
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(ConfigError, match="codes of rule='kmeans'"):
    running.apply(
      again.module, again.params, *args[:2], types_BT=args[2],
      activations='dynamic',
    )  # fmt: skip


def test_other_products_and_steps_are_refused():
  w = tensors.quantise({'kernel': weights()}, {'kernel': TENSOR})['kernel']
  with pytest.raises(ConfigError, match='no products as integers') as caught:
    int8.product(jnp.ones((2, 40)), w)
  assert len(str(caught.value).splitlines()) <= 5
  with pytest.raises(ValueError, match='no step can be learned'):
    lsq.initial_step(weights(), TENSOR)
  with pytest.raises(ConfigError, match='no step can be learned'):
    qat.initial_steps(params(), {MLP: TENSOR})
  with pytest.raises(ValueError, match=r'have to be \(8, 1\), got \(1, 1\)'):
    tensors.quantise(
      params(),
      {MLP: TENSOR},
      found={MLP: grids.scales(weights(), Grid(3, 'tensor'))},
    )


# With inputs.


def test_weights_count_by_their_inputs():
  w_KN, gram_KK = weights(), np.diag(np.diagonal(gram()))
  for grid in (TENSOR, CHANNEL):
    found = kmeans.weighted(w_KN, np.diagonal(gram_KK), grid)
    codes_KN = grids.encode(w_KN, found, grid)
    found_KN = grids.decode(codes_KN, found, grid)
    plain_KN = rounded(w_KN, grid)
    assert loss(w_KN, found_KN, gram_KK) < 0.9 * loss(w_KN, plain_KN, gram_KK)
    assert ((w_KN - plain_KN) ** 2).sum() < ((w_KN - found_KN) ** 2).sum()
    same = kmeans.weighted(w_KN, np.full(40, 2.5, 'f4'), grid)
    np.testing.assert_allclose(
      same.scale, grids.scales(w_KN, grid).scale, rtol=1e-5
    )
  with pytest.raises(ValueError, match="only rule 'kmeans'"):
    kmeans.weighted(w_KN, np.diagonal(gram_KK), Grid(3))


def test_a_model_is_rounded_by_its_inputs(tmp_path):
  model, args = bert(tmp_path / 'bert')
  moments = calibrate.collect(model.module, model.params, [args])
  plan = some(model.params, TENSOR)
  eight = 'encoder/layer_0/mixer/key/kernel'
  plan[eight] = Grid(8)
  plain = tensors.flatten(tensors.quantise(model.params, plan))
  found = tensors.flatten(kmeans.quantise(model.params, plan, moments))
  path = 'encoder/layer_1/mlp/out/kernel'
  expected = kmeans.weighted(
    model.params['encoder']['layer_1']['mlp']['out']['kernel'],
    np.diagonal(moments[path].gram_KK),
    TENSOR,
  )
  np.testing.assert_array_equal(found[path].scale, expected.scale)
  assert np.any(found[path].scale != plain[path].scale)
  for path in ('embedding/embedding', eight):
    jax.tree.map(np.testing.assert_array_equal, found[path], plain[path])
  with pytest.raises(ConfigError, match='which the model does not have'):
    kmeans.quantise(model.params, {'other/kernel': TENSOR}, moments)


@pytest.mark.parametrize('grid', [TENSOR, CHANNEL], ids=str)
def test_errors_are_made_up_for(grid):
  """By GPTQ, and by SparseGPT of which nothing leaves."""
  w_KN, gram_KK = weights(), gram()
  codes_KN, found = gptq.gptq(w_KN, gram_KK, grid)
  own = grids.scales(w_KN, grid)
  np.testing.assert_array_equal(found.scale, own.scale)
  found_KN = grids.decode(codes_KN, found, grid)
  plain_KN = rounded(w_KN, grid)
  assert loss(w_KN, found_KN, gram_KK) < 0.95 * loss(w_KN, plain_KN, gram_KK)
  pruned = sparsegpt.sparsegpt(w_KN, gram_KK, 0.0, grid=grid)
  np.testing.assert_array_equal(pruned.codes_KN, codes_KN)
  np.testing.assert_array_equal(pruned.scales.scale, own.scale)
  np.testing.assert_array_equal(pruned.w_KN, found_KN)
  # Of inputs that do not depend on each other nothing can be made up for.
  codes_KN, _ = gptq.gptq(w_KN, np.eye(40, dtype='f4'), grid)
  np.testing.assert_array_equal(codes_KN, grids.encode(w_KN, own, grid))


# Training.


def test_codebooks_have_the_gradients_of_their_weights():
  plan = {QUERY: TENSOR, OUT: CHANNEL, MLP: Grid(4)}
  small = tensors.quantise(params(), plan)
  start = kmeans.centroids(small)
  assert {path: x.shape for path, x in start.items()} == {
    QUERY: (8, 1), OUT: (8, D),
  }  # fmt: skip
  rng = np.random.default_rng(0)
  direction = {
    QUERY: rng.normal(size=(D, H, K)), OUT: rng.normal(size=(H, K, D)),
  }  # fmt: skip

  def total(centroids):
    numbers = tensors.dequantise(kmeans.with_centroids(small, centroids))
    flat = tensors.flatten(numbers)
    return sum((flat[path] * x).sum() for path, x in direction.items())

  gradient = jax.jit(jax.grad(total))(start)
  codes = np.ravel(tensors.flatten(small)[QUERY].codes)
  expected = np.bincount(codes, direction[QUERY].ravel(), 8)
  np.testing.assert_allclose(gradient[QUERY][:, 0], expected, rtol=1e-5)
  codes_KN = np.asarray(tensors.flatten(small)[OUT].codes)
  for n in range(D):
    own = direction[OUT].reshape(-1, D)[:, n]
    expected = np.bincount(codes_KN[:, n], own, 8)
    np.testing.assert_allclose(
      gradient[OUT][:, n], expected, rtol=1e-5, atol=1e-6
    )


def test_codes_stay_and_codebooks_learn():
  small = tensors.quantise(params(), {MLP: Grid(2, 'tensor', rule='kmeans')})
  rng = np.random.default_rng(0)
  x_LD = rng.normal(size=(30, D)).astype('f4')
  mlp = params()['encoder']['layer_0']['mlp']['in']['kernel']
  wanted_LF = x_LD @ (1.3 * mlp)

  def error(centroids):
    numbers = tensors.dequantise(kmeans.with_centroids(small, centroids))
    found_LF = x_LD @ tensors.flatten(numbers)[MLP]
    return ((found_LF - wanted_LF) ** 2).mean()

  step = jax.jit(jax.value_and_grad(error))
  found, before = kmeans.centroids(small), None
  for _ in range(30):
    now, gradient = step(found)
    before = now if before is None else before
    found = jax.tree.map(lambda x, g: x - 0.1 * g, found, gradient)
  assert step(found)[0] < 0.7 * before
  after = tensors.flatten(kmeans.with_centroids(small, found))
  expected = tensors.flatten(small)
  np.testing.assert_array_equal(after[MLP].codes, expected[MLP].codes)
  # Of codebooks that are not given nothing changes.
  jax.tree.map(
    np.testing.assert_array_equal, kmeans.with_centroids(small, {}), small
  )


def test_codebooks_that_do_not_fit():
  small = tensors.quantise(params(), {MLP: TENSOR, OUT: Grid(4)})
  for path in (OUT, QUERY, 'other'):
    with pytest.raises(ValueError, match=f'for {path}, which has none'):
      kmeans.with_centroids(small, {path: jnp.ones((8, 1))})
  with pytest.raises(ValueError, match=r'has to be \(8, 1\), got \(4, 1\)'):
    kmeans.with_centroids(small, {MLP: jnp.ones((4, 1))})


def test_a_table_has_codebooks_of_its_rows():
  path = 'embedding/embedding'
  small = tensors.quantise(params(), {path: CHANNEL})
  table = tensors.flatten(small)[path]
  assert table.scale.shape == (8, Y)
  # Six numbers a row, and eight values: nothing is lost.
  np.testing.assert_array_equal(
    tensors.dequantised(table), params()['embedding']['embedding']
  )
