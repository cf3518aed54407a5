"""What enters dense layers: against a model that is taken apart by hand."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention, pretrained
from effformer.compress import calibrate, tensors
from effformer.errors import ConfigError
from effformer.models import encoder
from tests.compress import networks
from tests.compress.networks import entering
from tests.pretrained.golden_test import folder_of, golden


@pytest.fixture
def bert(tmp_path):
  return pretrained.load(folder_of('bert-embedder', tmp_path))


def batch():
  arrays = golden('bert-embedder')[2]
  return arrays['ids'], arrays['lengths'], arrays['types']


def test_every_kernel_of_the_encoder_has_its_inputs(bert):
  found = calibrate.collect(bert.module, bert.params, [batch()])
  kernels = {
    path: x
    for path, x in flax.traverse_util.flatten_dict(bert.params, sep='/').items()
    if path.startswith('encoder/') and path.endswith('kernel')
  }
  assert set(found) == set(kernels)
  for path, moments in found.items():
    k = tensors.matrix(path, kernels[path]).shape[0]
    assert moments.gram_KK.shape == (k, k)
    assert moments.count == batch()[1].sum()


def test_the_inputs_are_those_of_the_model(bert):
  """Of the first layer from the embedding, of the last ones by its output."""
  found = calibrate.collect(bert.module, bert.params, [batch()])
  module, params = bert.module, {'params': bert.params}
  ids_BT, lengths_B, types_BT = batch()
  x_BTD, tokens = entering(
    module, bert.params, ids_BT, lengths_B, types_BT=types_BT
  )
  keep_BT = np.asarray(tokens.keep_BT)
  x_LD = np.asarray(x_BTD)[keep_BT]
  query = found['encoder/layer_0/mixer/query/kernel']
  np.testing.assert_allclose(query.gram_KK, x_LD.T @ x_LD, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(query.largest_K, np.abs(x_LD).max(0), rtol=1e-5)
  np.testing.assert_allclose(query.absolute_K, np.abs(x_LD).sum(0), rtol=1e-5)
  # h = f(x W + b) enters the second kernel of the feed-forward part, and its
  # output is what is left of the block.
  mlp = bert.params['encoder']['layer_1']['mlp']
  first = found['encoder/layer_1/mlp/in/kernel']
  second = found['encoder/layer_1/mlp/out/kernel']
  assert first.gram_KK.shape == (12, 12)
  assert second.gram_KK.shape == (mlp['in']['kernel'].shape[1],) * 2
  hidden = dataclasses.replace(module, layers=module.layers[:1])
  y_BTD = np.asarray(
    hidden.apply(params, ids_BT, lengths_B, types_BT=types_BT, method='vectors')
  )
  y_LD = y_BTD[keep_BT]
  key = found['encoder/layer_1/mixer/key/kernel']
  np.testing.assert_allclose(key.gram_KK, y_LD.T @ y_LD, rtol=1e-4, atol=1e-3)


def test_batches_add_up_and_padding_does_not_count(bert):
  ids_BT, lengths_B, types_BT = batch()
  whole = calibrate.collect(bert.module, bert.params, [batch()])
  rows = [
    (ids_BT[r : r + 1], lengths_B[r : r + 1], types_BT[r : r + 1])
    for r in range(len(ids_BT))
  ]
  apart = calibrate.collect(bert.module, bert.params, rows)
  other = np.where(np.arange(ids_BT.shape[1]) < lengths_B[:, None], ids_BT, 9)
  padded = calibrate.collect(
    bert.module, bert.params, [(other, lengths_B, types_BT)]
  )
  for found in (apart, padded):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
      found,
      whole,
    )


def test_layers_of_a_share_group_are_one_kernel(bert):
  layers = tuple(
    dataclasses.replace(layer, share='both') for layer in bert.module.layers
  )
  shared = dataclasses.replace(bert.module, layers=layers)
  own = bert.params['encoder']
  trunk = {name: x for name, x in bert.params.items() if name != 'encoder'}
  one = calibrate.collect(
    shared, {**trunk, 'encoder': {'shared_both': own['layer_0']}}, [batch()]
  )
  # The same network, whose two layers have copies.
  two = calibrate.collect(
    bert.module,
    {**trunk, 'encoder': {f'layer_{i}': own['layer_0'] for i in range(2)}},
    [batch()],
  )
  path = 'mlp/out/kernel'
  first, second = (two[f'encoder/layer_{i}/{path}'] for i in range(2))
  both = one[f'encoder/shared_both/{path}']
  np.testing.assert_allclose(
    both.gram_KK, first.gram_KK + second.gram_KK, rtol=1e-5
  )
  assert both.count == 2 * first.count
  assert len(one) == len(two) / 2


def test_what_cannot_be_calibrated(bert):
  with pytest.raises(ValueError, match='at least one batch'):
    calibrate.collect(bert.module, bert.params, [])
  module = dataclasses.replace(bert.module, extra_tokens=2)
  with pytest.raises(ConfigError, match='extra_tokens=2'):
    calibrate.collect(module, bert.params, [batch()])
  # Queries of global tokens, fewer than there are tokens.
  settings = {'attention_window': 2, 'global_tokens': 2}
  other = pretrained.swap(bert, 'longformer', (1,), settings=settings).model
  with pytest.raises(ConfigError, match='layer 1 is longformer, which'):
    calibrate.collect(other.module, other.params, [batch()])
  assert jnp.isfinite(bert.params['positions']).all()


@pytest.mark.parametrize(
  ('mixer', 'settings'),
  [
    *((mixer, {}) for mixer in attention.TABLE),
    ('longformer', {'global_tokens': 0}),
    ('linformer', {'sharing': 'none'}),
    ('linformer', {'sharing': 'headwise'}),
    *(('linformer', {'mixing': own}) for own in ('pool', 'conv', 'dynamic')),
  ],
)
def test_mechanisms_say_whether_they_project_tokens(
  monkeypatch, mixer, settings
):
  """Against what their dense layers are given, traced without the rule."""
  # Fewer mixtures than tokens.
  sizes = {
    'num_heads': 3, 'head_width': 4, 'rank': 3, 'max_length': 9, **settings
  }  # fmt: skip
  known = attention.settings(mixer)
  own = {name: sizes[name] for name in sizes if name in known}
  layer = encoder.LayerConfig(mixer, tuple(sorted(own.items())), networks.F)
  module = networks.KINDS['embedder'](
    vocabulary_size=networks.Y, width=networks.D, layers=(layer,), max_length=9
  )
  variables = jax.eval_shape(module.init, jax.random.key(0), *networks.BATCH)

  def collected():
    return jax.eval_shape(
      lambda params: calibrate.collect(module, params, [networks.BATCH]),
      variables['params'],
    )

  says = attention.build(mixer, **own).projects_tokens()
  if not says:
    with pytest.raises(ConfigError, match='one input for each token'):
      collected()
  monkeypatch.setattr(calibrate, 'check', lambda module: None)
  if says:
    assert len(collected()) >= 2
  else:
    with pytest.raises(ValueError, match='one input for each token, but'):
      collected()
