"""Blocks that are narrower than their stream, beside their definition."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import errors, shapes
from effformer.models import build, classifier, encoder, predictor
from tests import slow
from tests.models.build_test import make_config, shapes_of
from tests.models.parameters import random_variables

B, T, D, N, H, K, F, Y = 2, 7, 12, 6, 3, 5, 10, 11
IDS_BT = np.random.default_rng(0).integers(1, Y, (B, T))
LENGTHS_B = np.array([7, 4])
KEEP_BT = np.arange(T)[None] < LENGTHS_B[:, None]
X_BTD = np.random.default_rng(1).normal(size=(B, T, D)).astype('f4')
EPSILON = 1e-3


def layer(width=N, mixer='full', **fields):
  own = {'num_heads': H, 'head_width': K, 'use_bias': True}
  own |= {'causal': True} if fields.get('causal') else {}
  return encoder.LayerConfig(
    mixer, tuple(sorted(own.items())), F, bottleneck=width, **fields
  )


def drawn(module, *arguments, **keywords):
  """Parameters none of which is at a value that hides it."""
  params = random_variables(module, *arguments, **keywords)['params']
  generator = np.random.default_rng(2)
  return jax.tree.map(
    lambda x: (x + 0.3 * generator.normal(size=x.shape)).astype('f4'), params
  )


def tokens():
  return shapes.Tokens.from_lengths(jnp.asarray(LENGTHS_B), T)


# The definition, float64.


def norm_of(kind, own, x):
  scale, bias = own['scale'], own.get('bias', 0.0)
  if kind == 'affine':
    return x * scale + bias
  if kind == 'rms':
    mean = (x**2).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean + EPSILON) * scale
  off = x - x.mean(axis=-1, keepdims=True)
  variance = (off**2).mean(axis=-1, keepdims=True)
  return off / np.sqrt(variance + EPSILON) * scale + bias


def dense(own, x):
  return x @ own['kernel'] + own['bias']


def attention(own, x_BTN):
  q, k, v = (
    np.einsum('btn,nhk->bhtk', x_BTN, own[name]['kernel'])
    + own[name]['bias'][None, :, None]
    for name in ('query', 'key', 'value')
  )
  scores = q @ k.swapaxes(2, 3) / np.sqrt(K)
  scores = np.where(KEEP_BT[:, None, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  y = np.einsum('bhtk,hkn->btn', weights @ v, own['out']['kernel'])
  return y + own['out']['bias']


def gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def defined(params, order, kind):
  """What a block gives, written out."""
  own = jax.tree.map(lambda x: np.asarray(x, 'f8'), params)
  outer = own['bottleneck']
  parts = (
    ('norm_mixer', lambda h: attention(own['mixer'], h)),
    (
      'norm_mlp',
      lambda h: dense(own['mlp']['out'], gelu(dense(own['mlp']['in'], h))),
    ),
  )
  x = X_BTD.astype('f8')
  h = dense(outer['narrow'], x)
  if order == 'post':
    h = norm_of(kind, outer['norm_narrow'], h)
  for name, part in parts:
    if order == 'post':
      h = norm_of(kind, own[name], h + part(h))
    else:
      h = h + part(norm_of(kind, own[name], h))
  y = x + dense(outer['widen'], h)
  return norm_of(kind, outer['norm_widen'], y) if order == 'post' else y


@pytest.mark.parametrize(
  ('order', 'kind'),
  [
    ('post', 'affine'), ('pre', 'layer'), ('post', 'layer'), ('pre', 'rms'),
    ('post', 'rms'), ('pre', 'affine'),
  ],
)  # fmt: skip
def test_a_block_is_that_of_the_definition(order, kind):
  block = encoder.Block(
    layer(), norm_order=order, norm=kind, norm_epsilon=EPSILON
  )
  keywords = {'tokens': tokens(), 'deterministic': True}
  params = drawn(block, X_BTD, **keywords)
  y_BTD, state = jax.jit(
    lambda p, x: block.apply({'params': p}, x, **keywords)
  )(params, X_BTD)
  assert state is None
  wanted_BTD = defined(params, order, kind)
  np.testing.assert_allclose(
    y_BTD[KEEP_BT], wanted_BTD[KEEP_BT], rtol=2e-5, atol=2e-5
  )
  norms = {'norm_narrow', 'norm_widen'} if order == 'post' else set()
  assert set(params['bottleneck']) == {'narrow', 'widen', *norms}


def test_as_many_parameters_as_the_formula_says():
  config = make_config(
    layers={'1': {'bottleneck': 0}},
    model__bottleneck=N,
    model__attention_bias=True,
    model__norm_order='post',
  )
  blocks = shapes_of(config)['encoder']
  counts = [
    sum(x.size for x in jax.tree.leaves(blocks[f'layer_{i}'])) for i in range(3)
  ]

  def inside(width):
    heads = 4 * (width * width + width)
    return heads + 2 * width * F + F + width + 2 * 2 * width

  around = 2 * D * N + N + D + 2 * N + 2 * D
  assert counts == [inside(N) + around, inside(D), inside(N) + around]


def test_heads_have_their_share_of_the_bottleneck():
  rows = {
    '0': {'bottleneck': 9},
    '1': {'bottleneck': 0, 'num_heads': 2},
    '2': {'head_width': 5},
  }
  config = make_config(layers=rows, model__bottleneck=N)
  found = [
    (own.bottleneck, dict(own.settings)['head_width'])
    for own in build.layer_configs(config)
  ]
  assert found == [(9, 3), (0, 6), (N, 5)]
  tree = shapes_of(config)['encoder']
  assert tree['layer_0']['mixer']['query']['kernel'].shape == (9, 3, 3)
  assert tree['layer_2']['mixer']['out']['kernel'].shape == (3, 5, N)
  assert 'bottleneck' not in tree['layer_1']
  wide = make_config(model__bottleneck=N, model__qkv_width=24)
  assert dict(build.layer_configs(wide)[0].settings)['head_width'] == 8


def classifier_of(layers, **fields):
  module = classifier.Classifier(
    vocabulary_size=Y, width=D, layers=tuple(layers), max_length=9,
    num_classes=4, **fields,
  )  # fmt: skip
  return module, drawn(module, IDS_BT, LENGTHS_B)


@pytest.mark.parametrize('order', slow.after(1, ['post', 'pre']))
def test_gradients_go_to_all_arrays(order):
  module, params = classifier_of(
    [layer(), layer(4, conv_width=3), layer(0)], norm_order=order
  )

  def loss(params):
    y_BC = module.apply({'params': params}, IDS_BT, LENGTHS_B)
    return jnp.sum(y_BC**2 * jnp.arange(1.0, 5.0)[None])

  gradient = flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params))
  for path, x in gradient.items():
    # A shift of all scores of a row changes no softmax.
    if path[-2:] == ('key', 'bias'):
      continue
    assert np.abs(x).max() > 1e-6, path


@pytest.mark.parametrize(
  'fields',
  slow.after(
    1, [{}, {'remat': True}, {'extra_tokens': 2}, {'dtype': jnp.bfloat16}]
  ),
  ids=str,
)
def test_layers_that_are_alike_are_scanned(fields):
  """The same as one after the other, also with a group among them."""
  layers = [layer(), layer(), layer(), layer(share='a'), layer(share='a')]
  scanned, params = classifier_of(layers, **fields)
  assert set(params['encoder']) >= {'layer_2', 'shared_a'}
  found = [
    np.asarray(jax.jit(own.apply)({'params': params}, IDS_BT, LENGTHS_B), 'f4')
    for own in (scanned, dataclasses.replace(scanned, unrolled=True))
  ]
  atol = 0.1 if 'dtype' in fields else 1e-5
  np.testing.assert_allclose(*found, rtol=1e-5, atol=atol)
  assert np.isfinite(found[0]).all()


def test_the_feed_forward_part_in_chunks():
  whole, params = classifier_of([layer(), layer()])
  parts = [dataclasses.replace(own, mlp_chunk=3) for own in whole.layers]
  chunked = dataclasses.replace(whole, layers=tuple(parts))
  found = [
    own.apply({'params': params}, IDS_BT, LENGTHS_B) for own in (whole, chunked)
  ]
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


def test_what_is_added_to_the_stream_is_dropped():
  """At a high rate a pre-LN block is the identity in most numbers."""
  block = encoder.Block(layer(), dropout=0.9)
  keywords = {'tokens': tokens(), 'deterministic': True}
  params = drawn(block, X_BTD, **keywords)
  y_BTD, _ = block.apply(
    {'params': params},
    X_BTD,
    **{**keywords, 'deterministic': False},
    rngs={'dropout': jax.random.key(3)},
  )
  is_same = np.isclose(y_BTD, X_BTD, atol=1e-6)[KEEP_BT]
  assert 0.8 < is_same.mean() < 1


@pytest.mark.parametrize('mixer', slow.after(1, ['full', 'linear', 's5']))
def test_a_stream_step_by_step_is_the_whole(mixer):
  """Causal, with a convolution, of bottlenecks that differ."""
  layers = []
  for width in (N, 4, 0):
    own = layer(width, mixer, causal=True, conv_width=3)
    if mixer == 's5':
      own = dataclasses.replace(own, settings=(('causal', True),))
    layers.append(own)
  module = predictor.Predictor(
    vocabulary_size=Y, width=D, layers=tuple(layers), max_length=9
  )
  params = drawn(module, IDS_BT, LENGTHS_B)
  whole_BTY = module.apply({'params': params}, IDS_BT, LENGTHS_B)
  stream, found = module.init_stream(params, B, T), []
  extend = jax.jit(
    lambda p, ids, lengths, stream, is_first: module.apply(
      {'params': p}, ids, lengths, stream, is_first=is_first, method='extend'
    ),
    static_argnums=4,
  )
  for step in range(T):
    y_B1Y, stream = extend(
      params, IDS_BT[:, step : step + 1], KEEP_BT[:, step].astype('i4'),
      stream, step == 0,
    )  # fmt: skip
    found.append(y_B1Y)
  steps_BTY = np.concatenate(found, axis=1)
  np.testing.assert_allclose(
    steps_BTY[KEEP_BT], np.asarray(whole_BTY)[KEEP_BT], rtol=1e-4, atol=1e-4
  )


def test_without_a_bottleneck_nothing_is_new():
  tree = shapes_of(make_config())
  assert set(tree['encoder']['layer_0']) == {
    'mixer', 'mlp', 'norm_mixer', 'norm_mlp',
  }  # fmt: skip


@pytest.mark.parametrize('branch', ['mixer', 'mlp'])
def test_branches_are_refused(branch):
  block = encoder.Block(layer())
  with pytest.raises(ValueError, match=f'has no branch {branch!r}'):
    block.init(
      jax.random.key(0), X_BTD, tokens=tokens(), deterministic=True,
      branch=branch,
    )  # fmt: skip


def test_reversible_encoders_have_none():
  with pytest.raises(ValueError, match='bottleneck=6 have not'):
    encoder.Encoder((layer(0), layer()), reversible=True)
  assert encoder.Encoder((layer(0),), reversible=True).reversible


def test_streams_that_cannot_be_are_refused_as_before():
  config = make_config('fnet', model__bottleneck=N)
  with pytest.raises(errors.ConfigError, match='fnet is not defined for caus'):
    build.layer_configs(config, causal=True)
