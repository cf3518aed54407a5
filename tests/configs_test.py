"""Every config file: its rows, its header, and the rooms that obey it."""

import ast
import dataclasses
import itertools
import re
import shlex

import pytest

from configs import (
  common,
  language,
  lra_image,
  lra_listops,
  lra_pathfinder32,
  lra_pathfinder64,
  lra_pathfinder128,
  lra_pathfinder256,
  lra_retrieval,
  lra_text,
  pair,
  sentence,
  similarity,
)
from effformer import attention, config_check, errors, tasks
from effformer import config as config_lib
from effformer.models import build, layers, norms

FILES = {
  'lra_text': lra_text,
  'lra_listops': lra_listops,
  'lra_image': lra_image,
  'lra_retrieval': lra_retrieval,
  'lra_pathfinder32': lra_pathfinder32,
  'lra_pathfinder64': lra_pathfinder64,
  'lra_pathfinder128': lra_pathfinder128,
  'lra_pathfinder256': lra_pathfinder256,
  'language': language,
  'sentence': sentence,
  'pair': pair,
  'similarity': similarity,
}
ARGUMENTS = [
  f'{mechanism},preset={preset}{quick}'
  for mechanism, preset, quick in itertools.product(
    common.MIXERS, common.PRESETS, ('', ',quick')
  )
]
# A key that comes or goes changes what people have in their files, scripts
# and checkpoints: change this table only together with docs and readers.
SCHEMA = {
  'compress.controls': bool,
  'compress.parent': str,
  'compress.recipe': str,
  'compress.seed': int,
  'compress.shapes': tuple,
  'model.zero_is_padding': bool,
  'data.drop_remainder': bool,
  'data.directory': str,
  'data.documents': str,
  'data.max_bad_fraction': float,
  'data.max_length': int,
  'data.num_threads': int,
  'data.prefetch': int,
  'data.stand_in': bool,
  'data.test': str,
  'data.test_examples': int,
  'data.tokenizer': str,
  'data.train': str,
  'data.train_examples': int,
  'data.validate_on_test': bool,
  'data.validation': str,
  'data.validation_examples': int,
  'mesh.data': int,
  'mesh.fsdp': int,
  'mixer.name': str,
  'model.activation': str,
  'model.pretrained': str,
  'model.attention_dropout': float,
  'model.conv_width': int,
  'model.dropout': float,
  'model.dtype': str,
  'model.extra_tokens': int,
  'model.front_end': str,
  'model.head_width': int,
  'model.layer_drop': float,
  'model.mlp_chunk': int,
  'model.mlp_rank': int,
  'model.bottleneck': int,
  'model.mlp_width': int,
  'model.norm': str,
  'model.norm_order': str,
  'model.num_heads': int,
  'model.num_layers': int,
  'model.pair_head': str,
  'model.pooling': str,
  'model.position': str,
  'model.qkv_width': int,
  'model.attention_bias': bool,
  'model.channels': int,
  'model.embedding_norm': bool,
  'model.embedding_width': int,
  'model.head_activation': str,
  'model.norm_epsilon': float,
  'model.patch_size': int,
  'model.token_head': str,
  'model.token_types': int,
  'model.remat': bool,
  'model.reversible': bool,
  'model.width': int,
  'overridden': str,
  'preset': str,
  'quick': bool,
  'seed': int,
  'task': str,
  'train.accumulate_steps': int,
  'train.batch_size': int,
  'train.beta1': float,
  'train.beta2': float,
  'train.checkpoint_every_steps': int,
  'train.clip_norm': float,
  'train.decay': str,
  'train.epsilon': float,
  'train.eval_batch_size': int,
  'train.eval_every_steps': int,
  'train.keep_checkpoints': int,
  'train.learning_rate': float,
  'train.log_every_steps': int,
  'train.nonfinite': str,
  'train.num_steps': int,
  'train.schedule': str,
  'train.select': str,
  'train.warmup_steps': int,
  'train.weight_decay': float,
  'pretrain.learning_rate': float,
  'pretrain.mask_fraction': float,
  'pretrain.num_steps': int,
  'pretrain.objective': str,
  'pretrain.warmup_steps': int,
}


def test_all_files_are_tested(repository):
  names = {path.stem for path in (repository / 'configs').glob('*.py')}
  schema = {'__init__', 'common', 'keys', 'mechanisms', 'published', 'values'}
  # Those with recipes: recipes_test.
  with_recipes = {'recipes', 'compress_lra_text', 'compress_minilm'}
  assert names - schema - with_recipes == set(FILES)


def test_schema():
  leaves = dict(config_check.leaves(common.base(common.Choice('linear'))))
  assert {key: type(value) for key, value in leaves.items()} == SCHEMA


def test_every_key_has_a_rule_or_takes_any_value():
  free = {'data.train', 'data.validation', 'data.test', 'data.directory'}
  free |= {'data.documents', 'data.tokenizer', 'model.pretrained'}
  free |= {'overridden', 'compress.parent', 'compress.recipe'}
  # Looked at by config_compress.
  free |= {'compress.shapes'}
  free |= {key for key, kind in SCHEMA.items() if kind is bool}
  settings = {f'mixer.{s}' for row in common.MIXERS.values() for s in row}
  free |= {
    f'mixer.{setting}'
    for row in common.MIXERS.values()
    for setting, value in row.items()
    if type(value) is bool
  }
  ruled = {*common.CHOICES, *common.RANGES}
  of_layers = {f'model.layers.{fact}' for fact in common.HEAD_FACTS}
  assert ruled | free == {*SCHEMA, *settings, *of_layers}
  assert not ruled & free


def test_every_key_is_commented(repository):
  lines = [
    line
    for name in ('common', 'keys')
    for line in (repository / f'configs/{name}.py').read_text().splitlines()
  ]
  sections = ('config', 'model', 'data', 'train', 'pretrain', 'mesh')
  sections += ('compress',)
  pattern = re.compile(rf'  ({"|".join(sections)})\.\w+ = ')
  group = {'data.validation', 'data.test', 'train.beta2', 'train.epsilon'}
  group |= {'data.validation_examples', 'data.test_examples', 'config.quick'}
  group |= {'pretrain.warmup_steps'}
  # The sections whose keys are commented in functions of their own.
  group |= {'config.model', 'config.data', 'config.train', 'config.pretrain'}
  group |= {'config.compress'}
  bare = {
    line.split()[0]
    for before, line in itertools.pairwise(lines)
    if pattern.match(line) and not before.strip().startswith('#')
  }
  assert bare == group


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('argument', ARGUMENTS)
def test_every_choice_builds_and_is_locked(repository, name, argument):
  choice = common.parse(argument)
  is_unfit = name == 'language' and choice.mechanism not in common.CAUSAL
  if is_unfit or choice.preset not in FILES[name].PRESETS:
    with pytest.raises(errors.ConfigError):
      config_lib.load(f'{repository}/configs/{name}.py:{argument}')
    return
  config, overridden = config_lib.load(
    f'{repository}/configs/{name}.py:{argument}'
  )
  assert overridden == []
  assert config.is_locked
  assert config == FILES[name].get_config(argument)
  assert config.task == name.removeprefix('lra_')
  assert (config.preset, config.quick) == (choice.preset, choice.quick)
  assert config.mixer.name == choice.mechanism
  is_pretrained = config.model.pretrained != ''
  has_conv = choice.preset == 'modern' and not is_pretrained
  assert config.model.conv_width == (5 if has_conv else 0)
  assert config.train.select == (
    'best' if choice.preset == 'modern' else 'last'
  )
  peak = config.train.learning_rate
  if config.train.schedule == 'rsqrt':
    peak /= config.train.warmup_steps**0.5
  if choice.quick:
    assert peak == pytest.approx(FILES[name].QUICK_PEAK)
    assert config.data.max_length == FILES[name].QUICK['data.max_length']


def test_parse_takes_the_parts_in_any_order():
  assert common.parse('') == ('full', 'modern', False, False)
  assert common.parse('quick,preset=repo,local') == (
    *('local', 'repo', True),
    False,
  )
  assert common.parse('pretrain,nsa') == ('nsa', 'modern', False, True)


@pytest.mark.parametrize('argument', ['linear,quick', 'full,preset=repo'])
def test_pretraining_is_as_long_as_the_training(repository, argument):
  path = f'{repository}/configs/lra_image.py'
  plain, _ = config_lib.load(f'{path}:{argument}')
  config, _ = config_lib.load(f'{path}:{argument},pretrain')
  assert plain.pretrain.num_steps == 0
  for key in ('num_steps', 'learning_rate', 'warmup_steps'):
    assert config.pretrain[key] == config.train[key] == plain.train[key]
  assert config.pretrain.mask_fraction == 0.5


@pytest.mark.parametrize('name', FILES)
def test_header_has_commands_that_parse(repository, name):
  header = ast.get_docstring(
    ast.parse((repository / f'configs/{name}.py').read_text())
  )
  for field in ('Paper', 'Command', 'Device', 'Expect', 'Smallest command'):
    assert re.search(rf'^{field}\b.*:', header, re.MULTILINE), field
  commands = re.findall(r'python -m effformer\.main .*', header)
  assert len(commands) == 2
  for command in commands:
    flags = dict(w.split('=', 1) for w in shlex.split(command)[3:])
    assert set(flags) == {'--config'}
    assert flags['--config'].startswith(f'configs/{name}.py')
    config, _ = config_lib.load(f'{repository}/{flags["--config"]}')
  assert config.quick


def test_rows_are_the_settings_of_attention():
  assert set(common.MIXERS) == set(attention.TABLE)
  shared = {field.name for field in dataclasses.fields(attention.MultiHead)}
  # The model sets the length; the length of a chunk changes no result.
  elsewhere = {'chunk', 'max_length'}
  for name, row in common.MIXERS.items():
    own = {k: v for k, v in attention.settings(name).items() if k not in shared}
    assert set(own) - set(row) <= elsewhere, name
    assert row == {setting: own[setting] for setting in row}, name
    supports = attention.TABLE[name].supports
    assert (name in common.WITHOUT_ROTARY) != supports.rotary
    assert (name in common.CAUSAL) == supports.causal
    has_heads = 'head_width' in attention.settings(name)
    assert (name in common.HEAD_FACTS['head_width']) == has_heads
    assert (name in common.HEAD_FACTS['num_kv_heads']) == supports.grouped


@pytest.mark.parametrize('key', ['mixer.form', 'mixer.sharing'])
def test_choices_are_those_that_attention_takes(key):
  setting = key.removeprefix('mixer.')
  name = next(name for name, row in common.MIXERS.items() if setting in row)
  for value in common.CHOICES[key]:
    attention.build(name, **{setting: value})
  with pytest.raises(ValueError, match=setting) as caught:
    attention.build(name, **{setting: 'other'})
  assert all(value in str(caught.value) for value in common.CHOICES[key])


def test_choices_are_those_of_model_and_tasks():
  assert common.CHOICES['model.dtype'] == tuple(build.DTYPES)
  assert common.CHOICES['model.activation'] == tuple(layers.ACTIVATIONS)
  assert common.CHOICES['model.norm'] == norms.KINDS
  assert set(common.CHOICES['task']) == set(tasks.TABLE)
