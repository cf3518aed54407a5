"""Layers that are left out of training steps."""

import functools
import itertools

import jax
import numpy as np
import pytest

from effformer import attention
from effformer.models import build, encoder
from tests.models.build_test import make_config
from tests.models.encoder_test import (
  TOKENS,
  X_BTD,
  jitted,
  layer,
  parameters_of,
)
from tests.models.parameters import random_variables


@functools.cache
def of_subsets(num_layers):
  """Outputs of an encoder of each subset of some layers, block by block."""
  kind = layer()
  params = parameters_of(encoder.Encoder((kind,) * num_layers))['params']
  block = jax.jit(
    lambda p, x: encoder.Block(kind).apply(
      {'params': p}, x, tokens=TOKENS, deterministic=True
    )[0]
  )
  norm = jitted(encoder.Encoder(()))
  found = {}
  for kept in itertools.product((False, True), repeat=num_layers):
    x_BTD = X_BTD
    for index in np.flatnonzero(kept):
      x_BTD = block(params[f'layer_{index}'], x_BTD)
    norm_out = {'params': {'norm_out': params['norm_out']}}
    found[kept] = norm(norm_out, x_BTD)
  return found


@pytest.mark.parametrize(
  ('scan_from', 'remat'), [(1, False), (1, True), (99, True)]
)
def test_layers_are_left_out_of_training_steps(monkeypatch, scan_from, remat):
  """Each step is that of some of the layers, and not always of the same."""
  monkeypatch.setattr(encoder, 'SCAN_FROM', scan_from)
  module = encoder.Encoder((layer(),) * 3, layer_drop=0.5, remat=remat)
  params = parameters_of(module)

  @jax.jit
  def step(params, seed):
    """The output, and a gradient."""

    def total(params):
      y_BTD = module.apply(
        params,
        X_BTD,
        tokens=TOKENS,
        deterministic=False,
        rngs={'dropout': jax.random.key(seed)},
      )
      return (y_BTD**3).sum(), y_BTD

    gradient, y_BTD = jax.grad(total, has_aux=True)(params)
    return y_BTD, gradient['params']

  seen = set()
  for seed in range(4):
    y_BTD, gradient = step(params, seed)
    (kept,) = (
      kept
      for kept, expected_BTD in of_subsets(3).items()
      if np.allclose(y_BTD, expected_BTD, atol=1e-5)
    )
    seen.add(kept)
    # A block that is left out has no gradient; the others do.
    for index in range(3):
      leaves = jax.tree.leaves(gradient[f'layer_{index}'])
      assert any(np.any(g) for g in leaves) == kept[index]
  assert len(seen) > 2
  # Not only all or none.
  assert any(0 < sum(kept) < 3 for kept in seen)


def test_evaluation_has_all_layers():
  plain = encoder.Encoder((layer(),) * 3)
  dropped = encoder.Encoder((layer(),) * 3, layer_drop=0.9)
  params = parameters_of(plain)
  np.testing.assert_array_equal(
    jitted(dropped)(params, X_BTD), jitted(plain)(params, X_BTD)
  )


def test_layers_are_left_out_as_often_as_asked():
  # So large that the last norm only divides, by 1000.
  module = encoder.Encoder(
    (layer(share='a'),) * 40, layer_drop=0.3, norm_epsilon=1e6
  )
  params = jax.tree.map(np.zeros_like, parameters_of(module))
  # Each layer that is there adds 1 to one value.
  params['params']['shared_a']['mlp']['out']['bias'][0] = 1
  params['params']['norm_out']['scale'] += 1

  @jax.jit
  def count(seed):
    y_BTD = module.apply(
      params,
      np.zeros_like(X_BTD),
      tokens=TOKENS,
      deterministic=False,
      rngs={'dropout': jax.random.key(seed)},
    )
    return 1000 * (y_BTD[0, 0, 0] - y_BTD[0, 0, 1])

  counts = [float(count(seed)) for seed in range(30)]
  np.testing.assert_allclose(counts, np.round(counts), atol=0.01)
  assert len({round(number) for number in counts}) > 5
  assert np.mean(counts) / 40 == pytest.approx(0.7, abs=0.05)


def in_training(config):
  """The outputs of (params) in a step of a classifier, and parameters."""
  module = build.sequence_classifier(config, 11, 3)
  ids_BT, lengths_B = np.ones((2, 16), np.int32), np.array([16, 9])
  rngs = {'dropout': jax.random.key(0)}
  variables = random_variables(module, ids_BT, lengths_B)
  return lambda variables: module.apply(
    variables, ids_BT, lengths_B, deterministic=False, rngs=rngs
  ), variables


def test_a_model_leaves_layers_out():
  whole, part = (
    in_training(make_config(model__layer_drop=rate)) for rate in (0.0, 0.99)
  )
  y_BC, other_BC = (step(variables) for step, variables in (whole, part))
  assert np.abs(y_BC - other_BC).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('mechanism', attention.TABLE)
def test_every_mechanism_can_be_left_out(mechanism):
  """In bfloat16, where a block has to return what it was given; only traced."""
  keys = {'model__num_layers': 2, 'model__dtype': 'bfloat16'}
  counts = []
  for rate in (0.0, 0.2):
    config = make_config(
      mechanism, model__layer_drop=rate, model__remat=True, **keys
    )
    step, variables = in_training(config)
    gradient = jax.grad(lambda v, step=step: step(v).sum())
    counts.append(str(jax.make_jaxpr(gradient)(variables)).count(' cond['))
  # Forwards, again, and backwards.
  assert counts[1] >= counts[0] + 2


@pytest.mark.parametrize(
  'keys', [{'layer_drop': 1.0}, {'layer_drop': -0.1},
           {'layer_drop': 0.2, 'reversible': True}]
)  # fmt: skip
def test_rates_of_left_out_layers_that_cannot_be(keys):
  with pytest.raises(ValueError, match='layer_drop must be in'):
    encoder.Encoder((layer(),), **keys)
