"""What LRA published, against the presets that stand for it."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from configs import common, lra_listops, lra_text
from effformer import config as config_lib
from effformer import config_check
from effformer.models import build
from tests.configs_test import FILES


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
@pytest.mark.slow
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
@pytest.mark.slow
def test_modern_mechanisms_of_pathfinder_are_of_one_size(name, mechanism):
  """At most 10% more parameters than `full`, which is larger than LRA's."""
  base = num_params(name, 'full,preset=modern')
  # Docs and configs name it.
  assert base == 416_130
  modern = num_params(name, f'{mechanism},preset=modern')
  assert base <= modern <= 1.1 * base
