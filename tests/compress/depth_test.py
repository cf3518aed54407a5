"""Fewer layers: each that stays is what it was."""

import jax
import numpy as np
import pytest

from effformer.compress import depth
from effformer.errors import ConfigError
from effformer.models import build
from tests.compress.prune.models import classifier, published

LAYERS = {'model__num_layers': 6}


def check_kept(model, keep):
  """Facts and parameters of the layers that stay."""
  config, params = depth.drop_layers(model.config, model.params, keep)
  before = build.layer_configs(model.config)
  after = build.layer_configs(config)
  assert config.model.num_layers == len(keep)
  assert after == tuple(before[index] for index in keep)
  for new, old in enumerate(keep):
    if not before[old].share:
      jax.tree.map(
        np.testing.assert_array_equal,
        params['encoder'][f'layer_{new}'],
        model.params['encoder'][f'layer_{old}'],
      )
  return config, params


@pytest.mark.parametrize('keep', [(0, 2, 5), (1,), (4, 5), range(6)])
def test_layers_are_numbered_anew(keep):
  rows = (
    ('0', (('mlp_width', 7),)),
    ('2', (('mixer', 'local'), ('window', 3))),
    ('5', (('num_heads', 2), ('head_width', 5))),
  )
  model = classifier(rows=rows, **LAYERS)
  config, params = check_kept(model, tuple(keep))
  numbers = {str(i) for i in range(len(tuple(keep)))}
  assert set(config.model.layers) <= numbers
  assert set(params['encoder']) == {
    'norm_out', *(f'layer_{i}' for i in numbers),
  }  # fmt: skip
  assert np.isfinite(model.outputs(config, params)).all()


def test_overrides_go_with_their_layers():
  rows = (('1', (('mlp_width', 7),)), ('4', (('mlp_width', 3),)))
  model = classifier(rows=rows, **LAYERS)
  config, _ = check_kept(model, (0, 4, 5))
  assert config.model.layers.to_dict() == {'1': {'mlp_width': 3}}


def test_a_layer_that_adds_nothing_can_leave():
  model = classifier(**LAYERS, model__conv_width=3)
  flat = dict(model.params['encoder'])
  for index in (1, 4):
    block = jax.tree.map(np.array, flat[f'layer_{index}'])
    for part in (block['mixer']['out'], block['mlp']['out']):
      part['kernel'][:] = part['bias'][:] = 0
    block['conv']['filter'][:] = 0
    flat[f'layer_{index}'] = block
  silent = {**model.params, 'encoder': flat}
  config, params = depth.drop_layers(model.config, silent, (0, 2, 3, 5))
  np.testing.assert_allclose(
    model.outputs(config, params), model.outputs(params=silent), atol=1e-5
  )


def test_published_models_lose_layers(tmp_path):
  model = published('bert-classifier', tmp_path / 'bert')
  assert model.config.model.num_layers == 2
  config, params = check_kept(model, (1,))
  y = model.outputs(config, params)
  assert y.shape == model.outputs().shape
  assert np.abs(y - model.outputs()).max() > 1e-3


def test_a_share_group_stays_with_one_of_its_layers():
  rows = tuple((index, (('share', 'a'),)) for index in ('0', '3', '4'))
  model = classifier(rows=rows, **LAYERS)
  config, params = check_kept(model, (1, 3))
  assert config.model.layers.to_dict() == {'1': {'share': 'a'}}
  assert set(params['encoder']) == {'layer_0', 'shared_a', 'norm_out'}
  jax.tree.map(
    np.testing.assert_array_equal,
    params['encoder']['shared_a'],
    model.params['encoder']['shared_a'],
  )
  _, params = check_kept(model, (1, 2))
  assert set(params['encoder']) == {'layer_0', 'layer_1', 'norm_out'}


@pytest.mark.parametrize('keep', [(0, 1), (0, 5), (4, 5), (0, 3, 4), (1, 2, 3)])
def test_layers_of_a_hybrid_keep_their_mechanism(keep):
  """Layer 1 is of the upper mechanism though it is low, with its defaults."""
  rows = (
    ('1', (('mixer', 'full'),)),
    ('4', (('mixer', 'local'), ('window', 5))),
  )
  model = classifier(
    'local+full', rows=rows, mixer__form='dense', mixer__window=3, **LAYERS
  )
  before = build.layer_configs(model.config)
  assert [x.mixer for x in before] == [
    'local', 'full', 'local', 'full', 'local', 'full',
  ]  # fmt: skip
  config, params = depth.drop_layers(model.config, model.params, keep)
  after = build.layer_configs(config)
  for new, old in enumerate(keep):
    defaults = {'block': 0, 'form': 'chunked'}
    if before[old].mixer == 'local':
      defaults = {'block': 0, 'window': 64}
    assert after[new].mixer == before[old].mixer
    assert dict(after[new].settings) == {
      **defaults, **dict(before[old].settings),
    }  # fmt: skip
  assert np.isfinite(model.outputs(config, params)).all()


@pytest.mark.parametrize(
  ('keep', 'words'),
  [
    ((), 'at least one'), ((0, 6), 'layers 0 to 5'), ((-1,), 'layers 0 to 5'),
    ((2, 0), 'from the lowest up'), ((1, 1), 'each once'),
  ],
)  # fmt: skip
def test_layers_that_cannot_be_kept(keep, words):
  model = classifier(**LAYERS)
  with pytest.raises(ConfigError, match=words):
    depth.drop_layers(model.config, model.params, keep)


def test_a_hybrid_needs_as_many_layers_as_members():
  model = classifier('local+full', mixer__window=3)
  with pytest.raises(ConfigError, match='hybrid of 2 members'):
    depth.drop_layers(model.config, model.params, (0,))
