"""What every config file shares: the keys, the mechanisms, the argument.

A config file is data: rows that are laid over `base()`, and one function:

    def get_config(arg=''):
      return common.assemble(arg, task='text', seed=0, presets={...}, ...)

Sizes are in tokens, examples and steps; a rate is per example or step.
"""

import typing

import ml_collections

from configs import keys, published
from configs.mechanisms import (
  GROUPED,
  LRA_MODELS,
  MIXER_CHOICES,
  MIXER_RANGES,
  MIXERS,
  WITHOUT_CAUSAL,
  WITHOUT_HEADS,
  WITHOUT_ROTARY,
)
from configs.values import COUNT, COUNT_OR_NONE, POSITIVE, RATE, SEED, Range

# What runs start from.
MINILM_L6 = published.MINILM_L6
FINE_TUNING = published.FINE_TUNING

PRESETS = ('paper', 'repo', 'modern')
SECTIONS = ('model', 'mixer', 'data', 'train', 'pretrain', 'mesh', 'compress')
SWITCHES = ('quick', 'pretrain')
# Tasks whose examples are two texts.
PAIR_TASKS = ('retrieval',)
# Tasks whose examples are two texts in one row, if they are not apart.
ROW_TASKS = ('pair',)
# Tasks in the subwords of a tokenizer.
SUBWORD_TASKS = ('sentence', 'pair', 'similarity')
# Tasks whose tokens are grey values.
IMAGE_TASKS = (
  'image',
  *('pathfinder32', 'pathfinder64', 'pathfinder128', 'pathfinder256'),
)
# Tasks whose models see earlier tokens only.
CAUSAL_TASKS = ('language',)
# Mechanisms that can be kept to earlier tokens.
CAUSAL = tuple(name for name in MIXERS if name not in WITHOUT_CAUSAL)
# Facts of a layer's heads, and the mechanisms to which they mean something.
HEAD_FACTS = {
  'head_width': tuple(name for name in MIXERS if name not in WITHOUT_HEADS),
  'num_kv_heads': GROUPED,
}

# Allowed values of text keys. `mixer.*` holds for `model.layers.*` as well.
CHOICES = {
  **MIXER_CHOICES,
  'task': (
    *('text', 'listops', 'image', 'retrieval', 'language'),
    *('sentence', 'pair', 'similarity'),
    *('pathfinder32', 'pathfinder64', 'pathfinder128', 'pathfinder256'),
  ),
  'preset': PRESETS,
  'model.dtype': ('float32', 'bfloat16'),
  'model.front_end': ('embedding', 'continuous', 'patches'),
  'model.position': ('none', 'sinusoidal', 'learned', 'rotary'),
  'model.norm_order': ('pre', 'post'),
  'model.norm': ('layer', 'rms', 'affine'),
  'model.pooling': ('mean', 'cls', 'first'),
  'model.activation': ('gelu', 'gelu_exact', 'relu', 'relu2', 'quick_gelu'),
  'model.head_activation': ('relu', 'tanh'),
  'model.token_head': ('dense', 'tied', 'transformed'),
  'model.pair_head': ('none', 'nli', 'concat'),
  'mixer.name': tuple(MIXERS),
  'pretrain.objective': ('masked', 'causal'),
  'train.schedule': ('constant', 'rsqrt', 'cosine'),
  'train.decay': ('all', 'matrices'),
  'train.nonfinite': ('abort', 'skip', 'rollback'),
  'train.select': ('best', 'last'),
}


RANGES = {
  **MIXER_RANGES,
  'seed': SEED,
  'model.num_layers': COUNT,
  'model.width': COUNT,
  'model.num_heads': COUNT,
  'model.qkv_width': COUNT_OR_NONE,
  'model.mlp_width': COUNT,
  'model.mlp_rank': COUNT_OR_NONE,
  'model.bottleneck': COUNT_OR_NONE,
  'model.mlp_chunk': COUNT_OR_NONE,
  'model.head_width': COUNT_OR_NONE,
  'model.embedding_width': COUNT_OR_NONE,
  'model.patch_size': COUNT,
  'model.channels': COUNT,
  'model.token_types': COUNT_OR_NONE,
  'model.norm_epsilon': POSITIVE,
  'model.dropout': RATE,
  'model.attention_dropout': RATE,
  'model.layer_drop': RATE,
  'model.conv_width': Range(1, also=0, step=2),
  'model.extra_tokens': COUNT_OR_NONE,
  'model.layers.head_width': COUNT,
  'model.layers.num_kv_heads': COUNT,
  'data.max_length': COUNT,
  'data.num_threads': COUNT_OR_NONE,
  'data.prefetch': COUNT_OR_NONE,
  'data.max_bad_fraction': Range(0, 1),
  'data.train_examples': COUNT_OR_NONE,
  'data.validation_examples': COUNT_OR_NONE,
  'data.test_examples': COUNT_OR_NONE,
  'train.num_steps': COUNT_OR_NONE,
  'train.batch_size': COUNT,
  'train.eval_batch_size': COUNT,
  'train.learning_rate': POSITIVE,
  'train.warmup_steps': COUNT_OR_NONE,
  'train.weight_decay': Range(0),
  'train.beta1': RATE,
  'train.beta2': RATE,
  'train.epsilon': POSITIVE,
  'train.clip_norm': Range(0),
  'train.accumulate_steps': COUNT,
  'train.eval_every_steps': COUNT,
  'train.checkpoint_every_steps': COUNT,
  'train.log_every_steps': COUNT,
  'train.keep_checkpoints': COUNT,
  'pretrain.num_steps': COUNT_OR_NONE,
  'pretrain.mask_fraction': Range(0, 1, open_low=True, open_high=True),
  'pretrain.learning_rate': POSITIVE,
  'pretrain.warmup_steps': COUNT_OR_NONE,
  'mesh.data': Range(1, also=-1),
  'mesh.fsdp': Range(1, also=-1),
  'compress.seed': Range(0, 2**32 - 1, also=-1),
}


class ArgumentError(ValueError):
  """A word of the config argument that cannot be used.

  Attributes:
    what: the sentence that says so.
    word: the word, as far as a near miss among `known` may be meant.
    known: the words that could have stood there.
  """

  def __init__(self, what: str, word: str = '', known: tuple[str, ...] = ()):
    super().__init__(f'{what}; known: {", ".join(known)}' if known else what)
    self.what, self.word, self.known = what, word, known


class Choice(typing.NamedTuple):
  """What the argument of a config file chose."""

  mechanism: str = 'full'
  preset: str = 'modern'
  quick: bool = False
  pretrain: bool = False


DEFAULT = Choice()


def members(mechanism: str) -> list[str]:
  """The mechanisms of a hybrid like 'local+full', from the lowest layer up."""
  return mechanism.split('+')


def mixer_row(mechanism: str) -> dict:
  """The settings of a mechanism; of a hybrid, those that all its members that
  have them start with the same value. The others are set layer by layer."""
  merged, apart = {}, set()
  for member in members(mechanism):
    for name, value in MIXERS[member].items():
      if merged.setdefault(name, value) != value:
        apart.add(name)
  return {name: merged[name] for name in merged if name not in apart}


def overlay(*tables: dict[str, dict]) -> dict[str, dict]:
  """Mechanism -> row; rows of later tables are laid over those before."""
  merged = {}
  for table in tables:
    for mechanism, row in table.items():
      merged[mechanism] = {**merged.get(mechanism, {}), **row}
  return merged


def lra_models(*tables: dict[str, dict]) -> dict[str, dict]:
  """Mechanism -> row of LRA's models, with those of a task laid over."""
  return overlay(LRA_MODELS, *tables)


def parse(arg: str) -> Choice:
  """Reads `MECHANISM,preset=PRESET,quick,pretrain`: any part, once.

  A hybrid is several mechanisms joined by +, from the lowest layers up.

  Raises:
    ArgumentError: unknown or repeated word.
  """
  chosen = {}
  for word in arg.split(',') if arg else []:
    name, value = _read_word(word)
    if name in chosen:
      raise ArgumentError(f'{name} is given twice in {arg!r}')
    chosen[name] = value
  return Choice(**chosen)


def _read_word(word: str) -> tuple[str, str | bool]:
  key, equals, value = word.partition('=')
  if equals and key != 'preset':
    if key in MIXERS or key in SWITCHES:
      raise ArgumentError(f'{key!r} takes no value, but {word!r} is given')
    raise ArgumentError(
      f'unknown key {key!r} in the argument', key, ('preset',)
    )
  if equals:
    if value not in PRESETS:
      raise ArgumentError(f'unknown preset {value!r}', value, PRESETS)
    return 'preset', value
  if word in SWITCHES:
    return word, True
  if set(members(word)) <= set(MIXERS):
    return 'mechanism', word
  presets = tuple(f'preset={preset}' for preset in PRESETS)
  if word in PRESETS:
    raise ArgumentError(f'a preset is chosen by preset={word}, not {word!r}')
  unknown = next(part for part in members(word) if part not in MIXERS)
  raise ArgumentError(
    f'unknown mechanism or switch {unknown!r}',
    unknown,
    (*MIXERS, *SWITCHES, *presets),
  )


def assemble(
  arg: str,
  *,
  task: str,
  seed: int,
  presets: dict[str, dict],
  mechanisms: dict[str, dict[str, dict]],
  quick: dict,
  quick_peak: float,
) -> ml_collections.ConfigDict:
  """Lays the rows that `arg` chooses over `base` and locks the result.

  Args:
    arg: see `parse`.
    task, seed: values of these keys.
    presets: preset -> row; a row maps keys ('train.num_steps') to values.
    mechanisms: preset -> mechanism -> row, laid over the preset.
    quick: row of the switch `quick`, laid over both.
    quick_peak: learning rate after the warmup of a quick run.

  Raises:
    ArgumentError: see `parse`.
  """
  choice = parse(arg)
  if choice.preset not in presets:
    raise ArgumentError(
      f'preset={choice.preset} does not exist for {task}',
      choice.preset,
      tuple(presets),
    )
  config = base(choice)
  config.task, config.seed = task, seed
  rows = [presets[choice.preset]]
  for member in members(choice.mechanism):
    row = mechanisms.get(choice.preset, {}).get(member, {})
    if member != choice.mechanism:
      # What a member asks of the whole model is not for the others.
      known = {f'mixer.{name}' for name in config.mixer}
      row = {key: value for key, value in row.items() if key in known}
    rows.append(row)
  for row in [*rows, quick] if choice.quick else rows:
    config.update_from_flattened_dict(row)
  if choice.quick:
    # The factor of 'rsqrt' is not the peak: see train.learning_rate.
    is_factor = config.train.schedule == 'rsqrt'
    scale = config.train.warmup_steps**0.5 if is_factor else 1.0
    config.train.learning_rate = quick_peak * scale
  if choice.pretrain:
    # A stage as long as the training, at the same rate.
    config.pretrain.num_steps = config.train.num_steps
    config.pretrain.warmup_steps = config.train.warmup_steps
    config.pretrain.learning_rate = config.train.learning_rate
  if config.model.position == 'rotary':
    for member in members(choice.mechanism):
      config.model.position = WITHOUT_ROTARY.get(member, config.model.position)
  return config.lock()


def base(choice: Choice = DEFAULT) -> ml_collections.ConfigDict:
  """Every key with a neutral value; the config file sets what it needs.

  The type of the value is the type of the key; an int may be given for a
  float. `task` has to be set.
  """
  config = ml_collections.ConfigDict()
  # Seed of parameters, order of the examples, and dropout.
  config.seed = 0
  # What is learnt: 'text' (bytes, 2 classes), 'listops' (10 classes),
  # 'image' (grey values of 32 x 32, 10 classes), 'pathfinder32' to
  # 'pathfinder256' (grey values, 2 classes), 'retrieval' (two texts),
  # 'language' (the next byte), or in subwords 'sentence', 'pair' and
  # 'similarity' (how alike two texts are).
  config.task = ''
  # Names of what the argument chose, written into result.json; the values
  # they stand for are in the keys below.
  config.preset = choice.preset
  config.quick = choice.quick
  # Keys, with commas between them, that the command line gave another value
  # than the argument stands for; written by effformer.config, into result.json
  # as well.
  config.overridden = ''
  config.model = keys.model_keys()
  # The mechanism and its settings; broadcast to all layers. The members of a
  # hybrid ('local+full') have equal shares of the layers, from the lowest up.
  config.mixer = ml_collections.ConfigDict(
    {'name': choice.mechanism, **mixer_row(choice.mechanism)}
  )
  config.data = keys.data_keys()
  config.train = keys.train_keys()
  config.pretrain = keys.pretrain_keys()
  config.compress = keys.compress_keys()
  # Devices along each axis of the mesh; -1 (once) = all that are left.
  config.mesh = mesh = ml_collections.ConfigDict()
  # Axis over which the batch is split.
  mesh.data = -1
  # Axis over which batch, parameters and optimiser state are split.
  mesh.fsdp = 1
  return config
