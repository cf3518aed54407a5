"""Products of two matrices: the best of their rank, and models made of them."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from configs import common
from effformer import config_check
from effformer.compress import calibrate, low_rank, tensors
from effformer.errors import ConfigError
from effformer.models import build
from tests.compress.prune.models import IDS_BT, LENGTHS_B, classifier

K, N, R = 9, 6, 2
RNG = np.random.default_rng(0)
W_KN = RNG.normal(size=(K, N))
# Inputs that are correlated, and of very different sizes.
X_LK = RNG.normal(size=(40, K)) @ RNG.normal(size=(K, K)) * 2.0 ** -np.arange(K)
GRAM_KK = X_LK.T @ X_LK


def damped(damp):
  return GRAM_KK + damp * np.trace(GRAM_KK) / K * np.eye(K)


def loss(w_KN, gram_KK):
  """The sum of squares of x W over the inputs."""
  return np.trace(w_KN.T @ gram_KK @ w_KN)


def product(*arguments, **keywords):
  a_KM, b_MN = low_rank.product(*arguments, **keywords)
  assert a_KM.dtype == b_MN.dtype == np.float32
  return a_KM.astype('f8') @ b_MN


def test_the_nearest_product_is_that_of_eckart_and_young():
  values_N = np.sqrt(np.linalg.eigvalsh(W_KN.T @ W_KN)[::-1])
  for rank in (1, R, N):
    found_KN = product(W_KN, rank)
    assert np.linalg.matrix_rank(found_KN, tol=1e-5) == rank
    error = ((W_KN - found_KN) ** 2).sum()
    np.testing.assert_allclose(error, (values_N[rank:] ** 2).sum(), atol=1e-5)


def test_singular_values_are_split_evenly():
  a_KM, b_MN = low_rank.product(W_KN, R)
  values_M = np.linalg.svd(W_KN, compute_uv=False)[:R]
  np.testing.assert_allclose(a_KM.T @ a_KM, np.diag(values_M), atol=1e-5)
  np.testing.assert_allclose(b_MN @ b_MN.T, np.diag(values_M), atol=1e-5)


@pytest.mark.parametrize('damp', [1e-4, 0.1])
def test_outputs_on_the_inputs_are_the_nearest(damp):
  gram_KK = damped(damp)
  found_KN = product(W_KN, R, GRAM_KK, damp=damp)
  error = loss(W_KN - found_KN, gram_KK)
  # The discarded singular values, by another square root: a Cholesky factor.
  upper_KK = np.linalg.cholesky(gram_KK).T
  values_N = np.linalg.svd(upper_KK @ W_KN, compute_uv=False)
  np.testing.assert_allclose(error, (values_N[R:] ** 2).sum(), rtol=1e-4)
  plain_KN = product(W_KN, R)
  assert error < 0.9 * loss(W_KN - plain_KN, gram_KK)


def test_no_other_product_of_the_rank_is_nearer():
  gram_KK = damped(0.01)
  a_KM, b_MN = low_rank.product(W_KN, R, GRAM_KK, damp=0.01)
  error = loss(W_KN - a_KM @ b_MN, gram_KK)
  rng = np.random.default_rng(1)
  for size in (1e-3, 1e-2, 0.1, 1):
    for _ in range(50):
      other_KM = a_KM + size * rng.normal(size=a_KM.shape)
      other_MN = b_MN + size * rng.normal(size=b_MN.shape)
      assert loss(W_KN - other_KM @ other_MN, gram_KK) > error
      # Also with the best B there is for this A.
      best_MN = np.linalg.solve(
        other_KM.T @ gram_KK @ other_KM, other_KM.T @ gram_KK @ W_KN
      )
      assert loss(W_KN - other_KM @ best_MN, gram_KK) > error * (1 - 1e-6)


def test_inputs_that_are_few_or_none():
  """Of two directions a product of rank two keeps all."""
  x_LK = RNG.normal(size=(2, K))
  gram_KK = (x_LK.T @ x_LK).astype('f4')
  found_KN = product(W_KN, 2, gram_KK, damp=1e-6)
  np.testing.assert_allclose(x_LK @ found_KN, x_LK @ W_KN, atol=1e-2)
  assert np.abs(x_LK @ product(W_KN, 2) - x_LK @ W_KN).max() > 0.1
  nothing = product(W_KN, R, np.zeros((K, K)))
  np.testing.assert_allclose(nothing, product(W_KN, R), atol=1e-5)


def test_what_is_no_product():
  for rank in (0, N + 1):
    with pytest.raises(ValueError, match='is 1 to 6'):
      low_rank.product(W_KN, rank)
  with pytest.raises(ValueError, match='damp has to be above 0'):
    low_rank.product(W_KN, R, GRAM_KK, damp=0)
  with pytest.raises(ValueError, match='9 inputs needs their Gram'):
    low_rank.product(W_KN, R, np.eye(N))


def test_what_ranks_are_worth():
  for k, n in ((12, 10), (10, 12), (4, 4), (1, 7), (384, 1536)):
    for rank in range(1, 9):
      fewer = k * rank + rank * n < k * n
      assert low_rank.worth(k, n, rank) == fewer
    for share in (0.1, 0.5, 1.0):
      rank = low_rank.rank_for(k, n, share)
      assert rank == 1 or rank * (k + n) <= share * k * n
      assert (rank + 1) * (k + n) > share * k * n
  assert low_rank.rank_for(384, 1536, 0.5) == 153
  for share in (0, 1.1):
    with pytest.raises(ValueError, match='above 0 and at most 1'):
      low_rank.rank_for(4, 4, share)


# Whole models.

ROWS = (('0', (('share', 'a'),)), ('2', (('share', 'a'),)))


def merged(params):
  """Parameters with full matrices in place of the products."""
  flat = tensors.flatten(params)
  full = {}
  for path, x in flat.items():
    low = path.replace('/kernel', '_low/kernel')
    if path == 'embedding/embedding' and 'embedding_out/kernel' in flat:
      full[path] = x @ flat['embedding_out/kernel']
    elif path.endswith('/kernel') and low in flat:
      full[path] = flat[low] @ x
    elif '_low/' not in path and path != 'embedding_out/kernel':
      full[path] = x
  return full


def test_a_factorised_model_is_that_of_its_products():
  model = classifier(rows=ROWS)
  ranks = {'encoder/shared_a/mlp': 2, 'encoder/layer_1/mlp': 3, 'embedding': 4}
  config, params = low_rank.factorise(model.config, model.params, ranks)
  config_check.check(config, common)
  assert config.model.embedding_width == 4
  assert config.model.layers.to_dict() == {
    '0': {'share': 'a', 'mlp_rank': 2},
    '1': {'mlp_rank': 3},
    '2': {'share': 'a', 'mlp_rank': 2},
  }
  full, before = merged(params), tensors.flatten(model.params)
  assert set(full) == set(before)
  ours = {path for path in full if not np.array_equal(full[path], before[path])}
  assert ours == {
    'embedding/embedding',
    *(
      f'encoder/{name}/mlp/{part}/kernel'
      for name in ('shared_a', 'layer_1') for part in ('in', 'out')
    ),
  }  # fmt: skip
  for path, rank in (
    ('encoder/shared_a/mlp/in/kernel', 2),
    ('encoder/layer_1/mlp/out/kernel', 3),
    ('embedding/embedding', 4),
  ):
    np.testing.assert_allclose(
      full[path], product(before[path], rank), rtol=1e-4, atol=1e-5
    )
  whole = flax.traverse_util.unflatten_dict(full, sep='/')
  np.testing.assert_allclose(
    model.outputs(config, params), model.outputs(params=whole), atol=1e-5
  )
  sizes = [sum(x.size for x in jax.tree.leaves(p)) for p in (params, whole)]
  assert sizes[0] < sizes[1]


def test_moments_make_outputs_nearer():
  model = classifier()
  module = build.sequence_classifier(model.config, 11, 3)
  batches = [(IDS_BT, LENGTHS_B)]
  moments = calibrate.collect(module, model.params, batches)
  found = {}
  for name, own in (('plain', None), ('seen', moments)):
    config, params = low_rank.factorise(
      model.config, model.params, 4, moments=own
    )
    assert {row['mlp_rank'] for row in config.model.layers.values()} == {4}
    full, errors = merged(params), {}
    for path, x in tensors.flatten(model.params).items():
      if '/mlp/' in path and path.endswith('kernel'):
        gram_KK = np.asarray(moments[path].gram_KK, 'f8')
        errors[path] = loss(np.asarray(x, 'f8') - full[path], gram_KK)
    found[name] = errors
  assert len(found['seen']) == 6
  for path, error in found['seen'].items():
    assert error < 0.9 * found['plain'][path]
  # Those of a product are collected in their turn.
  low = build.sequence_classifier(config, 11, 3)
  again = calibrate.collect(low, params, batches)
  assert again['encoder/layer_0/mlp/out/kernel'].gram_KK.shape == (4, 4)
  assert again['encoder/layer_0/mlp/out_low/kernel'].gram_KK.shape == (10, 10)


def test_models_that_cannot_be_factorised():
  model = classifier()

  def refused(words, rank, config=model.config, params=model.params, **more):
    with pytest.raises(ConfigError, match=words):
      low_rank.factorise(config, params, rank, **more)

  place = 'encoder/layer_0/mlp'
  refused('there is no encoder/layer_7/mlp', {'encoder/layer_7/mlp': 2})
  # [12, 10]: 5 * 22 is below 120, 6 * 22 is not.
  refused('Use a rank from 1 to 5', {place: 6})
  refused('Use a rank from 1 to 5', 0)
  # [11, 12]: 5 * 23 is below 132.
  refused('Use a rank from 1 to 5', {'embedding': 6})
  low = low_rank.factorise(
    model.config, model.params, {place: 5, 'embedding': 5}
  )
  for name in (place, 'embedding'):
    with pytest.raises(ConfigError, match='a product of rank 5 already'):
      low_rank.factorise(*low, {name: 2})
  values = classifier(model__front_end='continuous')
  with pytest.raises(ConfigError, match='there is no embedding'):
    low_rank.factorise(values.config, values.params, {'embedding': 2})
  with pytest.raises(ValueError, match='no moments of the inputs of'):
    low_rank.factorise(model.config, model.params, 2, moments={})
