"""Impossible configs: each is refused with words that help, or accepted."""

import pytest

from configs import common
from effformer import config as config_lib
from effformer import config_check, config_words, errors

MECHANISM_OF_SETTING = {
  setting: mechanism
  for mechanism, row in common.MIXERS.items()
  for setting in row
}


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
  monkeypatch.chdir(repository)


def keys_of(mechanism):
  """Key -> default value of a config of `mechanism`."""
  config = common.base(common.Choice(mechanism))
  return dict(config_check.leaves(config))


KEYS = {
  **keys_of('full'),
  **{
    f'mixer.{setting}': common.MIXERS[mechanism][setting]
    for setting, mechanism in MECHANISM_OF_SETTING.items()
  },
}
# Names, which no flag sets.
CHOSEN = ('preset', 'quick', 'mixer.name', 'overridden', 'compress.recipe')
OPEN_TEXT = (
  *('data.train', 'data.validation', 'data.test', 'data.directory'),
  *('data.documents', 'data.tokenizer', 'model.pretrained'),
  'compress.parent',
)


def argument_for(key):
  setting = key.removeprefix('mixer.')
  mechanism = MECHANISM_OF_SETTING.get(setting, 'full')
  return f'configs/lra_text.py:{mechanism}'


# A mutated command line: --config=ARGUMENT, overrides, and what the message
# has to hold.


def misspelt(word):
  """Up to three misspellings, at most two edits away."""
  start, name = word[: word.rfind('.') + 1], word[word.rfind('.') + 1 :]
  middle = len(name) // 2
  swapped = (
    name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
  )
  variants = (name[1:], swapped, name + name[-1])
  return [start + variant for variant in variants if variant != name]


def mutations_of_keys():
  for key in KEYS:
    for wrong in misspelt(key):
      named = [repr(wrong), f"Did you mean '{key}'?"]
      yield argument_for(key), [f'{wrong}=1'], named
  for wrong, key in {
    'trian.num_steps': 'train.num_steps',
    'modle.width': 'model.width',
    'num_steps': 'train.num_steps',
    'max_length': 'data.max_length',
  }.items():
    yield argument_for(key), [f'{wrong}=1'], [repr(wrong), repr(key)]
  for wrong in ('optim.lr', 'train.lr', 'model.layers.0.depth', '', 'train.'):
    yield argument_for(''), [f'{wrong}=1'], [repr(wrong), 'Known in ']
  for section in ('model', 'mixer', 'data', 'train', 'mesh', 'model.layers'):
    yield argument_for(''), [f'{section}=1'], [f'{section} is a section']


def mutations_of_types():
  wrong = {
    bool: ['yes', '1', ''],
    int: ['many', '1.5', '1e3', '', 'true'],
    float: ['fast', '', '1,5', 'true'],
  }
  for key, default in KEYS.items():
    if key not in CHOSEN:
      for value in wrong.get(type(default), []):
        named = [f'{key}={value} is not', f'--config.{key}=']
        yield argument_for(key), [f'{key}={value}'], named


def mutations_of_values():
  for key, default in KEYS.items():
    is_open = key in CHOSEN or key in OPEN_TEXT
    if is_open or isinstance(default, bool | tuple):
      continue
    if isinstance(default, str):
      for wrong in misspelt(common.CHOICES[key][0]):
        right = common.CHOICES[key][0]
        named = [f'{key}={wrong!r}', f"Did you mean '{right}'?"]
        yield argument_for(key), [f'{key}={wrong}'], named
      yield argument_for(key), [f'{key}=3'], [f"{key}='3'", 'Known: ']
      continue
    values = ['-2', 'nan', '-inf', 'inf'] if type(default) is float else ['-2']
    for value in values:
      named = [f'{key}={value}', 'It has to be ']
      yield argument_for(key), [f'{key}={value}'], named


def mutations_of_arguments():
  for mechanism in common.MIXERS:
    for wrong in misspelt(mechanism):
      yield (
        f'configs/lra_text.py:{wrong},quick',
        [],
        [
          repr(wrong),
          f"Did you mean '{mechanism}'?",
        ],
      )
  for preset in common.PRESETS:
    for wrong in misspelt(preset):
      yield (
        f'configs/lra_listops.py:preset={wrong}',
        [],
        [
          repr(wrong),
          f"Did you mean '{preset}'?",
        ],
      )
    yield f'configs/lra_text.py:{preset}', [], [f'preset={preset}']
  for argument, named in {
    'quik': ["'quik'", "Did you mean 'quick'?"],
    'linear,smoke': ["'smoke'", 'Known: full, '],
    'perceiver': ["'perceiver'", 'Known: full, '],
    'perset=paper': ["'perset'", "Did you mean 'preset'?"],
    'seq=4k': ["'seq'", 'Known: preset'],
    'quick=true': ["'quick' takes no value"],
    'linear=1': ["'linear' takes no value"],
    'linear,local': ['mechanism is given twice'],
    'quick,quick': ['quick is given twice'],
    'preset=repo,preset=repo': ['preset is given twice'],
    'preset=': ["preset ''", 'Known: paper'],
    'linear,': ["''", 'Known: full, '],
    'linear;quick': ["'linear;quick'", 'Known: full, '],
    'Linear': ["'Linear'", "Did you mean 'linear'?"],
  }.items():
    yield f'configs/lra_text.py:{argument}', [], named
  for path, named in {
    'configs/lra_txt.py': ['Did you mean configs/lra_text.py?'],
    'configs/lra_text': ['Did you mean configs/lra_text.py?'],
    'configs/lra_text.py,linear': ['Give FILE.py'],
    'configs': ['Give FILE.py'],
    'nowhere/at_all.py:linear': ['nowhere/at_all.py is no file'],
    'pyproject.toml': ['is no Python file'],
    'configs/common.py': ['get_config'],
    '': ['Give FILE.py'],
  }.items():
    yield path, [], [*named, path.partition(':')[0]]


CROSS = [
  # mechanism, overrides, named
  ('full', ['model.num_heads=5'], ['model.num_heads=5', 'model.width=256']),
  (
    'full',
    ['model.qkv_width=100', 'model.num_heads=8'],
    ['model.num_heads=8', 'model.qkv_width=100'],
  ),
  ('full', ['model.width=250'], ['model.num_heads=4', 'model.width=250']),
  (
    'full',
    ['model.width=60'],
    ['model.position=rotary', 'model.width=60', 'is 15'],
  ),
  (
    'full',
    ['model.width=33', 'model.num_heads=3', 'model.position=sinusoidal'],
    ['model.width=33', 'model.width=34'],
  ),
  (
    'full',
    ['model.reversible=true', 'model.norm_order=post'],
    ['model.reversible=true', '--config.model.norm_order=pre'],
  ),
  (
    'full',
    ['model.pair_head=nli'],
    ["model.pair_head='nli' does not fit task='text'", 'retrieval'],
  ),
  (
    'full',
    ['data.documents=papers.jsonl'],
    ["data.documents='papers.jsonl' has no use with task='text'", 'retrieval'],
  ),
  (
    'full',
    ['model.reversible=true', 'model.remat=true'],
    ['model.reversible=true', '--config.model.remat=false'],
  ),
  (
    'full',
    ['model.reversible=true', 'model.layer_drop=0.2'],
    ['model.reversible=true', '--config.model.layer_drop=0.0'],
  ),
  (
    'linformer',
    ['model.position=rotary'],
    ['linformer', '--config.model.position=sinusoidal'],
  ),
  (
    'full',
    ['model.layers.2.mixer=linformer'],
    ['linformer', '--config.model.position=sinusoidal'],
  ),
  ('linformer', ['mixer.rank=2049'], ['mixer.rank=2049', '2048']),
  ('linformer', ['data.max_length=10'], ['mixer.rank=32', '10']),
  (
    'linformer',
    ['model.layers.1.rank=5000'],
    ['model.layers.1.rank=5000', '2048'],
  ),
  ('linear', ['mixer.window=5'], ['mixer.window', 'local', 'linear']),
  ('full', ['mixer.rank=5'], ['mixer.rank', 'linformer', 'full']),
  (
    'linear',
    ['model.layers.0.window=5'],
    ['model.layers.0.window', 'linear', 'Known: '],
  ),
  (
    'linear',
    ['model.layers.0.mixer=loca'],
    ["model.layers.0.mixer='loca'", "Did you mean 'local'?"],
  ),
  (
    'linear',
    ['model.layers.0.mxer=local'],
    ["Did you mean 'model.layers.0.mixer'?"],
  ),
  ('linear', ['model.layers.0.num_heads=5'], ['model.layers.0.num_heads=5']),
  ('linear', ['model.layers.0.num_heads=x'], ['model.layers.0.num_heads=x']),
  ('linear', ['model.layers.0.mlp_width=0'], ['model.layers.0.mlp_width=0']),
  ('full', ['model.layers.0.head_width=0'], ['model.layers.0.head_width=0']),
  (
    'full',
    ['model.layers.1.head_width=7'],
    ['model.position=rotary', 'model.layers.1.head_width=7'],
  ),
  (
    's5',
    ['model.layers.1.head_width=8'],
    ['model.layers.1.head_width is no setting of s5'],
  ),
  ('full', ['model.head_width=-1'], ['model.head_width=-1']),
  (
    'full',
    ['model.layers.0.num_kv_heads=0'],
    ['model.layers.0.num_kv_heads=0', 'at least 1'],
  ),
  (
    'full',
    ['model.layers.0.num_kv_heads=3'],
    ['model.layers.0.num_kv_heads=3', 'model.num_heads=4', 'a divisor'],
  ),
  (
    'full',
    ['model.layers.0.num_heads=2', 'model.layers.0.num_kv_heads=4'],
    ['num_kv_heads=4 does not divide model.layers.0.num_heads=2'],
  ),
  (
    'performer',
    ['model.layers.0.num_kv_heads=2'],
    ['model.layers.0.num_kv_heads is no setting of performer'],
  ),
  ('full', ['model.num_kv_heads=2'], ["unknown key 'model.num_kv_heads'"]),
  (
    'linear',
    ['model.layers.0.activation=rleu'],
    ['model.layers.0.activation', "Did you mean 'relu'?"],
  ),
  ('full', ['model.norm=batch'], ["model.norm='batch'", 'layer, rms, affine']),
  ('full', ['model.layers.0.norm=rms'], ['model.layers.0.norm']),
  ('full', ['model.layers.0.mlp_rank=-1'], ['model.layers.0.mlp_rank=-1']),
  ('full', ['model.bottleneck=-1'], ['model.bottleneck=-1', 'at least 0']),
  (
    'full',
    ['model.bottleneck=256'],
    ['model.bottleneck=256 is not below model.width=256', '0 for none'],
  ),
  (
    'full',
    ['model.layers.1.bottleneck=300'],
    ['model.layers.1.bottleneck=300 is not below model.width=256'],
  ),
  (
    'full',
    ['model.bottleneck=86'],
    ['model.num_heads=4 does not divide model.bottleneck=86', 'Use a divisor'],
  ),
  (
    'full',
    ['model.layers.0.bottleneck=64', 'model.layers.0.num_heads=6'],
    ['model.layers.0.num_heads=6 does not divide model.layers.0.bottleneck=64'],
  ),
  (
    'full',
    ['model.bottleneck=36', 'model.position=rotary'],
    ['heads of even width', 'model.bottleneck=36 / model.num_heads=4 is 9'],
  ),
  (
    'full',
    ['model.reversible=true', 'model.layers.2.bottleneck=64'],
    ['model.bottleneck=0 only', '--config.model.layers.2.bottleneck=0'],
  ),
  (
    'full',
    ['model.embedding_width=8', 'model.front_end=continuous'],
    ['model.embedding_width=8 goes with model.front_end=embedding only'],
  ),
  (
    'local',
    ['model.layers.0.window=-4'],
    ['model.layers.0.window=-4', 'It has to be at least 1'],
  ),
  ('linear', ['model.layers.4.num_heads=2'], ['model.layers.4', '0 to 3']),
  ('linear', ['model.layers.00.num_heads=2'], ["'model.layers.00.num_heads'"]),
  ('linear', ['model.layers.x.num_heads=2'], ["'model.layers.x.num_heads'"]),
  ('linear', ['model.layers.0=local'], ["'model.layers.0'"]),
  (
    'linear',
    [
      'model.layers.0.share=a',
      'model.layers.1.share=a',
      'model.layers.1.num_heads=2',
    ],
    ['model.layers.1.share', 'layer 0'],
  ),
  ('full', ['model.conv_width=4'], ['model.conv_width=4', 'odd']),
  (
    'full',
    ['train.accumulate_steps=5'],
    ['train.batch_size=32', 'train.accumulate_steps=5', '35'],
  ),
  ('full', ['mesh.data=3'], ['train.batch_size=32', 'mesh.data=3']),
  ('full', ['mesh.fsdp=5'], ['train.batch_size=32', 'mesh.fsdp=5']),
  (
    'full',
    ['mesh.data=4', 'train.eval_batch_size=10'],
    ['train.eval_batch_size=10', 'mesh.data=4'],
  ),
  ('full', ['mesh.fsdp=-1'], ['mesh.data=-1', 'mesh.fsdp=-1']),
  ('full', ['mesh.data=0'], ['mesh.data=0']),
  ('full', ['preset=paper'], ['preset=paper', 'in the argument']),
  ('full', ['quick=true'], ['quick=true', 'in the argument']),
  ('full', ['mixer.name=linear'], ['mixer.name=linear', 'in the argument']),
  ('full', ['seed=-1'], ['seed=-1']),
  ('full', ['train.num_steps=-1'], ['train.num_steps=-1', 'at least 0']),
  ('full', ['seed=4294967296'], ['seed=4294967296']),
  ('full', ['seed'], ['--config.seed has no value']),
  ('full', ['seed=1', 'seed=2'], ['--config.seed=2', 'second time']),
]


def mutations_across_keys():
  for mechanism, overrides, named in CROSS:
    yield f'configs/lra_text.py:{mechanism}', overrides, named


MUTATIONS = [
  *mutations_of_keys(),
  *mutations_of_types(),
  *mutations_of_values(),
  *mutations_of_arguments(),
  *mutations_across_keys(),
]


def test_there_are_at_least_200_mutations():
  assert len({str(mutation) for mutation in MUTATIONS}) >= 200


@pytest.mark.parametrize(
  ('argument', 'overrides', 'named'),
  MUTATIONS,
  ids=[' '.join([a, *o]) for a, o, _ in MUTATIONS],
)
def test_refuses_and_explains(argument, overrides, named):
  with pytest.raises(errors.ConfigError) as caught:
    config_lib.load(argument, overrides)
  message = str(caught.value)
  assert len(message.splitlines()) in range(2, 6), message
  for part in named:
    assert part in message


@pytest.mark.parametrize(
  'overrides',
  [
    ['mesh.data=4', 'mesh.fsdp=2'],
    ['mesh.data=2', 'mesh.fsdp=-1'],
    ['model.num_heads=8', 'model.qkv_width=64'],
    ['model.conv_width=0'],
    # Of use without a mixer that has global tokens, too.
    ['model.extra_tokens=4'],
    ['train.warmup_steps=0'],
    ['train.warmup_steps=20000'],
    # A short try of a long recipe stays in its warmup.
    ['train.num_steps=10'],
    # What it starts from is scored as it is.
    ['train.num_steps=0'],
    ['train.accumulate_steps=32'],
    ['data.max_bad_fraction=1'],
    ['model.layers.0.share=a', 'model.layers.3.share=a'],
    ['model.norm=rms', 'model.embedding_width=16', 'model.activation=relu2'],
    ['model.mlp_rank=8', 'model.layers.0.mlp_rank=0'],
    ['model.bottleneck=64', 'model.layers.0.bottleneck=0'],
    # Heads of a width of their own, or of all together.
    ['model.layers.0.bottleneck=10', 'model.layers.0.head_width=4'],
    ['model.bottleneck=10', 'model.qkv_width=64'],
    ['model.reversible=true', 'model.bottleneck=0'],
    ['model.layers.3.num_heads=2', 'model.layers.3.activation=relu'],
    # Fewer heads of the width that they have elsewhere; any number of them.
    ['model.layers.3.num_heads=3', 'model.layers.3.head_width=64'],
    ['model.layers.3.num_kv_heads=2', 'model.layers.2.num_kv_heads=1'],
    ['model.position=none', 'model.width=12', 'model.num_heads=12'],
  ],
  ids=str,
)
def test_accepts_what_is_possible(overrides):
  config_lib.load('configs/lra_text.py:local', overrides)


@pytest.mark.parametrize(
  ('text', 'value'), [('1, 2', (1, 2)), ('3', (3,)), ((4, 5), (4, 5))]
)
def test_tuples_are_read_with_commas(text, value):
  assert config_words.read_value('key', text, (7, 8, 9)) == value


def test_tuples_hold_the_type_of_their_default():
  with pytest.raises(errors.ConfigError, match='with commas'):
    config_words.read_value('key', '1,x', (7, 8, 9))


@pytest.mark.parametrize(
  ('word', 'known', 'expected'),
  [
    ('lienar', ['linear', 'local'], 'linear'),
    ('performer', ['linformer'], None),
    ('num_steps', ['train.num_steps', 'train.steps'], 'train.num_steps'),
    ('num_steps', ['abc.num_steps', 'abcde.num_steps'], 'abc.num_steps'),
    ('num_steps', ['abc.num_steps', 'xyz.num_steps'], None),
    ('a', ['b'], None),
    ('x', [], None),
  ],
)
def test_closest(word, known, expected):
  assert config_words.closest(word, known) == expected
