"""Pretrained models in and out: a folder <-> config and parameters."""

import json
import math
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors.numpy

from effformer import config as config_lib
from effformer.errors import CheckpointError, ConfigError
from effformer.models import build
from effformer.pretrained import bert, files, gpt2, vit
from effformer.pretrained.family import Family, num_classes, number
from effformer.pretrained.rules import Rule

# `model_type` of their config.json -> what such models are.
FAMILIES = {
  'bert': bert.BERT,
  'roberta': bert.ROBERTA,
  'distilbert': bert.DISTILBERT,
  'gpt2': gpt2.GPT2,
  'vit': vit.VIT,
}
# How the names of their classes end -> the kind of model.
_ENDINGS = {
  'ForSequenceClassification': 'classifier',
  'ForImageClassification': 'classifier',
  'ForMaskedLM': 'predictor',
  'ForPreTraining': 'predictor',
  'LMHeadModel': 'predictor',
  'Model': 'embedder',
}
# A tensor that should have so many times its numbers is not laid out to see the
# shape that it should have.
_MOST_TIMES = 64
# Names that norms had in the first files.
_OLD_NAMES = {'.gamma': '.weight', '.beta': '.bias'}


class Pretrained(NamedTuple):
  """A model that was trained elsewhere.

  Attributes:
    config: of ours, that describes it.
    kind: 'embedder', 'classifier' or 'predictor'.
    vocabulary_size: of its ids.
    num_classes: of a classifier.
    params: parameters, float32.
    source: their config.json.
    rest: tensors that have no meaning here, by name.
    copies: names of tensors that stand twice in their file.
    has_prefix: whether the family's prefix is before the trunk's names.
  """

  config: ml_collections.ConfigDict
  kind: str
  vocabulary_size: int
  num_classes: int
  params: dict[str, Any]
  source: dict[str, Any]
  rest: dict[str, np.ndarray]
  copies: tuple[str, ...]
  has_prefix: bool

  @property
  def family(self) -> Family:
    """What models of its type have in common."""
    return FAMILIES[self.source['model_type']]

  @property
  def is_causal(self) -> bool:
    """Whether tokens see only themselves and earlier ones."""
    return self.family.is_causal

  @property
  def module(self) -> nn.Module:
    """The network that takes `params`."""
    return build.of_kind(
      self.kind,
      self.config,
      self.vocabulary_size,
      self.num_classes,
      causal=self.is_causal,
    )

  def initial(self, key: jax.Array) -> dict[str, Any]:
    """Parameters as they are first made, to be traced."""
    # As many ids as there can be: an image has no other number.
    length = self.config.data.max_length
    ids_BT, lengths_B = jnp.zeros((1, length), jnp.int32), jnp.array([length])
    return self.module.init(key, ids_BT, lengths_B)['params']


def load(folder: str | pathlib.Path, kind: str = '') -> Pretrained:
  """Reads config.json and the weights of a folder; executes nothing.

  Args:
    folder: holds config.json and model.safetensors (or its parts and index).
    kind: 'embedder' (vectors of tokens and texts), 'classifier' or 'predictor'
      (logits of tokens); '' for what the config names. Another kind than that
      must find its head in the file.

  Raises:
    CheckpointError: a file is missing, damaged, too large, or of a model that
      is not known; a value of config.json cannot be used; a tensor is
      missing, unknown or of another shape.
  """
  folder = pathlib.Path(folder)
  model = _described(files.read_config(folder), kind, folder)
  family, source = model.family, model.source
  tensors = {
    _new_name(name): x for name, x in files.read_tensors(folder).items()
  }
  _check_depth(model, tensors, folder)
  first = next(iter(family.rules(source))).theirs
  head = family.heads.get(model.kind)
  model = model._replace(
    copies=tuple(name for name in head.copies if name in tensors)
    if head
    else (),
    has_prefix=f'{family.prefix}{first}' in tensors,
  )
  rules = _rules(model)
  _check_names(rules, tensors, folder)
  params = _read(rules, tensors, _shapes(model), folder)
  for name in model.copies:
    _check_copy(tensors, name, _original(model, name), folder)
  used = {rule.theirs for rule in rules} | set(model.copies)
  rest = {name: x for name, x in tensors.items() if name not in used}
  for name in sorted(rest):
    if not family.is_spare(name):
      raise CheckpointError(
        f'{folder}: tensor {name} has no place in a {source["model_type"]} of '
        f'{model.config.model.num_layers} layers.\n'
        'Weights and config.json are not of one model, or of one that is not '
        'known here.'
      )
  return model._replace(
    params=flax.traverse_util.unflatten_dict(params, sep='/'), rest=rest
  )


def save(model: Pretrained, folder: str | pathlib.Path) -> None:
  """Writes a folder that `load`, and the public implementations, read.

  What was read and is written again has the same numbers, under the same
  names, except for:
    - those that `params` holds, and copies of them, are float32, whatever they
      were; what was float64 is rounded;
    - norms with the old names .gamma and .beta now have .weight and .bias;
    - the two rows of RoBERTa's table before its first position, which no token
      has, are zeros;
    - weights that were in several files are in one.

  Raises:
    ConfigError: the model is no longer one of its family.
    CheckpointError: it cannot be written.
  """
  facts = _facts(model.family, model.source, model.kind)
  expected = dict(config_lib.leaves(config_lib.neutral(facts)))
  actual = dict(config_lib.leaves(model.config))
  for key in sorted({*actual, *expected}):
    if actual.get(key) != expected.get(key):
      raise ConfigError(
        f'{key} of this model is not that of a {model.source["model_type"]} '
        'with its config.json: it cannot be written in that form.'
      )
  flat = flax.traverse_util.flatten_dict(model.params, sep='/')
  tensors = dict(model.rest)
  for rule in _rules(model):
    arrays = [np.asarray(flat[path]) for path in rule.ours]
    tensors[rule.theirs] = np.ascontiguousarray(rule.form.write(*arrays))
  for name in model.copies:
    tensors[name] = tensors[_original(model, name)]
  config = json.dumps(model.source, indent=2, sort_keys=True) + '\n'
  contents = {
    # What PyTorch's loaders ask for.
    files.WEIGHTS: safetensors.numpy.save(tensors, {'format': 'pt'}),
    files.CONFIG: config.encode(),
  }
  files.write(pathlib.Path(folder), contents)


def _described(source, kind, folder) -> Pretrained:
  """The model of a config.json, without tensors."""
  family = _family(source, folder)
  kind = _checked_kind(kind or _kind_of(source, folder), family, source, folder)
  try:
    return Pretrained(
      config=config_lib.neutral(_facts(family, source, kind)),
      kind=kind,
      vocabulary_size=family.vocabulary_size or number(source, 'vocab_size'),
      num_classes=num_classes(source) if kind == 'classifier' else 0,
      params={},
      source=source,
      rest={},
      copies=(),
      has_prefix=False,
    )
  except CheckpointError as error:
    raise CheckpointError(f'{error}\nIt is in {folder}.') from None


def _family(source, folder) -> Family:
  name = source.get('model_type')
  if not isinstance(name, str) or name not in FAMILIES:
    raise CheckpointError(
      f'{folder / files.CONFIG} has model_type={name!r}, which is not known '
      f'here; known: {", ".join(FAMILIES)}.'
    )
  return FAMILIES[name]


def _facts(family, source, kind) -> dict[str, Any]:
  """The values of our config keys that describe a model."""
  facts = dict(family.facts(source))
  if kind in family.heads:
    facts |= family.heads[kind].facts(source)
  return facts


def _kind_of(source, folder):
  names = source.get('architectures') or ['Model']
  name = names[0] if isinstance(names, list) else ''
  for ending, kind in _ENDINGS.items():
    if isinstance(name, str) and name.endswith(ending):
      return kind
  raise CheckpointError(
    f'{folder / files.CONFIG} has architectures={names!r}; known are names '
    f'that end in {", ".join(_ENDINGS)}.'
  )


def _checked_kind(kind, family, source, folder):
  known = ('embedder', *family.heads)
  if kind not in known:
    raise CheckpointError(
      f'{folder} is a {source["model_type"]}, which is no {kind}; it can be '
      f'read as {" or ".join(known)}.'
    )
  return kind


def _shapes(model) -> dict[str, tuple[int, ...]]:
  params = jax.eval_shape(model.initial, jax.random.key(0))
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def _new_name(name):
  for old, new in _OLD_NAMES.items():
    if name.endswith(old):
      return name.removesuffix(old) + new
  return name


def _rules(model) -> list[Rule]:
  """All that a file of such a model has, with whole names."""
  family, source = model.family, model.source
  prefix = family.prefix if model.has_prefix else ''
  rules = [
    rule._replace(theirs=f'{prefix}{rule.theirs}')
    for rule in family.rules(source)
  ]
  head = family.heads.get(model.kind)
  return [*rules, *(head.rules(source) if head else ())]


def _check_depth(model, tensors, folder) -> None:
  """Before anything is made for each layer."""
  num_layers = model.config.model.num_layers
  if num_layers > len(tensors):
    raise CheckpointError(
      f'{folder}: config.json asks for {num_layers:,} layers, and the weights '
      f'are {len(tensors):,} tensors.\n'
      'Weights and config.json are not of one model.'
    )


def _check_names(rules, tensors, folder) -> None:
  for rule in rules:
    if rule.theirs not in tensors:
      raise CheckpointError(
        f'{folder}: tensor {rule.theirs} is missing.\n'
        'Weights and config.json are not of one model, or the file is of a '
        'model without this part.'
      )


def _read(rules, tensors, shapes, folder):
  params = {}
  for rule in rules:
    theirs = tensors[rule.theirs]
    expected = _expected(rule, [shapes[path] for path in rule.ours], theirs)
    if theirs.shape != expected:
      raise CheckpointError(
        f'{folder}: tensor {rule.theirs} is of shape {theirs.shape}, and '
        f'config.json asks for {expected}.\n'
        'Weights and config.json are not of one model.'
      )
    arrays = rule.form.read(theirs.astype(np.float32))
    for path, x in zip(rule.ours, arrays, strict=True):
      params[path] = np.ascontiguousarray(x)
  return params


def _expected(rule, shapes, theirs) -> tuple[int, ...]:
  """The shape that a tensor should have."""
  # A damaged config.json can ask for more than there is room for.
  if math.prod(shapes[0]) > _MOST_TIMES * max(theirs.size, 1):
    return shapes[0]
  # No numbers, but one seen everywhere: of most forms this takes no room.
  return rule.form.write(
    *(np.broadcast_to(np.zeros((), bool), shape) for shape in shapes)
  ).shape


def _original(model, name) -> str:
  """Which tensor of the file another one is again."""
  original = model.family.heads[model.kind].copies[name]
  if model.has_prefix:
    return original
  return original.removeprefix(model.family.prefix)


def _check_copy(tensors, name, original, folder) -> None:
  if not np.array_equal(tensors[name], tensors[original]):
    raise CheckpointError(
      f'{folder}: tensor {name} is another one than {original}; models whose '
      'output is not tied to the embedding are not known here.'
    )
