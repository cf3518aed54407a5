"""Scores: against their definitions, and whatever order units are in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import calibrate, tensors
from effformer.compress.prune import scores as scores_lib
from effformer.compress.prune import units as units_lib
from effformer.errors import ConfigError
from effformer.models import build
from tests.compress.prune.models import CLASSES, VOCABULARY, classifier
from tests.compress.shrink_test import permuted

# Many models are compiled.
pytestmark = pytest.mark.slow

ALL = ('head', 'kv_group', 'mlp', 'layer', 'embedding', 'weight')
ROWS = (('1', (('num_heads', 6), ('num_kv_heads', 2), ('mlp_width', 7))),)


@functools.cache
def problem():
  """A model, its loss, and three batches of one row."""
  model = classifier(rows=ROWS, model__conv_width=3)
  module = build.sequence_classifier(model.config, VOCABULARY, CLASSES)

  def loss(params, batch):
    ids_BT, lengths_B, labels_B = batch
    logits_BC = module.apply({'params': params}, ids_BT, lengths_B)
    return -jax.nn.log_softmax(logits_BC)[jnp.arange(1), labels_B].mean()

  rng = np.random.default_rng(0)
  batches = [
    (rng.integers(1, VOCABULARY, (1, 6)), np.array([6 - i]), np.array([i]))
    for i in range(CLASSES)
  ]
  return model, loss, batches


def units_of(*kinds):
  model, _, _ = problem()
  return units_lib.of(model.config, model.params, kinds)


@functools.cache
def gradients():
  """Of each batch, by path."""
  model, loss, batches = problem()
  gradient = jax.jit(jax.grad(loss))
  return [
    {
      path: np.asarray(g, np.float64)
      for path, g in tensors.flatten(gradient(model.params, batch)).items()
    }
    for batch in batches
  ]


def shares(own, unit):
  """(path, index) of all that a unit has, and of its exits."""

  def index(part):
    if part.axis is None:
      return ...
    start = unit * part.width
    return (slice(None),) * part.axis + (slice(start, start + part.width),)

  return [[(p.path, index(p)) for p in own.parts],
          [(p.path, index(p)) for p in own.exits]]  # fmt: skip


@pytest.mark.parametrize('kind', ALL)
def test_magnitude(kind):
  units = units_of(kind)
  flat = tensors.flatten(problem()[0].params)
  found = scores_lib.magnitude(problem()[0].params, units)
  assert set(found) == set(units)
  for name, own in units.items():
    assert found[name].shape == own.shape
    if kind == 'weight':
      np.testing.assert_allclose(found[name], np.abs(flat[name]), rtol=1e-6)
      continue
    for unit in range(own.shape[0]):
      numbers = [flat[p][i].ravel() for p, i in shares(own, unit)[0]]
      expected = np.linalg.norm(np.concatenate(numbers))
      np.testing.assert_allclose(found[name][unit], expected, rtol=1e-5)


@pytest.mark.parametrize('kind', ALL)
def test_saliency(kind):
  model, loss, batches = problem()
  units = units_of(kind)
  flat = tensors.flatten(model.params)
  found = scores_lib.saliency(loss, model.params, batches, units)
  for name, own in units.items():
    if kind == 'weight':
      expected = np.mean([np.abs(flat[name] * g[name]) for g in gradients()], 0)
    else:
      expected = [
        np.mean([
          sum(np.abs(flat[p] * g[p])[i].sum() for p, i in shares(own, unit)[0])
          for g in gradients()
        ])
        for unit in range(own.shape[0])
      ]  # fmt: skip
    np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('kind', ['head', 'kv_group', 'mlp', 'layer'])
def test_taylor_is_the_gradient_of_a_mask(kind):
  """Masks of 1 on what leaves the units, which the loss is differentiated by.

  Of columns, what enters them is added: by its own sum.
  """
  model, loss, batches = problem()
  units = units_of(kind)
  flat = tensors.flatten(model.params)

  @jax.jit
  @jax.grad
  def by_masks(masks, batch):
    masked = dict(flat)
    for name, own in units.items():
      for part in own.exits:
        x = masked[part.path]
        masked[part.path] = x * units_lib.spread(masks[name], part, x.shape)
    tree = {}
    for path, x in masked.items():
      *places, last = path.split('/')
      node = functools.reduce(lambda n, k: n.setdefault(k, {}), places, tree)
      node[last] = x
    return loss(tree, batch)

  ones = {name: jnp.ones(own.shape) for name, own in units.items()}
  by_batch = [by_masks(ones, batch) for batch in batches]
  found = scores_lib.taylor(loss, model.params, batches, units)
  for name, own in units.items():
    expected = np.mean([np.abs(g[name]) for g in by_batch], axis=0)
    if kind == 'mlp':
      expected = expected + np.mean([
        [
          abs(sum(
            (flat[p] * g[p])[i].sum()
            for p, i in shares(own, unit)[0] if '/mlp/in/' in p
          ))
          for unit in range(own.shape[0])
        ]
        for g in gradients()
      ], axis=0)  # fmt: skip
    np.testing.assert_allclose(found[name], expected, rtol=2e-3, atol=1e-6)


def test_taylor_finds_the_head_that_matters():
  model, loss, batches = problem()
  flat = tensors.flatten(model.params)
  silent = dict(flat)
  path = 'encoder/layer_0/mixer/out/kernel'
  silent[path] = flat[path] * np.array([1, 0, 1])[:, None, None]
  units = units_of('head')
  orders = {name: np.arange(own.shape[0]) for name, own in units.items()}
  params = permuted(model.params, units, orders)
  params['encoder']['layer_0']['mixer']['out']['kernel'] = silent[path]
  found = scores_lib.taylor(loss, params, batches, units)
  scores = found['encoder/layer_0:head']
  assert scores[1] == 0 < min(scores[0], scores[2])


def test_what_taylor_cannot_judge():
  model, loss, batches = problem()
  with pytest.raises(ConfigError, match='a mask switches off'):
    scores_lib.taylor(loss, model.params, batches, units_of('weight'))
  with pytest.raises(ValueError, match='at least one batch'):
    scores_lib.taylor(loss, model.params, [], units_of('head'))


def test_wanda():
  model, _, batches = problem()
  module = build.sequence_classifier(model.config, VOCABULARY, CLASSES)
  # The convolution is no dense layer.
  moments = calibrate.collect(
    module, model.params, [batch[:2] for batch in batches]
  )
  found = scores_lib.wanda(model.params, moments)
  flat = tensors.flatten(model.params)
  assert set(found) == set(moments)
  path = 'encoder/layer_0/mixer/out/kernel'
  size_K = np.sqrt(np.diag(moments[path].gram_KK)).reshape(3, 4, 1)
  np.testing.assert_allclose(
    found[path], np.abs(flat[path]) * size_K, rtol=1e-5
  )
  path = 'encoder/layer_1/mixer/key/kernel'
  size_K = np.sqrt(np.diag(moments[path].gram_KK)).reshape(12, 1, 1)
  np.testing.assert_allclose(
    found[path], np.abs(flat[path]) * size_K, rtol=1e-5
  )


def test_chance_has_no_favourite():
  units = units_of('head', 'mlp')
  first, again, other = (
    scores_lib.random(jax.random.key(seed), units) for seed in (0, 0, 1)
  )
  names = list(units)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  values = np.concatenate([first[name] for name in names])
  assert len(np.unique(values)) == values.size
  assert not np.isin(values, np.concatenate([*other.values()])).any()
  # Not by the order in which units are named.
  turned = scores_lib.random(
    jax.random.key(0), {name: units[name] for name in reversed(names)}
  )
  jax.tree.map(np.testing.assert_array_equal, first, turned)


def test_normalised_scores_have_norm_one():
  given = {'a': np.array([3.0, 4.0]), 'b': np.zeros(3)}
  found = scores_lib.normalised(given)
  np.testing.assert_allclose(found['a'], [0.6, 0.8], rtol=1e-6)
  np.testing.assert_array_equal(found['b'], 0)


@pytest.mark.parametrize('method', ['magnitude', 'saliency', 'taylor'])
def test_scores_go_with_the_units(method):
  """Units in another order have the same scores, in that order."""
  model, batches = classifier(), problem()[2]
  module = build.sequence_classifier(model.config, VOCABULARY, CLASSES)

  def own_loss(params, batch):
    logits_BC = module.apply({'params': params}, *batch[:2])
    return -jax.nn.log_softmax(logits_BC)[jnp.arange(1), batch[2]].mean()

  units = units_lib.of(model.config, model.params, ('head', 'mlp'))
  rng = np.random.default_rng(2)
  orders = {name: rng.permutation(own.shape[0]) for name, own in units.items()}

  def score(params):
    if method == 'magnitude':
      return scores_lib.magnitude(params, units)
    return getattr(scores_lib, method)(own_loss, params, batches, units)

  first = score(model.params)
  other = score(permuted(model.params, units, orders))
  for name, order in orders.items():
    np.testing.assert_allclose(
      other[name], first[name][order], rtol=1e-3, atol=1e-6
    )
