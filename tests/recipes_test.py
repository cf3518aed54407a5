"""Recipes of config files, and what the section `compress` may hold."""

import ast
import dataclasses
import json
import re
import shlex
import typing

import pytest

from configs import common, compress_lra_text, compress_minilm, recipes
from effformer import config as config_lib
from effformer import config_check, config_compress, errors
from effformer.compress import recipe
from effformer.compress.distill.teaching import Lesson

FILES = {
  'compress_lra_text': compress_lra_text,
  'compress_minilm': compress_minilm,
}
NAMES = tuple(recipes.table(4, 1, 1.0, width=24, num_heads=1))


def load(word='', *overrides, name='compress_lra_text'):
  config, _ = config_lib.load(f'configs/{name}.py:{word}', overrides)
  return config


def steps_of(config):
  rows = config.compress.steps
  return [rows[str(index)].to_dict() for index in range(len(rows))]


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('word', NAMES)
def test_every_recipe_can_be_carried_out(name, word):
  config = load(f'{word},quick', name=name)
  steps = recipe.read(steps_of(config))
  assert config.compress.recipe == word
  for step in steps:
    if isinstance(step, recipe.DropLayers):
      assert max(step.keep) < config.model.num_layers
      assert len(step.keep) == max(config.model.num_layers // 2, 1)


@pytest.mark.parametrize(
  ('word', 'name', 'width'),
  [
    ('quick', 'compress_minilm', 120),
    ('', 'compress_lra_text', 88),
    ('quick', 'compress_lra_text', 24),
  ],
)
def test_a_third_of_the_width_has_heads_of_even_width(word, name, width):
  config = load(f'bottleneck-kd,{word}'.rstrip(','), name=name)
  narrow, train, last = recipe.read(steps_of(config))
  assert narrow == recipe.Bottleneck(width)
  assert train.lesson.states == 1
  assert last.bits == 8
  model = config.model
  assert width % (2 * model.num_heads) == 0
  assert abs(width - model.width / 3) <= model.num_heads
  # A run would obey it.
  config_check.check(
    config_lib.changed(config, {'model.bottleneck': width}), common
  )


@pytest.mark.parametrize('name', FILES)
def test_halves_are_binary_where_the_ternary_recipe_rounds(name):
  """Codes of as many bits, and trainings of as many steps each."""
  first, _, second, last = recipe.read(
    steps_of(load('binary-split,quick', name=name))
  )
  for word, row in (('ternary-kd', None), ('binary-kd', last)):
    train, end = recipe.read(steps_of(load(f'{word},quick', name=name)))
    assert first == second == train
    assert row in (None, end)
    assert (
      (end.tables, end.group) == (last.tables, last.group) == (0, 'channel')
    )
  assert first.lesson.states == 1


def test_the_first_recipe_is_that_without_a_word():
  assert load('linear,quick').compress.recipe == 'int8-storage'
  assert load('linear,quick').mixer.name == 'linear'
  both = load('linear,half-depth-kd,preset=paper')
  assert both.compress.recipe == 'half-depth-kd'
  assert (both.preset, both.mixer.name) == ('paper', 'linear')
  assert both.compress.steps['0'].keep == (0, 2, 5)


def test_half_of_the_layers():
  assert recipes.half(6) == (0, 2, 5)
  for number in range(1, 25):
    kept = recipes.half(number)
    assert len(kept) == max(number // 2, 1)
    assert list(kept) == sorted({*kept})
    assert kept[0] == 0
    if len(kept) > 1:
      assert kept[-1] == number - 1


@pytest.mark.parametrize(
  ('word', 'words'),
  [
    ('int8-storge', "Did you mean 'int8-storage'?"),
    ('int8-storge', "unknown recipe, mechanism or switch 'int8-storge'"),
    ('int8-storage,tiny', 'a recipe is given twice'),
    ('int8-storage,lineer', "Did you mean 'linear'?"),
    ('int8-storage,preset=papper', "Did you mean 'paper'?"),
    ('int8-storage,paper', 'a preset is chosen by preset=paper'),
  ],
)
def test_wrong_words_are_explained(word, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)):
    load(word)


def test_settings_are_those_of_the_steps():
  """Names and types that the config takes, and what `recipe` reads."""
  found = {'do': str}
  for cls in recipe.STEPS.values():
    for name, kind in typing.get_type_hints(cls).items():
      if name not in {field.name for field in dataclasses.fields(cls)}:
        continue
      if kind is Lesson:
        hints = typing.get_type_hints(Lesson).items()
        found |= {f'lesson.{key}': own for key, own in hints}
      elif name != 'settings':
        found[name] = kind
  facts = config_compress.facts({'window': 3})
  assert facts.pop('settings.window') == 3
  assert {*facts} == {*found}
  for name, kind in found.items():
    value = facts[name]
    if typing.get_origin(kind) is tuple:
      assert type(value) is tuple
      assert type(value[0]) is typing.get_args(kind)[0], name
    else:
      assert type(value) is kind, name


def test_single_settings_by_flags():
  config = load(
    'half-depth-kd,quick',
    'compress.steps.1.lesson.soft=0.25',
    'compress.steps.0.keep=1',
    'compress.steps.2.method=gptq',
    'compress.steps.1.steps=7',
    'compress.shapes=2x5,1x512',
  )
  drop, train, last = recipe.read(steps_of(config))
  assert drop.keep == (1,)
  assert (train.steps, train.lesson.soft) == (7, 0.25)
  assert last.method == 'gptq'
  assert config.compress.shapes == ('2x5', '1x512')
  assert 'compress.steps.0.keep' in config.overridden
  config = load('local-kd,quick', 'compress.steps.0.settings.window=6')
  assert recipe.read(steps_of(config))[0].settings == {'window': 6}


@pytest.mark.parametrize('name', FILES)
def test_tiny_learns_what_is_inside_first(name):
  steps = recipe.read(steps_of(load('tiny,quick', name=name)))
  first, second = (s.lesson for s in steps if isinstance(s, recipe.Train))
  assert (first.hard, first.soft, first.vectors) == (0, 0, 0)
  assert (first.states, first.mixers) == (1, 1)
  assert second.mixers == 0
  assert second.soft + second.vectors == 1


def test_the_json_of_a_compression_is_its_config_again(tmp_path):
  config = load('tiny,quick', 'compress.steps.1.steps=7')
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(config_lib.to_json_dict(config)))
  again, _ = config_lib.load(str(path))
  assert again == config
  assert recipe.read(steps_of(again)) == recipe.read(steps_of(config))


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('compress.steps.0.bit=4', "Did you mean 'compress.steps.0.bits'?"),
    ('compress.steps.0.bits=four', 'is not a whole number'),
    ('compress.steps=4', 'compress.steps is a section'),
    ('compress.steps.2.bits=4', 'Number them from 0 to 1'),
    ('compress.steps.0.settings.windw=4', 'compress.steps.0.settings.window'),
    ('compress.shapes=8by9', "'8by9', which is no batch x length"),
    ('compress.shapes=8x0', "'8x0', which is no batch x length"),
    ('compress.shapes=8x513', 'data.max_length=512'),
    ('compress.recipe=tiny', 'would change a name'),
    ('compress.parents=x', "Did you mean 'compress.parent'?"),
  ],
)
def test_wrong_flags_are_explained(flag, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)):
    load('int8-storage,quick', flag)


def test_other_runs_have_no_steps():
  config, _ = config_lib.load('configs/lra_text.py:linear,quick')
  assert not config.compress.steps
  assert config.compress.recipe == config.compress.parent == ''
  # Shapes that are longer than the rows are no matter there.
  short = config_lib.changed(config, {'data.max_length': 8})
  config_compress.check(short)


@pytest.mark.parametrize('name', FILES)
def test_headers_have_commands_that_parse(repository, name):
  text = (repository / f'configs/{name}.py').read_text()
  header = ast.get_docstring(ast.parse(text))
  for field in ('Paper', 'Command', 'Device', 'Expect', 'Smallest command'):
    assert re.search(rf'^{field}\b.*:', header, re.MULTILINE), field
  joined = re.sub(r'\n +--', ' --', header)
  commands = re.findall(r'python -m effformer\.main --mode=compress.*', joined)
  assert len(commands) == 2
  for command in commands:
    flags = dict(word.split('=', 1) for word in shlex.split(command)[3:])
    argument = flags['--config']
    assert argument.startswith(f'configs/{name}.py:')
    config, _ = config_lib.load(f'{repository}/{argument}')
    assert config.compress.recipe in NAMES
  assert config.quick
  assert common is FILES[name].common
