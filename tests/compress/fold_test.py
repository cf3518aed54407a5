"""Factors of inputs: the function stays, and where they are hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention, pretrained
from effformer import config as config_lib
from effformer.compress import fold, tensors
from effformer.errors import ConfigError
from effformer.models import build
from tests import slow
from tests.models.parameters import random_variables
from tests.pretrained.golden_test import folder_of, golden, outputs

# Many models are compiled.
pytestmark = pytest.mark.slow

B, T, D, H, F, Y = 2, 8, 12, 2, 10, 9
MORE = {
  'full': [{}],
  'linear': [{}],
  'local': [{'window': 3}],
  'linformer': [
    {'rank': 3, 'mixing': mixing, 'sharing': sharing}
    for mixing, sharing in (
      *(('learned', 'key_value'), ('learned', 'none')),
      *(('pool', 'none'), ('conv', 'headwise'), ('dynamic', 'none')),
    )
  ],
  'longformer': [
    {'attention_window': 2, 'global_tokens': number} for number in (0, 2)
  ],
  'bigbird': [{'block': 2, 'num_random': 1}],
  'sparse': [{'stride': 3, 'columns': 1}],
  'performer': [{'num_features': 8}],
  'nystromformer': [{'rank': 3, 'conv_width': 3}],
  'synthesizer': [
    {'variant': 'dense', 'mix_dot_product': True},
    {'variant': 'factorized_random'},
  ],
  'fnet': [{}],
  'reformer': [{'block': 2, 'num_buckets': 4}],
  'sinkhorn': [{'block': 2}],
  'nsa': [
    {'compress_block': 2, 'compress_stride': 1, 'block': 2, 'num_selected': 4,
     'window': 2}
  ],
  's5': [{'state_width': 8, 'hippo_blocks': 2}],
  'mega': [{'block': 4, 'num_averages': 2, 'key_width': 4}],
  'retnet': [{}],
  'gla': [{}],
  'gated_deltanet': [{}],
  'mamba2': [{}],
}  # fmt: skip
CASES = [(name, settings) for name, rows in MORE.items() for settings in rows]
IDS, LENGTHS = np.random.default_rng(1).integers(1, Y, (B, T)), np.array([T, 5])


def model_of(mechanism, settings, *, layers=1, **keys):
  """Config, module, parameters of a small model."""
  config = config_lib.neutral(
    {
      'model.num_layers': layers,
      'model.width': D,
      'model.num_heads': H,
      'model.mlp_width': F,
      'model.attention_bias': True,
      'data.max_length': T,
      **{f'mixer.{name}': value for name, value in settings.items()},
      **{key.replace('__', '.'): value for key, value in keys.items()},
    },
    mechanism,
  )
  module = build.of_kind('embedder', config, Y)
  return config, module, random_variables(module, IDS, LENGTHS)['params']


def run(module, params):
  @jax.jit
  def apply(params):
    return module.apply({'params': params}, IDS, LENGTHS, method='vectors')

  y = np.array(apply(params))
  y[np.arange(T) >= LENGTHS[:, None]] = 0
  return y


def random_factors(config, params, seed=0):
  """Of all kernels, the same for those of a place."""
  rng, flat = np.random.default_rng(seed), tensors.flatten(params)
  found = {}
  for place in fold.places(config, params):
    inputs, _ = tensors.matrix(place.kernels[0], flat[place.kernels[0]]).shape
    s_K = jnp.exp(rng.uniform(-2, 2, inputs).astype('f4'))
    found |= dict.fromkeys(place.kernels, fold.tied(s_K, place, jnp.max))
  return found


@pytest.mark.parametrize(
  ('mechanism', 'settings'), slow.after(3, CASES), ids=str
)
def test_the_function_of_each_mechanism_stays(mechanism, settings):
  config, module, params = model_of(mechanism, settings)
  factors = random_factors(config, params)
  kernels = {
    path for path in tensors.flatten(params)
    if path.startswith('encoder') and path.endswith('kernel')
  }  # fmt: skip
  assert set(factors) == kernels
  folded, left = fold.fold(config, params, factors)
  np.testing.assert_allclose(
    run(module, folded), run(module, params), rtol=1e-4, atol=1e-4
  )
  before, after = tensors.flatten(params), tensors.flatten(folded)
  for path in kernels:
    # Those that are left are as they were, but where they stand before others.
    is_linear = mechanism in fold.VALUES and '/value' in path
    assert path in left or np.any(np.asarray(after[path]) != before[path])
    if path in left and not is_linear:
      np.testing.assert_array_equal(after[path], before[path])


def test_every_mechanism_is_tried():
  assert set(MORE) == set(attention.TABLE)
  assert set(fold.VALUES) <= set(fold.READERS) <= set(attention.TABLE)


def names_left(config, params, factors):
  _, left = fold.fold(config, params, factors)
  return {
    path.removeprefix('encoder/').removesuffix('/kernel') for path in left
  }


def test_what_has_a_place():
  mixer = {f'layer_0/mixer/{name}' for name in ('query', 'key', 'value')}
  for keys, expected in (
    ({}, set()),
    ({'model__activation': 'gelu'}, {'layer_0/mlp/out'}),
    ({'model__norm_order': 'post'}, {*mixer, 'layer_0/mlp/in'}),
  ):
    keys = {'model__activation': 'relu', **keys}
    config, _, params = model_of('full', {}, **keys)
    assert names_left(config, params, random_factors(config, params)) == (
      expected
    )
  config, _, params = model_of('mega', {'block': 4, 'key_width': 4})
  own = {path for path in random_factors(config, params) if '/mixer/' in path}
  assert len(own) >= 3
  left = fold.fold(config, params, random_factors(config, params))[1]
  assert own <= set(left)


def test_products_of_two_matrices_have_places_of_their_own():
  """All but what reads the activation, which is in front of `out_low`."""
  for activation, expected in (
    ('relu', set()),
    ('relu2', {'layer_0/mlp/out_low'}),
    ('quick_gelu', {'layer_0/mlp/out_low'}),
  ):
    config, module, params = model_of(
      'full', {}, model__activation=activation, model__mlp_rank=3
    )
    factors = random_factors(config, params)
    names = {path.removeprefix('encoder/layer_0/mlp/') for path in factors}
    assert {f'{x}/kernel' for x in ('in_low', 'in', 'out_low', 'out')} <= names
    folded, left = fold.fold(config, params, factors)
    assert {
      path.removeprefix('encoder/').removesuffix('/kernel') for path in left
    } == expected
    np.testing.assert_allclose(
      run(module, folded), run(module, params), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('norm', ['rms', 'affine'])
def test_other_norms_take_factors_in(norm):
  config, module, params = model_of(
    'full', {}, model__activation='relu', model__norm=norm
  )
  folded, left = fold.fold(config, params, random_factors(config, params))
  assert not left
  own = folded['encoder']['layer_0']['norm_mlp']
  assert set(own) == ({'scale'} if norm == 'rms' else {'scale', 'bias'})
  np.testing.assert_allclose(
    run(module, folded), run(module, params), rtol=1e-4, atol=1e-4
  )


def test_a_folded_kernel_is_multiplied_and_what_stands_before_divided():
  config, _, params = model_of('full', {}, model__activation='relu')
  s_K = np.exp(np.random.default_rng(3).uniform(-1, 1, F)).astype('f4')
  path = 'encoder/layer_0/mlp/out/kernel'
  folded, left = fold.fold(config, params, {path: s_K})
  before, after = (x['encoder']['layer_0'] for x in (params, folded))
  assert not left
  np.testing.assert_allclose(
    after['mlp']['out']['kernel'],
    before['mlp']['out']['kernel'] * s_K[:, None],
    rtol=1e-6,
  )
  for name in ('kernel', 'bias'):
    np.testing.assert_allclose(
      after['mlp']['in'][name], before['mlp']['in'][name] / s_K, rtol=1e-6
    )
  np.testing.assert_array_equal(
    after['norm_mlp']['scale'], before['norm_mlp']['scale']
  )


def test_a_factor_of_one_reader_is_that_of_all():
  config, module, params = model_of('full', {})
  s_K = np.linspace(0.5, 3, D).astype('f4')
  path = 'encoder/layer_0/mixer/{}/kernel'
  folded, left = fold.fold(config, params, {path.format('key'): s_K})
  assert not left
  after, before = tensors.flatten(folded), tensors.flatten(params)
  np.testing.assert_allclose(
    after[path.format('value')],
    before[path.format('value')] * s_K[:, None, None],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    run(module, folded), run(module, params), rtol=1e-4, atol=1e-5
  )


def test_heads_with_the_same_values_need_the_same_factors():
  config, module, params = model_of(
    'full', {}, model__layers={'0': {'num_kv_heads': 1}}
  )
  flat = tensors.flatten(params)
  out = 'encoder/layer_0/mixer/out/kernel'
  assert flat['encoder/layer_0/mixer/value/kernel'].shape == (D, 1, D // H)
  (place,) = (p for p in fold.places(config, params) if out in p.kernels)
  assert place.axes == (1, H, D // H)
  s_K = np.exp(np.random.default_rng(4).uniform(-1, 1, D)).astype('f4')
  folded, left = fold.fold(config, params, {out: s_K})
  assert set(left) == {out}
  jax.tree.map(np.testing.assert_array_equal, folded, params)
  same_K = fold.tied(s_K, place, jnp.max)
  np.testing.assert_allclose(
    same_K.reshape(H, -1), np.tile(s_K.reshape(H, -1).max(0), (H, 1))
  )
  folded, left = fold.fold(config, params, {out: same_K})
  assert not left
  np.testing.assert_allclose(
    run(module, folded), run(module, params), rtol=1e-4, atol=1e-5
  )


def test_groups_of_values_keep_their_order():
  """Two groups of two heads: values of a group belong to neighbours."""
  config, module, params = model_of(
    'full',
    {},
    model__num_heads=4,
    model__layers={'0': {'num_heads': 4, 'num_kv_heads': 2}},
  )
  folded, left = fold.fold(config, params, random_factors(config, params))
  assert 'encoder/layer_0/mixer/out/kernel' not in left
  np.testing.assert_allclose(
    run(module, folded), run(module, params), rtol=1e-4, atol=1e-5
  )


def test_shared_layers_are_folded_once():
  rows = {'0': {'share': 'a'}, '2': {'share': 'a'}}
  config, module, params = model_of(
    'full', {}, layers=3, model__layers=rows, model__activation='relu'
  )
  factors = random_factors(config, params)
  assert {path.split('/')[1] for path in factors} == {'shared_a', 'layer_1'}
  found = [p for place in fold.places(config, params) for p in place.kernels]
  assert sorted(found) == sorted(factors)
  folded, left = fold.fold(config, params, factors)
  assert not left
  np.testing.assert_allclose(
    run(module, folded), run(module, params), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  'name', ['bert-classifier', 'gpt2-predictor', 'vit-classifier']
)
def test_pretrained_models_stay(name, tmp_path):
  model = pretrained.load(folder_of(name, tmp_path))
  factors = random_factors(model.config, model.params)
  folded, left = fold.fold(model.config, model.params, factors)
  is_post = 'bert' in name
  assert ('encoder/layer_0/mixer/query/kernel' in left) == is_post
  assert 'encoder/layer_1/mixer/out/kernel' not in left
  arrays = golden(name)[2]
  np.testing.assert_allclose(
    outputs(model._replace(params=folded), arrays),
    outputs(model, arrays),
    atol=2e-5,
  )


def test_what_is_no_factor():
  config, _, params = model_of('full', {})
  path = 'encoder/layer_0/mixer/{}/kernel'
  for wrong in ('encoder/layer_7/mlp/in/kernel', 'encoder/norm_out/scale'):
    with pytest.raises(ConfigError, match='no matrix of this model'):
      fold.fold(config, params, {wrong: np.ones(D)})
  with pytest.raises(ValueError, match='has 12 inputs'):
    fold.fold(config, params, {path.format('query'): np.ones(D + 1)})
  factors = {
    path.format('query'): np.ones(D),
    path.format('key'): 2 * np.ones(D),
  }
  with pytest.raises(ValueError, match='need the same factors'):
    fold.fold(config, params, factors)
