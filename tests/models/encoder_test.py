"""The stack: per-layer facts, sharing, scanning, recomputing, masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import shapes
from effformer.models import encoder, layers

B, T, D, H, F = 2, 7, 12, 3, 10
X_BTD = jax.random.normal(jax.random.key(0), (B, T, D))
TOKENS = shapes.Tokens.from_lengths(jnp.array([7, 4]), T)


def layer(mixer='full', **facts):
  settings = facts.pop('settings', ())
  return encoder.LayerConfig(
    mixer=mixer, settings=(*settings, ('num_heads', H)), mlp_width=F, **facts
  )


def init_and_apply(layers_, x_BTD=X_BTD, params=None, **kwargs):
  module = encoder.Encoder(tuple(layers_), **kwargs)
  if params is None:
    params = module.init(jax.random.key(1), X_BTD, tokens=TOKENS)
  return params, module.apply(params, x_BTD, tokens=TOKENS)


def test_each_layer_has_parameters_of_its_own_facts():
  wide = dataclasses.replace(layer('local'), mlp_width=F + 3, conv_width=3)
  params, y_BTD = init_and_apply([layer(), wide])
  tree = params['params']
  assert sorted(tree) == ['layer_0', 'layer_1', 'norm_out']
  assert tree['layer_0']['mlp']['in']['kernel'].shape == (D, F)
  assert tree['layer_1']['mlp']['in']['kernel'].shape == (D, F + 3)
  assert tree['layer_1']['conv']['filter'].shape == (3, D)
  assert 'conv' not in tree['layer_0']
  assert y_BTD.shape == (B, T, D)


def test_scanned_layers_equal_one_at_a_time(monkeypatch):
  layers_ = [layer()] * 4
  params, scanned_BTD = init_and_apply(layers_)
  monkeypatch.setattr(encoder, 'SCAN_FROM', 99)
  _, unrolled_BTD = init_and_apply(layers_, params=params)
  np.testing.assert_allclose(scanned_BTD, unrolled_BTD, atol=1e-5)
  kernels = [params['params'][f'layer_{i}']['mlp']['in'] for i in range(4)]
  assert not np.array_equal(kernels[0]['kernel'], kernels[1]['kernel'])


@pytest.mark.parametrize('scan_from', [1, 99])
def test_a_share_group_has_one_set_of_parameters(monkeypatch, scan_from):
  monkeypatch.setattr(encoder, 'SCAN_FROM', scan_from)
  shared = layer(share='all')
  params, shared_BTD = init_and_apply([shared] * 3)
  assert sorted(params['params']) == ['norm_out', 'shared_all']
  tree = params['params']
  copied = {f'layer_{i}': tree['shared_all'] for i in range(3)}
  copied = {'params': {**copied, 'norm_out': tree['norm_out']}}
  _, copied_BTD = init_and_apply([layer()] * 3, params=copied)
  np.testing.assert_allclose(shared_BTD, copied_BTD, atol=1e-5)


def test_layers_of_a_share_group_must_be_alike():
  with pytest.raises(ValueError, match='share'):
    init_and_apply([layer(share='a'), layer('linear', share='a')])


def test_recomputing_changes_no_gradient():
  def gradient(remat):
    module = encoder.Encoder((layer(),) * 2, remat=remat)
    params = module.init(jax.random.key(1), X_BTD, tokens=TOKENS)
    return jax.grad(
      lambda p: jnp.sum(module.apply(p, X_BTD, tokens=TOKENS) ** 2)
    )(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradient(False),
    gradient(True),
  )


def test_recomputing_keeps_less():
  def temporary_bytes(remat):
    module = encoder.Encoder((layer(),) * 6, remat=remat)
    x_BTD = jnp.zeros((B, 256, D))
    tokens = shapes.Tokens.from_lengths(jnp.full(B, 256), 256)
    params = jax.eval_shape(
      lambda: module.init(jax.random.key(1), x_BTD, tokens=tokens)
    )

    def loss(p):
      return jnp.sum(module.apply(p, x_BTD, tokens=tokens) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary_bytes(True) < 0.7 * temporary_bytes(False)


@pytest.mark.parametrize('norm_order', ['pre', 'post'])
def test_padding_is_never_read(norm_order):
  layers_ = [layer(conv_width=5), layer('local', conv_width=3)]
  params, y_BTD = init_and_apply(layers_, norm_order=norm_order)
  garbage_BTD = jnp.where(TOKENS.keep_BT[..., None], X_BTD, 1e3)
  _, other_BTD = init_and_apply(
    layers_, garbage_BTD, params, norm_order=norm_order
  )
  np.testing.assert_allclose(y_BTD[1, :4], other_BTD[1, :4], atol=1e-6)


def test_post_norm_ends_normalised_and_pre_norm_differs():
  params, post_BTD = init_and_apply([layer()], norm_order='post')
  assert 'norm_out' not in params['params']
  np.testing.assert_allclose(post_BTD.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(post_BTD.std(-1), 1, atol=1e-3)
  _, pre_BTD = init_and_apply([layer()])
  assert np.abs(pre_BTD - post_BTD).max() > 0.1


def test_dropout_differs_between_layers_and_keys():
  module = encoder.Encoder((layer(share='all'),) * 3, dropout=0.5)
  params = module.init(jax.random.key(1), X_BTD, tokens=TOKENS)

  def apply(seed):
    return module.apply(
      params,
      X_BTD,
      tokens=TOKENS,
      deterministic=False,
      rngs={'dropout': jax.random.key(seed)},
    )

  np.testing.assert_array_equal(apply(0), apply(0))
  assert np.abs(apply(0) - apply(1)).max() > 0.1


def test_convolution_is_the_sum_over_neighbours():
  conv = layers.DepthwiseConvolution(3)
  params = conv.init(jax.random.key(2), X_BTD, TOKENS)
  filter_WD = np.asarray(params['params']['filter'])
  x_BTD = np.where(TOKENS.keep_BT[..., None], X_BTD, 0)
  expected_BTD = x_BTD + x_BTD * filter_WD[1]
  expected_BTD[:, 1:] += x_BTD[:, :-1] * filter_WD[0]
  expected_BTD[:, :-1] += x_BTD[:, 1:] * filter_WD[2]
  y_BTD = np.asarray(conv.apply(params, X_BTD, TOKENS))
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
  params = conv.init(jax.random.key(2), X_BTD, tokens)
  moved_BTD = X_BTD.at[:, 3:].add(9.0)
  y_BTD, other_BTD = (conv.apply(params, x, tokens) for x in (X_BTD, moved_BTD))
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
