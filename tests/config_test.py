"""Reading a config: what is refused, with which words, and what is read."""

import json
import subprocess
import sys

import ml_collections
import pytest

from effformer import config as config_lib
from effformer import config_check, config_tracked, errors


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
  monkeypatch.chdir(repository)


def test_loading_needs_neither_jax_nor_configs_on_the_path(
  repository, tmp_path
):
  code = (
    'import sys\n'
    f'sys.path.insert(0, {str(repository)!r})\n'
    'from effformer import config\n'
    'del sys.path[0]\n'
    f"config.load('{repository}/configs/lra_text.py:linear,quick')\n"
    "bad = {'jax', 'jaxlib', 'tensorflow', 'torch'} & set(sys.modules)\n"
    'assert not bad, bad\n'
  )
  subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)


def test_overrides_reach_the_config_in_their_type():
  config, overridden = config_lib.load(
    'configs/lra_text.py:linear,quick',
    [
      '--config.train.num_steps=500',
      'train.learning_rate=1',
      'data.stand_in=false',
      'data.train=my=file.tsv',
      'model.layers.1.window=7',
      'model.layers.1.mixer=local',
    ],
  )
  assert config.train.num_steps == 500
  assert type(config.train.learning_rate) is float
  assert config.data.stand_in is False
  assert config.data.train == 'my=file.tsv'
  assert config.model.layers.to_dict() == {'1': {'mixer': 'local', 'window': 7}}
  assert overridden[:2] == ['train.num_steps', 'train.learning_rate']
  assert len(overridden) == 6
  assert config.is_locked


def test_overrides_may_be_a_mapping_of_values():
  overrides = {'train.learning_rate': 1, 'data.stand_in': False, 'seed': '3'}
  config, overridden = config_lib.load('configs/lra_text.py', overrides)
  assert (config.train.learning_rate, config.seed) == (1.0, 3)
  assert overridden == list(overrides)
  for key, value in [('seed', True), ('seed', 1.0), ('data.stand_in', 1)]:
    with pytest.raises(errors.ConfigError, match=key):
      config_lib.load('configs/lra_text.py', {key: value})


def test_split_flags_leaves_other_words_alone():
  words = ['--config=a.py', '--config.seed=1', 'x', '--config.data.train=a=b']
  overrides, rest = config_lib.split_flags(words)
  assert overrides == ['seed=1', 'data.train=a=b']
  assert rest == ['--config=a.py', 'x']
  with pytest.raises(errors.ConfigError, match='stand_in has no value'):
    config_lib.split_flags(['--config.data.stand_in'])


def test_what_is_not_of_the_preset_is_noted():
  argument = 'configs/lra_text.py:linear,quick'
  plain, _ = config_lib.load(argument)
  same = {'train.num_steps': plain.train.num_steps}
  assert plain.overridden == config_lib.load(argument, same)[0].overridden == ''
  other = {'train.num_steps': 7, 'model.layers.0.mixer': 'full', **same}
  other |= {'train.num_steps': 7}
  changed, _ = config_lib.load(argument, other)
  assert changed.overridden == 'model.layers.0.mixer,train.num_steps'
  with pytest.raises(errors.ConfigError, match='written, not set'):
    config_lib.load(argument, {'overridden': 'x'})


def test_what_is_not_of_the_preset_is_kept_with_a_run(tmp_path):
  argument = 'configs/lra_text.py:linear,quick'
  changed, _ = config_lib.load(argument, {'train.num_steps': 7})
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(config_lib.to_json_dict(changed)))
  again, _ = config_lib.load(str(path), {'model.width': 8})
  assert again.overridden == 'model.width,train.num_steps'


def test_explain_marks_overridden_keys():
  config, overridden = config_lib.load('configs/lra_text.py', ['seed=7'])
  lines = config_lib.explain(config, overridden)
  assert '* seed = 7' in lines
  assert "  task = 'text'" in lines
  assert sum(line.startswith('*') for line in lines) == 1
  assert len(lines) == len(list(config_check.leaves(config)))


def test_json_gives_the_config_back():
  config, _ = config_lib.load(
    'configs/lra_text.py', ['model.layers.0.num_heads=2']
  )
  values = json.loads(json.dumps(config_lib.to_json_dict(config)))
  assert values['model']['layers'] == {'0': {'num_heads': 2}}
  again = ml_collections.ConfigDict(values)
  assert config_lib.to_json_dict(again) == values
  # JSON has no tuples.
  del again.compress.shapes
  again.compress.shapes = config.compress.shapes
  assert again == config.unlock()


FILES = {
  'raises.py': ('from configs import common\n1 / 0\n', 'ZeroDivisionError', 2),
  'syntax.py': ('from configs import common\nx = = 1\n', 'SyntaxError', 2),
  'module.py': ('import nothing_of_that_name\n', 'ModuleNotFoundError', 1),
  'fails.py': (
    'from configs import common\ndef get_config(arg):\n  return arg.nothing\n',
    'AttributeError',
    3,
  ),
}


@pytest.mark.parametrize('name', FILES)
def test_names_the_row_of_a_file_that_fails(tmp_path, name):
  text, kind, row = FILES[name]
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(errors.ConfigError) as caught:
    config_lib.load(str(path))
  assert kind in str(caught.value)
  assert f'{path}:{row}' in str(caught.value)
  assert len(str(caught.value).splitlines()) <= 5


HEADER = 'from configs import common, lra_text\n\n\ndef get_config(arg):\n'


@pytest.mark.parametrize(
  ('body', 'named'),
  [
    ('  return {}\n', 'returns dict'),
    ('  return common.ml_collections.ConfigDict()\n', 'mixer.name=None'),
    (
      '  config = lra_text.get_config(arg).unlock()\n'
      '  config.train.lerning_rate = 1.0\n  return config\n',
      "Did you mean 'train.learning_rate'?",
    ),
    (
      '  config = lra_text.get_config(arg).unlock()\n'
      '  del config.train.beta1\n  return config\n',
      "no key 'train.beta1'",
    ),
    (
      '  config = lra_text.get_config(arg)\n'
      '  with config.ignore_type():\n    config.seed = 1.0\n  return config\n',
      'seed=1.0 is not a whole number',
    ),
    (
      '  config = lra_text.get_config(arg)\n'
      "  config.mixer.name = 'local'\n  return config\n",
      'is a setting of full, but the mechanism is local',
    ),
  ],
)
def test_refuses_a_file_that_breaks_the_schema(tmp_path, body, named):
  path = tmp_path / 'mine.py'
  path.write_text(HEADER + body)
  with pytest.raises(errors.ConfigError) as caught:
    config_lib.load(str(path))
  assert named in str(caught.value)
  assert len(str(caught.value).splitlines()) <= 5


def test_a_file_without_the_schema_is_refused(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('def get_config(arg):\n  return arg\n')
  with pytest.raises(errors.ConfigError, match='does not import'):
    config_lib.load(str(path))


def test_loads_from_any_folder_and_leaves_the_path_alone(
  repository, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  before = list(sys.path)
  config, _ = config_lib.load(f'{repository}/configs/lra_listops.py:local')
  assert config.mixer.name == 'local'
  assert sys.path == before


@pytest.mark.parametrize(
  'argument', ['local+full,quick', 'longformer,preset=paper', 'sparse', 'nsa']
)
def test_the_json_of_a_run_is_its_config_again(tmp_path, monkeypatch, argument):
  before = config_lib.load(
    f'configs/lra_text.py:{argument}', ['model.layers.0.num_heads=2']
  )[0]
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(config_lib.to_json_dict(before)))
  monkeypatch.chdir(tmp_path)
  after, overridden = config_lib.load(str(path), ['train.num_steps=7'])
  assert overridden == ['train.num_steps']
  assert after.is_locked
  expected = before.to_dict()
  expected['train']['num_steps'] = 7
  expected['overridden'] += ',train.num_steps'
  assert after.to_dict() == expected


DOTTED = json.dumps(
  {
    name: {'a.b': 1}
    for name in ('model', 'mixer', 'data', 'train', 'pretrain', 'mesh')
  }
)


@pytest.mark.parametrize(
  'text', ['{', '[1]', '{"seed": 0}', '\xff', '{"mixer": 3}', DOTTED]
)
def test_json_that_is_no_config_is_refused(tmp_path, text):
  path = tmp_path / 'config.json'
  path.write_bytes(text.encode('latin-1'))
  with pytest.raises(errors.ConfigError, match=r'config\.json') as caught:
    config_lib.load(str(path))
  assert len(str(caught.value).splitlines()) <= 4


def test_tracked_records_what_is_read():
  config, _ = config_lib.load(
    'configs/lra_text.py:local', ['model.layers.0.num_heads=2']
  )
  view = config_tracked.tracked(config)
  everything = [key for key, _ in config_check.leaves(config)]
  config_lib.explain(view)
  assert config_lib.to_json_dict(view) == config_lib.to_json_dict(config)
  assert view.unread() == everything

  assert view.train.num_steps == config.train.num_steps
  assert view['seed'] == 0
  assert dict(**view.mixer) == config.mixer.to_dict()
  assert dict(view.model.layers.get('0', {})) == {'num_heads': 2}
  assert view.model.layers.get('1', {}) == {}
  assert 'data' in view
  assert not hasattr(view.data, 'nothing')
  read = {'train.num_steps', 'seed', 'model.layers.0.num_heads'}
  read |= {key for key in everything if key.startswith('mixer.')}
  assert view.unread() == [key for key in everything if key not in read]
  assert view.mixer.unread() == []

  assert view.to_dict() == config.to_dict()
  assert view.unread() == []
