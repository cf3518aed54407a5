"""Another attention in a pretrained model."""

import jax
import numpy as np
import pytest

from effformer import attention, pretrained
from effformer.compress import share
from effformer.errors import ConfigError
from tests.pretrained.golden_test import folder_of, golden, outputs

NAMES = ('query', 'key', 'value', 'out')


@pytest.fixture
def bert(tmp_path):
  return pretrained.load(folder_of('bert-classifier', tmp_path))


@pytest.fixture
def gpt2(tmp_path):
  return pretrained.load(folder_of('gpt2-predictor', tmp_path))


def paths(*layers):
  return tuple(
    sorted(
      f'encoder/layer_{index}/mixer/{name}/{part}'
      for index in layers
      for name in NAMES
      for part in ('bias', 'kernel')
    )
  )


@pytest.mark.parametrize('layers', [None, (1,)])
def test_a_window_over_all_tokens_is_the_same_model(bert, layers):
  """All weights stay and have the meaning that they had."""
  _, _, arrays = golden('bert-classifier')
  swapped = pretrained.swap(bert, 'local', layers, settings={'window': 64})
  assert swapped.kept == paths(*(layers or (0, 1)))
  assert swapped.made == swapped.left == ()
  assert swapped.model.config.model.layers['1'].mixer == 'local'
  y = outputs(swapped.model, arrays)
  np.testing.assert_allclose(y, arrays['y'], atol=1e-4)
  narrow = pretrained.swap(bert, 'local', layers, settings={'window': 2})
  assert np.abs(outputs(narrow.model, arrays) - y).max() > 0.01


def test_causal_models_stay_causal(gpt2):
  _, _, arrays = golden('gpt2-predictor')
  swapped = pretrained.swap(gpt2, 'local', settings={'window': 64}).model
  np.testing.assert_allclose(outputs(swapped, arrays), arrays['y'], atol=1e-4)


def test_what_is_new_and_what_has_no_place(bert):
  swapped = pretrained.swap(bert, 'linformer', (0,), settings={'rank': 3})
  assert swapped.kept == paths(0)
  assert swapped.made
  assert all('layer_0/mixer' in path for path in swapped.made)
  assert swapped.left == ()
  mixed = pretrained.swap(bert, 'fnet', (1,))
  assert mixed.kept == mixed.made == ()
  assert mixed.left == paths(1)
  # Nothing else is another array.
  for name in ('embedding', 'positions', 'head_out'):
    jax.tree.map(
      np.testing.assert_array_equal,
      mixed.model.params[name],
      bert.params[name],
    )


def test_layers_of_a_share_group_have_one_report(bert):
  config, params = share.tie(
    bert.config, bert.params, {'a': (0, 1)}, align=False
  )
  tied = bert._replace(config=config, params=params)
  own = tuple(path.replace('layer_0', 'shared_a') for path in paths(0))
  swapped = pretrained.swap(tied, 'local', settings={'window': 2})
  assert swapped.kept == own
  assert swapped.made == swapped.left == ()
  mixed = pretrained.swap(tied, 'fnet')
  assert (mixed.kept, mixed.made, mixed.left) == ((), (), own)
  more = pretrained.swap(tied, 'linformer', settings={'rank': 3})
  assert more.kept == own
  assert more.made
  assert all(path.startswith('encoder/shared_a/mixer/') for path in more.made)
  # A group is swapped whole.
  with pytest.raises(ConfigError, match='share group'):
    pretrained.swap(tied, 'local', (0,))


def test_new_parameters_are_those_of_the_seed(bert):
  made = [
    pretrained.swap(
      bert, 'linformer', (0,), settings={'rank': 3}, seed=seed
    ).model.params['encoder']['layer_0']['mixer']
    for seed in (0, 0, 1)
  ]
  first, again, other = (jax.tree.leaves(x) for x in made)
  assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
  assert not all(
    np.array_equal(a, b) for a, b in zip(first, other, strict=True)
  )


def test_swapped_twice_is_swapped_back(bert):
  there = pretrained.swap(bert, 'local', settings={'window': 2}).model
  back = pretrained.swap(there, 'full').model
  _, _, arrays = golden('bert-classifier')
  np.testing.assert_allclose(outputs(back, arrays), arrays['y'], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('mechanism', attention.TABLE)
def test_every_mechanism_can_take_the_place(bert, gpt2, mechanism):
  supports = attention.TABLE[mechanism].supports
  for model, name, can in (
    (bert, 'bert-classifier', supports.bidirectional),
    (gpt2, 'gpt2-predictor', supports.causal),
  ):
    if not can:
      with pytest.raises(ConfigError, match=f'{mechanism} is not'):
        pretrained.swap(model, mechanism)
      continue
    swapped = pretrained.swap(model, mechanism)
    assert np.isfinite(outputs(swapped.model, golden(name)[2])).all()


def test_what_cannot_be_swapped(bert, gpt2, tmp_path):
  for arguments, words in (
    ((bert, 'attention'), "no mechanism 'attention'; there are full"),
    ((bert, 'local', (2,)), 'layers 0 to 1'),
    ((bert, 'local', (-1,)), 'no layer -1'),
    ((gpt2, 'fnet'), 'fnet is not causal'),
  ):
    with pytest.raises(ConfigError, match=words):
      pretrained.swap(*arguments)
  with pytest.raises(ConfigError, match="local has no setting 'rank'"):
    pretrained.swap(bert, 'local', settings={'rank': 3})
  with pytest.raises(ConfigError, match='cannot take the place'):
    pretrained.swap(bert, 'local', settings={'window': 0})
  # Nor is it a BERT any more.
  swapped = pretrained.swap(bert, 'local').model
  with pytest.raises(ConfigError, match=r'model\.layers'):
    pretrained.save(swapped, tmp_path / 'new')
