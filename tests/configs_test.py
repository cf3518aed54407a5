"""Every config file: its rows, its header, and the rooms that obey it."""

import ast
import dataclasses
import functools
import itertools
import math
import re
import shlex

import jax
import jax.numpy as jnp
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
)
from effformer import attention, config_check, errors, tasks
from effformer import config as config_lib
from effformer.models import build, layers

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
  'data.train': str,
  'data.train_examples': int,
  'data.validate_on_test': bool,
  'data.validation': str,
  'data.validation_examples': int,
  'mesh.data': int,
  'mesh.fsdp': int,
  'mixer.name': str,
  'model.activation': str,
  'model.attention_dropout': float,
  'model.conv_width': int,
  'model.dropout': float,
  'model.dtype': str,
  'model.extra_tokens': int,
  'model.front_end': str,
  'model.head_width': int,
  'model.layer_drop': float,
  'model.mlp_chunk': int,
  'model.mlp_width': int,
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
  schema = {'__init__', 'common', 'keys', 'mechanisms', 'values'}
  assert names - schema == set(FILES)


def test_schema():
  leaves = dict(config_check.leaves(common.base(common.Choice('linear'))))
  assert {key: type(value) for key, value in leaves.items()} == SCHEMA


def test_every_key_has_a_rule_or_takes_any_value():
  free = {'data.train', 'data.validation', 'data.test', 'data.directory'}
  free |= {'data.documents', 'overridden'}
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
  pattern = re.compile(rf'  ({"|".join(sections)})\.\w+ = ')
  group = {'data.validation', 'data.test', 'train.beta2', 'train.epsilon'}
  group |= {'data.validation_examples', 'data.test_examples', 'config.quick'}
  group |= {'pretrain.warmup_steps'}
  # The sections whose keys are commented in functions of their own.
  group |= {'config.model', 'config.data', 'config.train', 'config.pretrain'}
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
  is_unfit = choice.mechanism not in common.CAUSAL
  if name == 'language' and (is_unfit or choice.preset != 'modern'):
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
  assert config.model.conv_width == (5 if choice.preset == 'modern' else 0)
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


def test_rows_hold_what_lra_published():
  """Against LRA at cd31e5c and Tay et al. 2021, appendix A."""
  repo = lra_listops.get_config('preset=repo')
  assert repo.data.max_length == 2000
  assert (repo.model.num_layers, repo.model.width) == (4, 512)
  assert (repo.train.num_steps, repo.train.warmup_steps) == (5000, 1000)
  paper = lra_text.get_config('preset=paper')
  assert (paper.model.num_layers, paper.model.width) == (6, 512)
  for config in (repo, paper):
    assert config.train.beta2 == 0.98
    assert config.train.epsilon == 1e-9
    assert config.train.decay == 'all'
    assert config.train.clip_norm == 0
    assert config.model.head_width == config.model.mlp_width


# Each model of LRA at cd31e5c as it ran: layers, heads, widths of the tokens,
# of all heads and of the feed-forward part (and of the classifier), pooling and
# dropout. Models that cannot be built there are without the fault.
COLUMNS = (
  *('model.num_layers', 'model.num_heads', 'model.width', 'model.qkv_width'),
  *('model.mlp_width', 'model.pooling', 'model.dropout'),
)
LISTOPS = (4, 8, 512, 512, 1024, 'cls', 0.1)
TEXT = (4, 4, 256, 256, 1024, 'cls', 0.1)
RETRIEVAL = (4, 4, 128, 128, 512, 'cls', 0.1)
IMAGE = (1, 8, 128, 64, 128, 'cls', 0.3)
LRA = (
  *('full', 'local', 'sparse', 'longformer', 'linformer', 'reformer'),
  *('sinkhorn', 'synthesizer', 'bigbird', 'linear', 'performer'),
)
LRA_SIZES = {
  'lra_listops': {
    **dict.fromkeys(LRA, LISTOPS),
    # No pooling reaches the model, whose own is this.
    'sinkhorn': (4, 8, 512, 512, 1024, 'mean', 0.1),
  },
  'lra_text': {
    **dict.fromkeys(LRA, TEXT),
    # 'cls' raises.
    'sinkhorn': (4, 4, 256, 256, 1024, 'mean', 0.1),
  },
  'lra_retrieval': dict.fromkeys(LRA, RETRIEVAL),
  'lra_image': {
    **dict.fromkeys(LRA, IMAGE),
    'local': (1, 2, 128, 64, 128, 'mean', 0.3),
    'longformer': (4, 4, 128, 64, 128, 'mean', 0.3),
    # The model ignores a width of its heads of 32.
    'reformer': (4, 8, 64, 64, 64, 'cls', 0.3),
    # Four heads by a misspelt key, which raises.
    'bigbird': (1, 4, 128, 64, 128, 'cls', 0.3),
    # 'cls' raises.
    'sinkhorn': (1, 1, 32, 32, 64, 'mean', 0.1),
  },
  'lra_pathfinder32': {
    'full': (4, 4, 32, 16, 32, 'mean', 0.2),
    'local': (2, 4, 64, 32, 64, 'mean', 0.1),
    'sparse': (1, 8, 32, 16, 32, 'mean', 0.2),
    'longformer': (2, 2, 32, 16, 32, 'mean', 0.1),
    'linformer': (1, 2, 32, 16, 32, 'mean', 0.2),
    # As above.
    'reformer': (2, 8, 64, 64, 64, 'mean', 0.2),
    'sinkhorn': (2, 4, 32, 16, 64, 'mean', 0.2),
    'synthesizer': (2, 4, 64, 32, 64, 'mean', 0.2),
    'bigbird': (4, 2, 64, 32, 64, 'mean', 0.2),
    'linear': (1, 2, 128, 64, 128, 'mean', 0.2),
    # What the maintainers posted in issue 37.
    'performer': (1, 8, 128, 64, 128, 'mean', 0.2),
  },
}
# What else took effect: of each model on all tasks, and of a task.
LRA_SETTINGS = {
  'linear': {'model.attention_dropout': 0.0},
  'performer': {'model.attention_dropout': 0.0},
  'bigbird': {'model.attention_dropout': 0.0, 'mixer.num_random': 3},
  'local': {'mixer.window': 25},
  'linformer': {'mixer.rank': 16, 'mixer.sharing': 'key_value'},
  'longformer': {'mixer.attention_window': 512, 'mixer.global_tokens': 0},
  'sparse': {
    'mixer.pattern': 'fixed',
    'mixer.stride': 50,
    'mixer.columns': 10,
    'mixer.split_heads': False,
  },
  'synthesizer': {'mixer.variant': 'random', 'mixer.mix_dot_product': True},
  'reformer': {
    'model.attention_dropout': 0.0,
    'mixer.num_hashes': 1,
    'mixer.num_buckets': 10,
  },
  'sinkhorn': {
    'model.head_width': 0,
    'mixer.block': 50,
    'mixer.combine': 'sum',
  },
}
LRA_SETTINGS_OF_TASK = {
  ('lra_listops', 'performer'): {
    'mixer.features': 'positive',
    'mixer.num_features': 2,
  },
  # A tenth of the row, which has a token more where pooling is 'cls'.
  ('lra_listops', 'reformer'): {'mixer.block': 201},
  ('lra_text', 'reformer'): {'mixer.block': 101},
  ('lra_retrieval', 'reformer'): {'mixer.block': 401},
  # The head of pairs is the same for all.
  ('lra_retrieval', 'sinkhorn'): {'model.head_width': 512},
  ('lra_image', 'sinkhorn'): {
    'mixer.block': 64,
    'train.weight_decay': 0.7,
  },
  ('lra_pathfinder32', 'sinkhorn'): {'mixer.block': 64},
  **{
    (name, mechanism): row
    for name in ('lra_image', 'lra_pathfinder32')
    for mechanism, row in {
      'bigbird': {'mixer.block': 64},
      'local': {'mixer.window': 32},
      'reformer': {'mixer.block': 103},
    }.items()
  },
}


def as_published(name, mechanism):
  """Key -> value of a model of LRA."""
  row = dict(zip(COLUMNS, LRA_SIZES[name][mechanism], strict=True))
  row['model.head_width'] = row['model.mlp_width']
  row.update(LRA_SETTINGS.get(mechanism, {}))
  return row | LRA_SETTINGS_OF_TASK.get((name, mechanism), {})


def flat(name, argument):
  """Key -> value of a config; where heads have the width of tokens, that."""
  leaves = dict(config_check.leaves(FILES[name].get_config(argument)))
  leaves['model.qkv_width'] = leaves['model.qkv_width'] or leaves['model.width']
  return leaves


@pytest.mark.parametrize('name', LRA_SIZES)
@pytest.mark.parametrize('mechanism', LRA)
def test_mechanisms_of_repo_are_those_of_lra(name, mechanism):
  published = as_published(name, mechanism)
  config = flat(name, f'{mechanism},preset=repo')
  assert {key: config[key] for key in published} == published
  # And nothing else is laid over the Transformer.
  base = flat(name, 'full,preset=repo')
  changed = {key for key in base if config.get(key) != base[key]}
  own = {key for key in changed if key.startswith('mixer.')}
  assert changed - own <= set(published)


@pytest.mark.parametrize('name', LRA_SIZES)
@pytest.mark.parametrize('mechanism', LRA)
def test_mechanisms_of_paper_are_set_as_those_of_repo(name, mechanism):
  """Apart from what LRA's configs of Text meant, and the length of its rows."""
  repo = flat(name, f'{mechanism},preset=repo')
  paper = flat(name, f'{mechanism},preset=paper')
  own = {key for key in repo if key.startswith('mixer.')}
  meant = {
    'linformer': {'mixer.rank': 32},
    'synthesizer': {
      'mixer.variant': 'factorized_random',
      'mixer.factor_width': 32,
      'mixer.mix_dot_product': False,
    },
    'reformer': {'mixer.block': 401},
  }
  expected = {key: repo[key] for key in own}
  if name == 'lra_text':
    expected |= meant.get(mechanism, {})
  assert {key: paper[key] for key in own} == expected


def rows_of_models(repository):
  """(mechanism, old way) of the table of models in docs/lra.md."""
  text = (repository / 'docs/lra.md').read_text()
  table = text.partition('## Models')[2].partition('\n\n`bigbird`')[0]
  rows = re.findall(r'^\| (\w+) \| .* \| ([^|]*) \|$', table, re.MULTILINE)
  return [row for row in rows if row[0] in common.MIXERS]


def test_docs_name_every_model_of_lra(repository):
  rows = [mechanism for mechanism, _ in rows_of_models(repository)]
  assert sorted(rows) == sorted({*LRA} - {'full'})


@pytest.mark.parametrize('mechanism', sorted({*LRA} - {'full'}))
def test_switches_of_docs_work_and_are_in_the_presets(repository, mechanism):
  old_way = dict(rows_of_models(repository))[mechanism]
  switch = r'`((?:mixer|model)\.[\w.]+)=(\w+)`'
  for key, value in re.findall(switch, old_way):
    path = f'{repository}/configs/lra_listops.py:{mechanism},preset=repo'
    config_lib.load(path, [f'{key}={value}'])
  before, said, _ = old_way.partition('(as in `repo`')
  in_presets = dict(re.findall(switch, before)) if said else {}
  assert bool(in_presets) == bool(said)
  for name in LRA_SIZES:
    config = flat(name, f'{mechanism},preset=repo')
    for key, value in in_presets.items():
      assert str(config[key]).lower() in (value, f'{value}.0'), (name, key)


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
  assert set(common.CHOICES['task']) == set(tasks.TABLE)


# Vocabulary with padding, classes; the 17 ids of LRA for ListOps. Its images
# have no id for padding.
SIZES = {
  'lra_text': (257, 2),
  'lra_listops': (17, 10),
  'lra_image': (256, 10),
  'lra_retrieval': (257, 2),
  'lra_pathfinder32': (256, 2),
  'lra_pathfinder64': (256, 2),
  'lra_pathfinder128': (256, 2),
  'lra_pathfinder256': (256, 2),
}


@functools.cache
def num_params(name, argument):
  config = FILES[name].get_config(argument)
  num_tokens = config.data.max_length
  inputs = (
    jax.ShapeDtypeStruct((1, num_tokens), jnp.int32),
    jax.ShapeDtypeStruct((1,), jnp.int32),
  )
  make = build.sequence_classifier
  if config.task == 'retrieval':
    make, inputs = build.pair_classifier, 2 * inputs
  model = make(config, *SIZES[name])
  variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
  ('name', 'preset', 'millions'),
  [
    ('lra_text', 'repo', 3.49),
    ('lra_text', 'paper', 20.1),
    ('lra_listops', 'repo', 8.95),
    ('lra_listops', 'paper', 19.98),
    ('lra_image', 'repo', 0.248458),
    ('lra_pathfinder32', 'repo', 0.0265),
    # LRA's has no token to pool.
    ('lra_retrieval', 'repo', 1.088),
  ],
)
def test_sizes_are_those_of_lra(name, preset, millions):
  """Against the counts of the published models (LRA issue 2)."""
  count = num_params(name, f'preset={preset}') / 1e6
  digits = len(str(millions).partition('.')[2])
  assert round(count, digits) == millions


@pytest.mark.parametrize(
  'name',
  [
    'lra_text',
    pytest.param('lra_listops', marks=pytest.mark.slow),
    pytest.param('lra_image', marks=pytest.mark.slow),
    pytest.param('lra_retrieval', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('mechanism', common.MIXERS)
def test_modern_keeps_to_the_size_rule_of_lra(name, mechanism):
  """At most 10% more parameters than the published Transformer."""
  published = num_params(name, 'preset=repo')
  modern = num_params(name, f'{mechanism},preset=modern')
  assert published < modern <= 1.1 * published


@pytest.mark.parametrize(
  'name',
  [
    'lra_pathfinder32',
    pytest.param('lra_pathfinder64', marks=pytest.mark.slow),
    pytest.param('lra_pathfinder128', marks=pytest.mark.slow),
    pytest.param('lra_pathfinder256', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('mechanism', common.MIXERS)
def test_modern_mechanisms_of_pathfinder_are_of_one_size(name, mechanism):
  """At most 10% more parameters than `full`, which is larger than LRA's."""
  base = num_params(name, 'full,preset=modern')
  # Docs and configs name it.
  assert base == 416_130
  modern = num_params(name, f'{mechanism},preset=modern')
  assert base <= modern <= 1.1 * base
