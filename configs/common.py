"""What every config file shares: the keys, the mechanisms, the argument.

A config file is data: rows that are laid over `base()`, and one function:

    def get_config(arg=''):
      return common.assemble(arg, task='text', seed=0, presets={...}, ...)

Sizes are in tokens, examples and steps; a rate is per example or step.
"""

import typing

import ml_collections

from configs.mechanisms import (
  MIXER_CHOICES,
  MIXER_RANGES,
  MIXERS,
  WITHOUT_ROTARY,
)
from configs.values import COUNT, COUNT_OR_NONE, POSITIVE, RATE, SEED, Range

PRESETS = ('paper', 'repo', 'modern')
# Tasks whose examples are two texts.
PAIR_TASKS = ('retrieval',)

# Allowed values of text keys. `mixer.*` holds for `model.layers.*` as well.
CHOICES = {
  **MIXER_CHOICES,
  'task': (
    *('text', 'listops', 'image', 'retrieval'),
    *('pathfinder32', 'pathfinder64', 'pathfinder128', 'pathfinder256'),
  ),
  'preset': PRESETS,
  'model.dtype': ('float32', 'bfloat16'),
  'model.front_end': ('embedding', 'continuous'),
  'model.position': ('none', 'sinusoidal', 'learned', 'rotary'),
  'model.norm_order': ('pre', 'post'),
  'model.pooling': ('mean', 'cls'),
  'model.activation': ('gelu', 'relu'),
  'model.pair_head': ('none', 'nli', 'concat'),
  'mixer.name': tuple(MIXERS),
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
  'model.mlp_chunk': COUNT_OR_NONE,
  'model.head_width': COUNT_OR_NONE,
  'model.dropout': RATE,
  'model.attention_dropout': RATE,
  'model.conv_width': Range(1, also=0, step=2),
  'model.extra_tokens': COUNT_OR_NONE,
  'data.max_length': COUNT,
  'data.num_threads': COUNT_OR_NONE,
  'data.prefetch': COUNT_OR_NONE,
  'data.max_bad_fraction': Range(0, 1),
  'data.train_examples': COUNT_OR_NONE,
  'data.validation_examples': COUNT_OR_NONE,
  'data.test_examples': COUNT_OR_NONE,
  'train.num_steps': COUNT,
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
  'mesh.data': Range(1, also=-1),
  'mesh.fsdp': Range(1, also=-1),
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


def parse(arg: str) -> Choice:
  """Reads `MECHANISM,preset=PRESET,quick`: any part, in any order, once.

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
    if key in MIXERS or key == 'quick':
      raise ArgumentError(f'{key!r} takes no value, but {word!r} is given')
    raise ArgumentError(
      f'unknown key {key!r} in the argument', key, ('preset',)
    )
  if equals:
    if value not in PRESETS:
      raise ArgumentError(f'unknown preset {value!r}', value, PRESETS)
    return 'preset', value
  if word == 'quick':
    return 'quick', True
  if set(members(word)) <= set(MIXERS):
    return 'mechanism', word
  presets = tuple(f'preset={preset}' for preset in PRESETS)
  if word in PRESETS:
    raise ArgumentError(f'a preset is chosen by preset={word}, not {word!r}')
  unknown = next(part for part in members(word) if part not in MIXERS)
  raise ArgumentError(
    f'unknown mechanism or switch {unknown!r}',
    unknown,
    (*MIXERS, 'quick', *presets),
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
  # 'pathfinder256' (grey values, 2 classes) or 'retrieval' (two texts).
  config.task = ''
  # Names of what the argument chose, written into result.json; the values
  # they stand for are in the keys below.
  config.preset = choice.preset
  config.quick = choice.quick
  config.model = _model()
  # The mechanism and its settings; broadcast to all layers. The members of a
  # hybrid ('local+full') have equal shares of the layers, from the lowest up.
  config.mixer = ml_collections.ConfigDict(
    {'name': choice.mechanism, **mixer_row(choice.mechanism)}
  )
  config.data = _data()
  config.train = _train()
  # Devices along each axis of the mesh; -1 (once) = all that are left.
  config.mesh = mesh = ml_collections.ConfigDict()
  # Axis over which the batch is split.
  mesh.data = -1
  # Axis over which batch, parameters and optimiser state are split.
  mesh.fsdp = 1
  return config


def _model() -> ml_collections.ConfigDict:
  model = ml_collections.ConfigDict()
  # Blocks of mixer and feed-forward part.
  model.num_layers = 4
  # Width D of tokens between blocks.
  model.width = 256
  # Heads of each mixer; divides qkv_width.
  model.num_heads = 4
  # Width of all heads together; 0 = width.
  model.qkv_width = 0
  # Hidden width of the feed-forward part.
  model.mlp_width = 1024
  # Hidden width of the classifier (ReLU); 0 = linear classifier.
  model.head_width = 0
  # What the classifier of two texts sees of their vectors a and b: 'nli',
  # a, b, a * b and a - b; or 'concat', a and b alone (then the head has one
  # layer more). 'none' = the task has one text.
  model.pair_head = 'none'
  # Compute type, 'float32' or 'bfloat16'; parameters are float32 always.
  model.dtype = 'float32'
  # How an id becomes a vector: by a table ('embedding'), or as a quantity
  # ('continuous', for grey values).
  model.front_end = 'embedding'
  # 'none', 'sinusoidal', 'learned' (both added to the embedding) or 'rotary'
  # (turns queries and keys; see WITHOUT_ROTARY).
  model.position = 'sinusoidal'
  # Layer norm before ('pre') or after ('post') each residual branch.
  model.norm_order = 'pre'
  # What the classifier sees: 'mean' of the row's tokens, or the output at a
  # learned token in front ('cls').
  model.pooling = 'mean'
  # Share of activations dropped after embedding and on residual branches.
  model.dropout = 0.0
  # Share of attention weights dropped; of the heads' outputs where there are
  # no weights (linear).
  model.attention_dropout = 0.0
  # Of the feed-forward part: 'gelu' (tanh form) or 'relu'.
  model.activation = 'gelu'
  # Taps, odd, of the depthwise convolution before each mixer; 0 = none.
  model.conv_width = 0
  # Learned tokens before each row, which pass through all layers with it and
  # are not pooled; 0 = none. Global to bigbird (ETC) and longformer if
  # mixer.global_tokens is the same number, else tokens like the others.
  model.extra_tokens = 0
  # Recompute each block in the backward pass: less memory, a third slower.
  model.remat = False
  # Two residual streams, of which the backward pass makes each layer's inputs
  # from its outputs: activation memory of one layer, whatever the depth, half
  # as slow again. Another model than without; for norm_order 'pre', not remat.
  model.reversible = False
  # Tokens of each row that the feed-forward part works on together: less
  # memory for its hidden layer; 0 = all.
  model.mlp_chunk = 0
  # Facts that differ in layer '0', '1', ...: mixer (name), num_heads,
  # mlp_width, activation, share (layers of one group share parameters) and
  # the settings of the layer's mixer.
  model.layers = ml_collections.ConfigDict()
  return model


def _data() -> ml_collections.ConfigDict:
  data = ml_collections.ConfigDict()
  # Longest row in tokens; longer ones are cut.
  data.max_length = 1024
  # Own files with text and label (.jsonl, .tsv, each also .gz), or images and
  # labels (.npz, or a folder of folders); '' = the task's data.
  data.train = ''
  data.validation = ''
  data.test = ''
  # Own pairs (.tsv: label, id, id, without a header) have their texts here
  # (.jsonl, also .gz, with id and text); '' = in the pairs.
  data.documents = ''
  # Where data is prepared; '' = $TFDS_DATA_DIR or ~/tensorflow_datasets.
  data.directory = ''
  # May generated data take the place of data that cannot be had? The run
  # says so loudly, and result.json has stand_in = true.
  data.stand_in = True
  # Threads that read and tokenise; 0 = in the training thread.
  data.num_threads = 2
  # Batches made ahead of the training step; 0 = none.
  data.prefetch = 4
  # Share of bad rows of an own file (0 to 1) above which the run stops.
  data.max_bad_fraction = 0.0
  # Examples used of each split, a fixed random choice; 0 = all.
  data.train_examples = 0
  data.validation_examples = 0
  data.test_examples = 0
  return data


def _train() -> ml_collections.ConfigDict:
  train = ml_collections.ConfigDict()
  # Optimiser steps.
  train.num_steps = 10_000
  # Examples in one step, over all devices and hosts.
  train.batch_size = 32
  # Examples in one evaluation step, over all devices and hosts.
  train.eval_batch_size = 64
  # Peak of 'constant' and 'cosine'; of 'rsqrt' the factor: the peak is
  # learning_rate / sqrt(warmup_steps).
  train.learning_rate = 1e-3
  # After linear warmup: 'constant'; 'rsqrt', ~ 1 / sqrt(step) (LRA); or
  # 'cosine', to 0 at num_steps.
  train.schedule = 'cosine'
  # Steps of linear warmup; 0 = none. A shorter run ends within it.
  train.warmup_steps = 1000
  # Decoupled (AdamW): parameters lose learning_rate * weight_decay a step.
  train.weight_decay = 0.0
  # What decays: 'all' parameters, or 'matrices' (not biases and norms).
  train.decay = 'matrices'
  # Adam: decay rates of the moments per step, and the divisor's addend.
  train.beta1 = 0.9
  train.beta2 = 0.999
  train.epsilon = 1e-8
  # Largest global norm of the gradient; 0 = no clipping.
  train.clip_norm = 0.0
  # Parts that a batch is computed in, one after the other, to save memory;
  # divides batch_size.
  train.accumulate_steps = 1
  # Steps between evaluations of the validation split.
  train.eval_every_steps = 1000
  # Steps between checkpoints.
  train.checkpoint_every_steps = 1000
  # Steps between rows of metrics.jsonl.
  train.log_every_steps = 100
  # Newest checkpoints that are kept; the best is kept beside them.
  train.keep_checkpoints = 2
  # On a NaN or infinite loss: 'abort'; 'skip' the update; or 'rollback' to
  # the last checkpoint and pass over the batches since.
  train.nonfinite = 'abort'
  # Which checkpoint is tested: the 'best' on validation, or the 'last'.
  train.select = 'best'
  return train
