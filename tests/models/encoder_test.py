"""The stack: per-layer facts, sharing, scanning, recomputing, masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import shapes
from effformer.attention.primitives import one_by_one
from effformer.models import encoder, layers
from tests.models.parameters import random_variables

B, T, D, H, F = 2, 7, 12, 3, 10
X_BTD = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
TOKENS = shapes.Tokens.from_lengths(jnp.array([7, 4]), T)


def layer(mixer='full', **facts):
  # The dense form has the least to compile.
  dense = (('form', 'dense'),) if mixer == 'full' else ()
  settings = facts.pop('settings', dense)
  return encoder.LayerConfig(
    mixer=mixer, settings=(*settings, ('num_heads', H)), mlp_width=F, **facts
  )


def parameters_of(module):
  return random_variables(module, X_BTD, tokens=TOKENS)


def jitted(module):
  """The jitted output of (params, x_BTD), at TOKENS."""
  return jax.jit(lambda params, x: module.apply(params, x, tokens=TOKENS))


def test_each_layer_has_parameters_of_its_own_facts():
  wide = dataclasses.replace(layer('local'), mlp_width=F + 3, conv_width=3)
  module = encoder.Encoder((layer(), wide))
  tree = parameters_of(module)['params']
  assert sorted(tree) == ['layer_0', 'layer_1', 'norm_out']
  assert tree['layer_0']['mlp']['in']['kernel'].shape == (D, F)
  assert tree['layer_1']['mlp']['in']['kernel'].shape == (D, F + 3)
  assert tree['layer_1']['conv']['filter'].shape == (3, D)
  assert 'conv' not in tree['layer_0']


def test_layers_start_apart():
  module = encoder.Encoder((layer('linear'),) * 2)
  # Only what is returned is compiled.
  first, second = jax.jit(
    lambda key: [
      module.init(key, X_BTD, tokens=TOKENS)['params'][name]['mlp']['in'][
        'kernel'
      ]
      for name in ('layer_0', 'layer_1')
    ]
  )(jax.random.key(0))
  assert np.all(first != second)


@pytest.mark.parametrize('change', ['type', 'shape', 'structure'])
def test_layers_whose_parameters_differ_in_form_are_not_stacked(change):
  """Compressed models have other arrays where layers have other grids."""
  layers = (layer(),) * 5
  names = encoder.layer_names(layers)
  params = {name: {'x': np.ones((2, 3), 'f4')} for name in names}
  (one,) = encoder._runs(layers, names, params)
  assert one.indices == (0, 1, 2, 3, 4)
  params['layer_3'] = {
    'type': {'x': np.ones((2, 3), 'i1')},
    'shape': {'x': np.ones((3, 2), 'f4')},
    'structure': {'x': (np.ones((2, 3), 'f4'),)},
  }[change]
  runs = encoder._runs(layers, names, params)
  assert [run.indices for run in runs] == [(0, 1, 2), (3,), (4,)]
  assert [run.is_scanned for run in runs] == [True, False, False]


def test_scanned_layers_equal_one_at_a_time():
  module = encoder.Encoder((layer(),) * 4)
  params = parameters_of(module)
  scanned_BTD = jitted(module)(params, X_BTD)
  apart = dataclasses.replace(module, unrolled=True)
  loops = [
    str(jax.make_jaxpr(jitted(m))(params, X_BTD)).count('length=4')
    for m in (module, apart)
  ]
  assert loops == [1, 0]
  unrolled = jitted(apart)
  unrolled_BTD = unrolled(params, X_BTD)
  np.testing.assert_allclose(scanned_BTD, unrolled_BTD, atol=1e-5)
  swapped = {
    **params['params'],
    'layer_0': params['params']['layer_3'],
    'layer_3': params['params']['layer_0'],
  }
  other_BTD = unrolled({'params': swapped}, X_BTD)
  assert np.abs(other_BTD - unrolled_BTD).max() > 0.1


def test_hybrids_apply_their_layers_in_order():
  kinds = (layer(), layer('local', settings=(('window', 2),)), layer('linear'))
  params = parameters_of(encoder.Encoder(kinds))
  expected_BTD = X_BTD
  for index, kind in enumerate(kinds):
    block = encoder.Block(kind)
    block_params = params['params'][f'layer_{index}']
    expected_BTD = jax.jit(
      lambda p, x, block=block: block.apply(
        {'params': p}, x, tokens=TOKENS, deterministic=True
      )[0]
    )(block_params, expected_BTD)
  actual_BTD = jitted(encoder.Encoder(kinds))(params, X_BTD)
  mean_BT1 = expected_BTD.mean(axis=-1, keepdims=True)
  std_BT1 = expected_BTD.std(axis=-1, keepdims=True)
  bias_D = params['params']['norm_out']['bias']
  np.testing.assert_allclose(
    actual_BTD,
    (expected_BTD - mean_BT1) / std_BT1 + bias_D[None, None],
    atol=1e-4,
  )


@pytest.mark.parametrize('scan_from', [1, 99])
def test_a_share_group_has_one_set_of_parameters(monkeypatch, scan_from):
  monkeypatch.setattr(encoder, 'SCAN_FROM', scan_from)
  module = encoder.Encoder((layer(share='all'),) * 3)
  params = parameters_of(module)
  tree = params['params']
  assert sorted(tree) == ['norm_out', 'shared_all']
  shared_BTD = jitted(module)(params, X_BTD)
  copied = {f'layer_{i}': tree['shared_all'] for i in range(3)}
  copied = {'params': {**copied, 'norm_out': tree['norm_out']}}
  monkeypatch.setattr(encoder, 'SCAN_FROM', 99)
  copied_BTD = jitted(encoder.Encoder((layer(),) * 3))(copied, X_BTD)
  np.testing.assert_allclose(shared_BTD, copied_BTD, atol=1e-5)


def test_layers_of_a_share_group_must_be_alike():
  module = encoder.Encoder((layer(share='a'), layer('linear', share='a')))
  with pytest.raises(ValueError, match='share'):
    parameters_of(module)


LONG = 512


@functools.cache
def compiled_gradient(num_layers, remat):
  """The compiled gradient (params, x_BTD) -> grads, and parameters for it."""
  module = encoder.Encoder((layer('linear'),) * num_layers, remat=remat)
  x_BTD = jax.ShapeDtypeStruct((B, LONG, D), jnp.float32)
  tokens = shapes.Tokens.from_lengths(jnp.full(B, LONG), LONG)
  params = random_variables(module, x_BTD, tokens=tokens)

  def loss(params, x_BTD):
    return jnp.mean(module.apply(params, x_BTD, tokens=tokens) ** 3)

  return jax.jit(jax.grad(loss)).lower(params, x_BTD).compile(), params


def test_recomputing_changes_no_gradient():
  x_BTD = np.random.default_rng(1).normal(size=(B, LONG, D))
  (plain, params), (remat, _) = (
    compiled_gradient(3, remat) for remat in (False, True)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    plain(params, x_BTD.astype(np.float32)),
    remat(params, x_BTD.astype(np.float32)),
  )


def test_recomputing_keeps_the_input_of_each_layer_alone():
  """Memory of the backward pass, in arrays of [B, T, D] for one more layer.

  Only for scanned layers: XLA:CPU merges what is recomputed in unrolled ones
  with what was computed.
  """

  def arrays(num_layers, remat):
    compiled, _ = compiled_gradient(num_layers, remat)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return memory / (4 * B * LONG * D)

  assert 1 <= (arrays(7, True) - arrays(3, True)) / 4 < 2
  # All else that three layers keep; it is the same in each of them.
  assert arrays(3, False) - arrays(3, True) > 3 * 10


@pytest.mark.parametrize('norm_order', ['pre', 'post'])
def test_padding_is_never_read(norm_order):
  kinds = (layer(conv_width=5), layer('local', conv_width=3))
  module = encoder.Encoder(kinds, norm_order=norm_order)
  params, apply = parameters_of(module), jitted(module)
  garbage_BTD = np.where(TOKENS.keep_BT[..., None], X_BTD, np.float32(1e3))
  y_BTD, other_BTD = apply(params, X_BTD), apply(params, garbage_BTD)
  np.testing.assert_allclose(y_BTD[1, :4], other_BTD[1, :4], atol=1e-6)
  np.testing.assert_allclose(y_BTD[0], other_BTD[0], atol=1e-6)


def test_post_norm_ends_normalised_and_pre_norm_differs():
  post, pre = (
    encoder.Encoder((layer(),), norm_order=order) for order in ('post', 'pre')
  )
  params = parameters_of(post)
  assert 'norm_out' not in params['params']
  norm = params['params']['layer_0']['norm_mlp']
  norm['bias'] = np.zeros_like(norm['bias'])
  post_BTD = jitted(post)(params, X_BTD)
  np.testing.assert_allclose(post_BTD.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(post_BTD.std(-1), 1, atol=1e-3)
  identity = {'scale': np.ones(D), 'bias': np.zeros(D)}
  pre_params = {'params': {**params['params'], 'norm_out': identity}}
  pre_BTD = jitted(pre)(pre_params, X_BTD)
  assert np.abs(pre_BTD - post_BTD).max() > 0.1


@pytest.mark.parametrize('scan_from', [1, 99])
def test_dropout_differs_between_layers_and_keys(monkeypatch, scan_from):
  """Each layer adds 0 or 2 to each value, and the final norm keeps apart what
  differs: one mask for all layers would leave two values a token.
  """
  monkeypatch.setattr(encoder, 'SCAN_FROM', scan_from)
  module = encoder.Encoder((layer(share='all'),) * 3, dropout=0.5)
  params = jax.tree.map(np.zeros_like, parameters_of(module))
  params['params']['shared_all']['mlp']['out']['bias'] += 1
  params['params']['norm_out']['scale'] += 1

  @jax.jit
  def apply(seed):
    return module.apply(
      params,
      np.zeros_like(X_BTD),
      tokens=TOKENS,
      deterministic=False,
      rngs={'dropout': jax.random.key(seed)},
    )

  first_BTD = np.asarray(apply(0))
  np.testing.assert_array_equal(first_BTD, apply(0))
  assert np.abs(first_BTD - apply(1)).max() > 0.1
  values = [
    np.unique(row_D.round(4)).size for row_D in first_BTD.reshape(-1, D)
  ]
  assert max(values) in (3, 4)


def test_convolution_is_the_sum_over_neighbours():
  conv = layers.DepthwiseConvolution(3)
  params = random_variables(conv, X_BTD, TOKENS)
  filter_WD = np.asarray(params['params']['filter'])
  x_BTD = np.where(TOKENS.keep_BT[..., None], X_BTD, 0)
  expected_BTD = x_BTD + x_BTD * filter_WD[1]
  expected_BTD[:, 1:] += x_BTD[:, :-1] * filter_WD[0]
  expected_BTD[:, :-1] += x_BTD[:, 1:] * filter_WD[2]
  y_BTD, _ = jax.tree.map(
    np.asarray, jax.jit(conv.apply)(params, X_BTD, TOKENS)
  )
  keep_BT = np.asarray(TOKENS.keep_BT)
  np.testing.assert_allclose(
    y_BTD[keep_BT], expected_BTD[keep_BT], rtol=1e-5, atol=1e-6
  )


def test_causal_convolution_is_that_without_what_comes_later():
  centred = layers.DepthwiseConvolution(5)
  params = random_variables(centred, X_BTD, TOKENS)
  filter_WD = np.asarray(params['params']['filter'])
  past_WD = np.where(np.arange(5)[:, None] > 2, 0, filter_WD)
  expected_BTD, _ = centred.apply(
    {'params': {'filter': past_WD}}, X_BTD, TOKENS
  )
  causal = layers.DepthwiseConvolution(5, causal=True)
  y_BTD, _ = causal.apply(params, X_BTD, TOKENS)
  keep_BT = np.asarray(TOKENS.keep_BT)
  np.testing.assert_allclose(
    y_BTD[keep_BT], expected_BTD[keep_BT], rtol=1e-5, atol=1e-6
  )


def test_convolution_stays_within_a_packed_segment():
  tokens = shapes.Tokens(
    segment_BT=jnp.array([[1, 1, 1, 2, 2, 2, 0]] * B),
    position_BT=jnp.array([[0, 1, 2, 0, 1, 2, 0]] * B),
  )
  conv = layers.DepthwiseConvolution(5)
  params, apply = random_variables(conv, X_BTD, tokens), jax.jit(conv.apply)
  moved_BTD = X_BTD + 9 * (np.arange(T) >= 3)[None, :, None]
  y_BTD, other_BTD = (apply(params, x, tokens)[0] for x in (X_BTD, moved_BTD))
  np.testing.assert_array_equal(y_BTD[:, :3], other_BTD[:, :3])
  assert np.abs(y_BTD[:, 3:6] - other_BTD[:, 3:6]).max() > 1


def test_sinusoidal_positions_follow_the_formula():
  position_BT = jnp.array([[0, 1, 5]])
  p_BTD = np.asarray(layers.sinusoidal_positions(position_BT, 6))
  for t, position in enumerate([0, 1, 5]):
    for i in range(3):
      angle = position / 10_000 ** (2 * i / 6)
      np.testing.assert_allclose(p_BTD[0, t, i], np.sin(angle), atol=1e-6)
      np.testing.assert_allclose(p_BTD[0, t, 3 + i], np.cos(angle), atol=1e-6)


def test_heads_one_by_one_change_no_gradient_of_scanned_layers(monkeypatch):
  """As many heads as examples, which a mix-up of the two would survive."""
  module = encoder.Encoder((layer('linear', settings=()),) * 3)
  x_BTD = np.random.default_rng(1).normal(size=(H, T, D)).astype(np.float32)
  tokens = shapes.Tokens.from_lengths(jnp.array([7, 4, 6]), T)
  params = random_variables(module, x_BTD, tokens=tokens)

  def gradient(is_one_by_one):
    monkeypatch.setattr(one_by_one, 'is_faster', lambda *_: is_one_by_one)

    def loss(params):
      return (module.apply(params, x_BTD, tokens=tokens) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
    gradient(True),
    gradient(False),
  )
