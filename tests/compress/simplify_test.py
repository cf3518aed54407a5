"""Other norms and activations: where the function stays, and where not."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from configs import common
from effformer import config_check, pretrained
from effformer.compress import affine, fold, simplify, tensors
from effformer.errors import ConfigError
from effformer.models import build, layers
from tests import slow
from tests.compress.fold_test import CASES
from tests.compress.prune.models import (
  CLASSES,
  IDS_BT,
  LENGTHS_B,
  VOCABULARY,
  Model,
)
from tests.models.build_test import make_config
from tests.models.parameters import random_variables
from tests.pretrained.golden_test import folder_of, golden, outputs

# Mechanisms whose projections have no biases.
RECURRENT = ('retnet', 'gla', 'gated_deltanet', 'mamba2')
EXACT = [
  case for case in CASES
  if case[0] in fold.READERS and case[0] not in RECURRENT
]  # fmt: skip
KEYS = {'model__attention_bias': True, 'model__position': 'learned'}


def model_of(mechanism='full', kind='classifier', rows=None, **keys):
  """A model whose norms, and the means of all it adds, are not at rest."""
  config = make_config(mechanism, rows, **{**KEYS, **keys})
  module = build.of_kind(kind, config, VOCABULARY, CLASSES)
  inputs = (IDS_BT, LENGTHS_B)
  if kind == 'pair_classifier':
    inputs = (*inputs, IDS_BT[::-1] % 4 + 1, LENGTHS_B[::-1])
  params = random_variables(module, *inputs)['params']
  rng = np.random.default_rng(7)

  def moved(path, x):
    is_scale = path[-1].key == 'scale'
    return (
      x + rng.normal(0.3, 0.3, x.shape) * (0.5 if is_scale else 1)
    ).astype('f4')

  params = jax.tree_util.tree_map_with_path(moved, params)
  return Model(config, params, kind, VOCABULARY, CLASSES, False, inputs, {})


def unflatten(flat):
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def biases(params):
  """Of norms."""
  return {
    path: x for path, x in tensors.flatten(params).items()
    if path.endswith('/bias') and '/norm_' in path
  }  # fmt: skip


def check_exact(model):
  assert simplify.inexact(model.config, model.params) == []
  config, params = simplify.swap_norm(model.config, model.params, 'rms')
  assert config.model.norm == 'rms'
  assert not biases(params)
  # The variance of the norm that centres is E x^2 - (E x)^2, which loses bits
  # to these means; a norm that is another function is off by more than 1e-3.
  np.testing.assert_allclose(
    model.outputs(config, params), model.outputs(), rtol=1e-5, atol=5e-5
  )
  return config, params


@pytest.mark.parametrize(
  ('mechanism', 'settings'),
  slow.after(2, EXACT),
  ids=str,
)
def test_rms_norms_are_exact_in_pre_norm_models(mechanism, settings):
  model = model_of(
    mechanism, **{f'mixer__{name}': value for name, value in settings.items()}
  )
  config, params = check_exact(model)
  config_check.check(config, common)
  before, after = tensors.flatten(model.params), tensors.flatten(params)
  scales = [path for path in after if path.endswith('/scale')]
  assert len(scales) == 7
  for path in scales:
    np.testing.assert_array_equal(after[path], before[path])
  # Without centring it is another function.
  plain = {path: x for path, x in before.items() if path in after}
  plain |= {path: x for path, x in after.items() if path.endswith('/bias')}
  y = model.outputs(config, unflatten(plain))
  assert np.abs(y - model.outputs()).max() > 1e-3


FORMS = [
  {'model__front_end': 'continuous', 'model__pooling': 'cls'},
  {'model__token_types': 2, 'model__mlp_rank': 3, 'model__embedding_width': 4},
  {'kind': 'predictor'},
  {'model__extra_tokens': 2},
  {'model__reversible': True},
  {'kind': 'pair_classifier', 'model__pair_head': 'concat',
   'model__head_width': 6},
  {'model__head_width': 6, 'model__token_head': 'tied'},
  {'rows': {'0': {'share': 'a'}, '2': {'share': 'a'}}},
]  # fmt: skip


@pytest.mark.parametrize('keys', slow.after(3, FORMS), ids=str)
def test_rms_norms_are_exact_in_other_forms(keys):
  check_exact(model_of(**keys))


INEXACT = [
  ({'model__norm_order': 'post'}, 'post-LN'),
  ({'model__embedding_norm': True}, 'norm of the embedding'),
  ({'model__position': 'sinusoidal'}, 'sinusoidal'),
  ({'model__conv_width': 3}, 'convolutions'),
  ({'kind': 'predictor', 'model__token_head': 'tied'}, 'the head too'),
  ({'kind': 'predictor', 'model__token_head': 'transformed'}, 'an activation'),
  ({'mechanism': 's5', 'mixer__state_width': 8, 'mixer__hippo_blocks': 2},
   'what s5 gives'),
  ({'model__attention_bias': False}, 'the bias of encoder/layer_0/norm_mixer'),
  ({'kind': 'embedder'}, 'the bias of encoder/norm_out'),
  ({'kind': 'pair_classifier', 'model__pair_head': 'nli'},
   'the bias of encoder/norm_out'),
]  # fmt: skip


@pytest.mark.parametrize(('keys', 'words'), slow.after(4, INEXACT), ids=str)
def test_where_rms_norms_are_another_function_it_is_said(keys, words):
  model = model_of(**keys)
  assert any(words in x for x in simplify.inexact(model.config, model.params))
  config, params = simplify.swap_norm(model.config, model.params, 'rms')
  assert config.model.norm == 'rms'
  y, expected = model.outputs(config, params), model.outputs()
  assert np.isfinite(y).all()
  assert np.abs(y - expected).max() > 1e-4
  is_centred = not words.startswith('the bias')
  before, after = tensors.flatten(model.params), tensors.flatten(params)
  assert (
    np.array_equal(after['embedding/embedding'], before['embedding/embedding'])
    == is_centred
  )


@pytest.mark.parametrize('mechanism', slow.after(1, ('full', *RECURRENT)))
def test_biases_that_are_zero_are_not_lost(mechanism):
  model = model_of(mechanism, model__attention_bias=False)
  assert len(simplify.inexact(model.config, model.params)) == 3
  flat = {
    path: np.zeros_like(x) if '/norm_mixer/bias' in path else x
    for path, x in tensors.flatten(model.params).items()
  }
  check_exact(model._replace(params=unflatten(flat)))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vit-classifier', 'gpt2-predictor'])
def test_published_models(name, tmp_path):
  model, arrays = pretrained.load(folder_of(name, tmp_path)), golden(name)[2]
  reasons = simplify.inexact(model.config, model.params)
  config, params = simplify.swap_norm(model.config, model.params, 'rms')
  small = model._replace(config=config, params=params)
  difference = np.abs(outputs(small, arrays) - outputs(model, arrays)).max()
  if name.startswith('vit'):
    assert not reasons
    assert difference < 2e-5
  else:
    assert len(reasons) == 2
    assert difference > 1e-4
  with pytest.raises(ConfigError, match=r'model\.norm of this model is not'):
    pretrained.save(small, tmp_path / 'again')


# Lines.


def test_affine_norms_have_the_lines():
  model = model_of()
  module = build.sequence_classifier(model.config, VOCABULARY, CLASSES)
  lines = affine.fit(module, model.params, [(IDS_BT, LENGTHS_B)])
  config, params = simplify.swap_norm(
    model.config, model.params, 'affine', lines
  )
  assert config.model.norm == 'affine'
  flat, before = tensors.flatten(params), tensors.flatten(model.params)
  assert set(flat) == set(before)
  assert len(lines) == 7
  for place, line in lines.items():
    np.testing.assert_array_equal(flat[f'{place}/scale'], line.scale_D)
    np.testing.assert_array_equal(flat[f'{place}/bias'], line.bias_D)
  same = [path for path in flat if path.rpartition('/')[0] not in lines]
  for path in same:
    np.testing.assert_array_equal(flat[path], before[path])
  assert np.isfinite(model.outputs(config, params)).all()


def test_affine_norms_after_rms_norms_have_biases():
  model = model_of()
  config, params = simplify.swap_norm(model.config, model.params, 'rms')
  module = build.sequence_classifier(config, VOCABULARY, CLASSES)
  lines = affine.fit(module, params, [(IDS_BT, LENGTHS_B)])
  config, params = simplify.swap_norm(config, params, 'affine', lines)
  assert set(tensors.flatten(params)) == set(tensors.flatten(model.params))


def test_norms_that_cannot_be_swapped():
  model = model_of()
  pair = model.config, model.params
  for name in ('layer', 'batch'):
    with pytest.raises(ConfigError, match=f"'layer' cannot become {name!r}"):
      simplify.swap_norm(*pair, name)
  again = simplify.swap_norm(*pair, 'rms')
  with pytest.raises(ConfigError, match="'rms' cannot become 'rms'"):
    simplify.swap_norm(*again, 'rms')
  with pytest.raises(ConfigError, match='need lines'):
    simplify.swap_norm(*pair, 'affine')
  with pytest.raises(ConfigError, match="'rms' has none"):
    simplify.swap_norm(*pair, 'rms', {})
  with pytest.raises(ValueError, match='no line for encoder/layer_0'):
    simplify.swap_norm(*pair, 'affine', {})


# Activations.


def test_activations_of_all_layers_or_of_some():
  rows = {
    '1': {'activation': 'relu', 'mlp_width': 7},
    '2': {'activation': 'relu'},
  }
  model = model_of(rows=rows)

  def activations(config):
    config_check.check(config, common)
    return [layer.activation for layer in build.layer_configs(config)]

  config, params = simplify.swap_activation(*model[:2], 'relu2')
  assert params is model.params
  assert activations(config) == ['relu2'] * 3
  assert config.model.layers.to_dict() == {'1': {'mlp_width': 7}}
  some, _ = simplify.swap_activation(*model[:2], 'quick_gelu', [0, 2])
  assert activations(some) == ['quick_gelu', 'relu', 'quick_gelu']
  assert some.model.activation == model.config.model.activation
  assert some.model.layers['1'].mlp_width == 7
  assert np.abs(model.outputs(some) - model.outputs()).max() > 1e-4


def test_activations_that_there_are_not():
  model = model_of(rows={'0': {'share': 'a'}, '2': {'share': 'a'}})
  with pytest.raises(
    ConfigError, match="no activation 'swish'; there are gelu"
  ):
    simplify.swap_activation(*model[:2], 'swish')
  with pytest.raises(ConfigError, match='no layer 3: the model has 0 to 2'):
    simplify.swap_activation(*model[:2], 'relu', [3])
  with pytest.raises(ConfigError, match=r'with layers \[0, 2\]'):
    simplify.swap_activation(*model[:2], 'relu', [0])
  config, _ = simplify.swap_activation(*model[:2], 'relu', [0, 2])
  found = [layer.activation for layer in build.layer_configs(config)]
  assert found == ['relu', 'gelu', 'relu']
  assert set(found) <= set(layers.ACTIVATIONS)
