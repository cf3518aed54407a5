"""Masks: exact numbers, and what competes with what."""

import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from effformer.compress import patterns, tensors
from effformer.compress.prune import masks, units
from effformer.errors import ConfigError
from tests.compress.prune.models import classifier, some

OUT, QUERY = 'encoder/layer_0/mixer/out/kernel', 'a/mixer/query/kernel'
# Of 2 heads of 3, and of width 5: [6, 5] and [5, 6] as matrices.
SHAPES = {OUT: (2, 3, 5), QUERY: (5, 2, 3), 'mlp/in/kernel': (5, 7)}
MATRICES = {OUT: (6, 5), QUERY: (5, 6), 'mlp/in/kernel': (5, 7)}


def scores(seed=0, levels=0):
  """Normal numbers, or few different ones, so that there are ties."""
  rng = np.random.default_rng(seed)
  return {
    path: (
      rng.integers(0, levels, shape) if levels else rng.normal(size=shape)
    ).astype('f4')
    for path, shape in SHAPES.items()
  }


def kept_by_hand(x_N, count):
  """A stable sort: of equal ones the earlier stay."""
  order = sorted(range(len(x_N)), key=lambda i: (-x_N[i], i))
  return np.isin(np.arange(len(x_N)), order[:count])


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  x_N=hypothesis.extra.numpy.arrays('f4', 9, elements=st.integers(-2, 2)),
  count=st.integers(0, 9),
)
def test_the_highest(x_N, count):
  found = patterns.highest(x_N, count)
  np.testing.assert_array_equal(found, kept_by_hand(x_N, count))


@pytest.mark.parametrize('levels', [0, 3])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('within', masks.WITHIN)
def test_unstructured(within, share, levels):
  given = scores(levels=levels)
  found = masks.unstructured(given, share, within)
  assert {path: x.shape for path, x in found.items()} == SHAPES
  if within == 'model':
    x_N = np.concatenate([x.ravel() for x in given.values()])
    keep_N = np.concatenate([x.ravel() for x in found.values()])
    expected = kept_by_hand(x_N, x_N.size - round(share * x_N.size))
    np.testing.assert_array_equal(keep_N, expected)
    return
  for path, x in given.items():
    groups = np.ravel(x)[None]
    keep = np.ravel(found[path])[None]
    if within == 'output':
      groups, keep = (np.reshape(y, MATRICES[path]).T for y in (x, found[path]))
    for x_N, keep_N in zip(groups, keep, strict=True):
      expected = kept_by_hand(x_N, x_N.size - round(share * x_N.size))
      np.testing.assert_array_equal(keep_N, expected)


@pytest.mark.parametrize('levels', [0, 2])
@pytest.mark.parametrize(('n', 'm'), [(2, 4), (1, 4), (3, 4), (2, 2), (4, 9)])
def test_n_of_m(n, m, levels):
  given = scores(1, levels)
  for path, keep in masks.n_of_m(given, n, m).items():
    s_KN, keep_KN = (np.reshape(x, MATRICES[path]) for x in (given[path], keep))
    for column in range(s_KN.shape[1]):
      for start in range(0, s_KN.shape[0], m):
        part = np.s_[start : start + m, column]
        np.testing.assert_array_equal(
          keep_KN[part], kept_by_hand(s_KN[part], n)
        )
        size = min(m, s_KN.shape[0] - start)
        assert keep_KN[part].sum() == min(n, size)


PLACES = {'a:head': 3, 'b:head': 5, 'a:mlp': 8, 'b:mlp': 4}


@pytest.mark.parametrize('ratio', [0.0, 0.25, 0.6, 1.0])
def test_structured_in_each_place(ratio):
  rng = np.random.default_rng(3)
  given = {name: rng.normal(size=n) for name, n in PLACES.items()}
  found = masks.structured(given, ratio)
  assert list(found) == list(given)
  for name, x_N in given.items():
    count = max(1, x_N.size - round(ratio * x_N.size))
    np.testing.assert_array_equal(found[name], kept_by_hand(x_N, count))


@pytest.mark.parametrize('ratio', [0.0, 0.25, 0.6, 1.0])
def test_structured_in_the_model(ratio):
  """Kinds apart; the best of each place stays whatever its score."""
  rng = np.random.default_rng(3)
  given = {name: rng.normal(size=n) for name, n in PLACES.items()}
  # A place of which all others are better.
  given['b:mlp'] -= 100
  found = masks.structured(given, ratio, 'model')
  for kind in ('head', 'mlp'):
    names = [f'{place}:{kind}' for place in 'ab']
    raised = []
    for name in names:
      x_N = given[name].copy()
      x_N[x_N.argmax()] = 1e9
      raised.append(x_N)
      assert found[name][given[name].argmax()]
    x_N = np.concatenate(raised)
    count = max(2, x_N.size - round(ratio * x_N.size))
    expected = kept_by_hand(x_N, count)
    keep_N = np.concatenate([found[name] for name in names])
    np.testing.assert_array_equal(keep_N, expected)


@pytest.mark.parametrize('within', ['place', 'model'])
def test_layers_compete_in_the_model(within):
  given = {f'encoder/layer_{i}:layer': np.array([s]) for i, s in
           enumerate([0.3, 0.1, 0.4, 0.2])}  # fmt: skip
  found = masks.structured(given, 0.5, within)
  assert [bool(x[0]) for x in found.values()] == [True, False, True, False]
  found = masks.structured(given, 1.0, within)
  assert [bool(x[0]) for x in found.values()] == [False, False, True, False]


@pytest.mark.parametrize(
  ('call', 'error', 'words'),
  [
    (lambda: masks.unstructured(scores(), 1.5), ConfigError, 'sparsity.*1.5'),
    (lambda: masks.unstructured(scores(), np.nan), ConfigError, 'nan'),
    (lambda: masks.unstructured(scores(), 0.5, 'x'), ValueError, "'x'"),
    (lambda: masks.n_of_m(scores(), 0, 4), ConfigError, '0 of 4'),
    (lambda: masks.n_of_m(scores(), 5, 4), ConfigError, '5 of 4'),
    (lambda: masks.structured({'a:head': [1.0]}, -1), ConfigError, 'ratio.*-1'),
    (lambda: masks.structured(scores(), 0.5), ConfigError, 'single weights'),
    (
      lambda: masks.structured({'a:head': [1.0]}, 0, 'output'),
      ValueError,
      "'output'",
    ),
  ],
)
def test_what_cannot_be_masked(call, error, words):
  with pytest.raises(error, match=words):
    call()


# On parameters.


@functools.cache
def problem():
  rows = (('1', (('num_heads', 6), ('num_kv_heads', 2), ('mlp_width', 7))),)
  model = classifier(rows=rows, model__conv_width=3)
  found = units.of(model.config, model.params, units.KINDS)
  return model, found


@pytest.mark.parametrize('kind', units.KINDS)
def test_masking_is_zeros_where_units_leave_and_nowhere_else(kind):
  model, found = problem()
  own = {name: x for name, x in found.items() if x.kind == kind}
  keep = {name: some(x.shape, i) for i, (name, x) in enumerate(own.items())}
  if kind == 'layer':
    keep['encoder/layer_1:layer'] = np.array([False])
  flat = tensors.flatten(model.params)
  masked = tensors.flatten(masks.apply(model.params, keep, found))
  again = masks.apply(masks.apply(model.params, keep, found), keep, found)
  jax.tree.map(np.testing.assert_array_equal, tensors.flatten(again), masked)
  expected = {path: np.array(x) for path, x in flat.items()}
  for name, mask in keep.items():
    parts = own[name].exits if kind == 'layer' else own[name].parts
    for part in parts:
      x = expected[part.path]
      if kind == 'weight':
        x[~mask] = 0
      for unit in np.flatnonzero(~mask) if kind != 'weight' else ():
        index = (slice(None),) * (part.axis or 0)
        start = unit * part.width
        x[... if part.axis is None else
          (*index, slice(start, start + part.width))] = 0  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, masked, expected)
  assert any((masked[path] != flat[path]).any() for path in flat)


def test_what_is_masked_twice_counts_once():
  model, found = problem()
  path = 'encoder/layer_0/mlp/in/kernel'
  weights = np.ones((12, 10), bool)
  weights[:, 3] = False
  weights[0] = False
  columns = np.arange(10) != 3
  facts = masks.sparsity(
    model.params, {path: weights, 'encoder/layer_0:mlp': columns}, found
  )
  # Of the column 12 + 1 + 12, and of row 0 nine more.
  assert facts.num_removed == 25 + 9
  sizes = [x.size for x in jax.tree.leaves(model.params)]
  assert facts.num_params == sum(sizes)
  assert facts.fraction == facts.num_removed / facts.num_params
  assert facts.kept == {path: (99, 120), 'encoder/layer_0:mlp': (9, 10)}
  # A block leaves as a whole, though only its exits are zeros.
  block = model.params['encoder']['layer_2']
  facts = masks.sparsity(
    model.params, {'encoder/layer_2:layer': np.array([False])}, found
  )
  assert facts.num_removed == sum(x.size for x in jax.tree.leaves(block))


def test_masks_of_another_model():
  model, found = problem()
  for keep, words in (
    ({'encoder/layer_7:mlp': np.ones(10, bool)}, 'layer_7:mlp'),
    ({'encoder/layer_1:mlp': np.ones(10, bool)}, r'\(10,\).*\(7,\)'),
  ):
    for call in (masks.apply, masks.sparsity):
      with pytest.raises(ConfigError, match=words):
        call(model.params, keep, found)


def test_a_post_norm_layer_cannot_be_masked():
  model = classifier(model__norm_order='post')
  found = units.of(model.config, model.params, ('layer',))
  keep = {'encoder/layer_1:layer': np.array([False])}
  with pytest.raises(ConfigError, match='drop_layers'):
    masks.apply(model.params, keep, found)
