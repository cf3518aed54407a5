"""Whole models whose kernels have patterns, by SparseGPT and by magnitude."""

import jax
import numpy as np
import pytest

from effformer.compress import artefact, calibrate, gptq, measuring, tensors
from effformer.compress.grid import Grid
from effformer.compress.prune import sparsegpt
from effformer.errors import ConfigError
from tests.compress.gptq_test import K, N, problem
from tests.compress.prune.models import CLASSES, VOCABULARY, classifier

SPARSE = Grid(8, keep=2, of=4)


def texts(seed, rows=64, length=9):
  rng = np.random.default_rng(seed)
  ids_BT = rng.integers(1, VOCABULARY, (rows, length))
  return ids_BT, np.full(rows, length)


@pytest.fixture(scope='module')
def model():
  return classifier()


def compressed(model, params):
  return artefact.Compressed(
    model.config, model.kind, VOCABULARY, CLASSES, False, params, 'x'
  )


@pytest.fixture(scope='module')
def rounded(model):
  """The same pattern by the inputs of kernels, and by magnitude."""
  params = model.params
  module = compressed(model, params).module
  moments = calibrate.collect(module, params, [texts(0)])
  plan = tensors.uniform_plan(params, SPARSE, tables=Grid(8))
  return (
    sparsegpt.quantise(params, plan, moments),
    tensors.quantise(params, plan),
  )


def test_outputs_are_closer_than_by_magnitude_on_other_texts(model, rounded):
  own = model._replace(inputs=texts(1))
  before_BY = own.outputs()
  errors = [
    np.square(own.outputs(params=tensors.dequantise(x)) - before_BY).mean()
    for x in rounded
  ]
  assert 0 < errors[0] < 0.7 * errors[1]


def test_n_of_m_are_left_after_reading(model, rounded, tmp_path):
  for number, params in enumerate(rounded):
    artefact.save(compressed(model, params), tmp_path / str(number))
    again = artefact.load(tmp_path / str(number)).params
    jax.tree.map(np.testing.assert_array_equal, again, params)
    for path, x in tensors.flatten(again).items():
      if not isinstance(x, tensors.QTensor):
        continue
      assert x.grid == (Grid(8) if x.is_table else SPARSE)
      # Widths of 12 and 10: the last group of 10 has two.
      counts = [
        np.count_nonzero(x.codes[start : start + 4], axis=0)
        for start in range(0, len(x.codes), 4)
      ]
      if x.is_table:
        assert np.max(counts) == 4
        continue
      assert np.max(counts) == 2, path
      # Of those that stay a few are rounded to 0.
      assert np.mean(counts) > 1.9


def test_the_plan_says_which_pattern(model, rounded):
  shown = measuring.plan(compressed(model, rounded[0]))
  words = {row['part']: row['bits'] for row in shown}
  assert words.pop('embedding/embedding') == '8 a channel'
  assert {*words.values()} == {'8 a channel, 2 of 4 inputs'}


def test_grids_without_a_pattern_are_rounded_by_gptq():
  w_KN, x_RK = problem()
  gram_KK = x_RK.T @ x_RK
  params = {name: {'kernel': w_KN} for name in 'abc'} | {'positions': w_KN}
  plan = {
    'a/kernel': Grid(3), 'b/kernel': Grid(3, keep=2, of=4),
    'c/kernel': Grid(3, keep=2, of=4), 'positions': Grid(4),
  }  # fmt: skip
  moments = {
    path: calibrate.Moments(gram_KK, 0, 0, 0)
    for path in ('a/kernel', 'b/kernel')
  }
  s_K = np.linspace(0.5, 2, K).astype('f4')
  for factors in ({}, {'b/kernel': s_K}):
    found = sparsegpt.quantise(params, plan, moments, factors=factors, damp=0.1)
    dense = {path: grid for path, grid in plan.items() if not grid.keep}
    by_gptq = gptq.quantise(params, dense, moments, damp=0.1)
    for path in ('a', 'positions'):
      jax.tree.map(np.testing.assert_array_equal, found[path], by_gptq[path])
    scale_K = s_K if factors else np.ones(K, 'f4')
    own = sparsegpt.sparsegpt(
      scale_K[:, None] * w_KN, gram_KK / np.outer(scale_K, scale_K), (2, 4),
      grid=plan['b/kernel'], damp=0.1,
    )  # fmt: skip
    np.testing.assert_array_equal(found['b']['kernel'].codes, own.codes_KN)
    np.testing.assert_array_equal(found['b']['kernel'].scale, own.scales.scale)
    # Of inputs that are not known the greatest weights stay.
    plain = tensors.quantise(params, plan)
    jax.tree.map(np.testing.assert_array_equal, found['c'], plain['c'])
    assert np.any(found['b']['kernel'].codes != plain['b']['kernel'].codes)
    assert found['b']['kernel'].codes.shape == (K, N)
  with pytest.raises(ConfigError, match='which the model does not have'):
    sparsegpt.quantise(params, {'d/kernel': SPARSE}, moments)
