"""Hybrids: several mechanisms in one model, by name, for the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, lra_text
from effformer import attention, config_check, errors
from effformer.models import build


def mixers_of(config):
  return [layer.mixer for layer in build.layer_configs(config)]


def with_layers(argument, num_layers, **keys):
  config = lra_text.get_config(f'{argument},quick')
  config.update_from_flattened_dict(
    {
      'model.num_layers': num_layers,
      **{key.replace('__', '.'): value for key, value in keys.items()},
    }
  )
  return config


def test_members_have_equal_shares_of_the_layers():
  local, full, linear = 'local', 'full', 'linear'
  assert mixers_of(with_layers('local+full', 4)) == [local] * 2 + [full] * 2
  assert mixers_of(with_layers('local+full', 3)) == [local] * 2 + [full]
  three = with_layers('local+linear+full', 3)
  assert mixers_of(three) == [local, linear, full]
  assert three.mixer.name == 'local+linear+full'


def test_settings_reach_the_members_that_have_them():
  config = with_layers('local+full', 2, mixer__window=7, mixer__block=32)
  local, full = (dict(x.settings) for x in build.layer_configs(config))
  assert (local['window'], local['block']) == (7, 32)
  assert full['block'] == 32
  assert 'window' not in full


def test_a_preset_asks_its_members_only_for_their_settings():
  config = lra_text.get_config('local+linear,preset=paper')
  alone = lra_text.get_config('local,preset=paper')
  assert config.mixer.window == alone.mixer.window
  assert config.model.attention_dropout == alone.model.attention_dropout


@pytest.mark.parametrize('first', common.MIXERS)
def test_every_pair_is_a_config(first):
  for second in common.MIXERS:
    config = with_layers(f'{first}+{second}', 2)
    config_check.check(config, common)
    assert mixers_of(config) == [first, second]


@pytest.mark.slow
def test_one_model_of_all_mechanisms():
  names = sorted(attention.TABLE)
  config = with_layers('+'.join(names), len(names), data__max_length=16)
  assert mixers_of(config) == names
  model = build.sequence_classifier(config, 20, 3)
  ids_BT = np.tile(np.arange(1, 17), (2, 1))

  def loss(params):
    logits_BC = model.apply({'params': params}, ids_BT, jnp.array([16, 9]))
    return (logits_BC**2).sum()

  params = model.init(jax.random.key(0), ids_BT, jnp.array([16, 9]))['params']
  gradients = jax.jit(jax.grad(loss))(params)
  layers = gradients['encoder']
  # Every layer that has parameters has a part in the result.
  for index, name in enumerate(names):
    leaves = jax.tree.leaves(layers[f'layer_{index}'].get('mixer', {}))
    assert all(np.isfinite(leaf).all() for leaf in leaves), name
    if leaves:
      assert max(np.abs(leaf).max() for leaf in leaves) > 0, name


def test_wrong_hybrids_are_refused():
  with pytest.raises(common.ArgumentError, match="'ful'") as caught:
    common.parse('local+ful')
  assert 'full' in caught.value.known
  with pytest.raises(errors.ConfigError, match=r'2 members.*num_layers=1'):
    config_check.check(with_layers('local+full', 1), common)


def test_settings_with_two_defaults_are_left_out(monkeypatch):
  rows = {'a': {'same': 1, 'own': 2, 'apart': 3}, 'b': {'same': 1, 'apart': 4}}
  monkeypatch.setattr(common, 'MIXERS', rows)
  assert common.mixer_row('a+b') == {'same': 1, 'own': 2}
  assert common.mixer_row('a') == rows['a']
