"""Pretrained models in and out: a folder <-> config and parameters."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

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
  def is_causal(self) -> bool:
    """Whether tokens see only themselves and earlier ones."""
    return _is_causal(self.source)

  @property
  def module(self) -> nn.Module:
    """The network that takes `params`."""
    return _module(
      self.config,
      self.kind,
      self.vocabulary_size,
      self.num_classes,
      self.source,
    )


def load(folder: str | pathlib.Path, kind: str = '') -> Pretrained:
  """Reads config.json and the weights of a folder; executes nothing.

  Args:
    folder: holds config.json and model.safetensors (or its parts and index).
    kind: 'embedder' (vectors of tokens and texts), 'classifier' or 'predictor'
      (logits of tokens); '' for what the config names. Another kind than that
      must find its head in the file.

  Raises:
    CheckpointError: a file is missing, damaged, too large, or of a model that
      is not known; a tensor is missing, unknown or of another shape.
  """
  folder = pathlib.Path(folder)
  source = files.read_config(folder)
  family = family_of(source, folder)
  kind = _checked_kind(kind or _kind_of(source, folder), family, source, folder)
  facts = facts_of(family, source, kind)
  config = config_lib.neutral(facts)
  vocabulary_size = _vocabulary_size(source)
  classes = num_classes(source) if kind == 'classifier' else 0
  tensors = {
    _new_name(name): x for name, x in files.read_tensors(folder).items()
  }
  module = _module(config, kind, vocabulary_size, classes, source)
  rules, has_prefix = _rules(family, source, kind, tensors)
  params = _read(rules, tensors, _shapes(module, config), folder)
  copies = _drop_copies(family, kind, tensors, params, rules, folder)
  used = {rule.theirs for rule in rules} | set(copies)
  rest = {name: x for name, x in tensors.items() if name not in used}
  for name in sorted(rest):
    if not family.is_spare(name):
      raise CheckpointError(
        f'{folder}: tensor {name} has no place in a {source["model_type"]} of '
        f'{config.model.num_layers} layers.\n'
        'Weights and config.json are not of one model, or of one that is not '
        'known here.'
      )
  return Pretrained(
    config, kind, vocabulary_size, classes,
    flax.traverse_util.unflatten_dict(params, sep='/'),
    source, rest, copies, has_prefix,
  )  # fmt: skip


def save(model: Pretrained, folder: str | pathlib.Path) -> None:
  """Writes a folder that `load`, and the public implementations, read.

  What was read and is written again has the same tensors.

  Raises:
    ConfigError: the model is no longer one of its family.
    CheckpointError: it cannot be written.
  """
  family = FAMILIES[model.source['model_type']]
  facts = facts_of(family, model.source, model.kind)
  other = _differences(model.config, config_lib.neutral(facts))
  if other:
    raise ConfigError(
      f'{other[0]} of this model is not that of a '
      f'{model.source["model_type"]} with its config.json: it cannot be '
      'written in that form.'
    )
  flat = flax.traverse_util.flatten_dict(model.params, sep='/')
  prefix = family.prefix if model.has_prefix else ''
  tensors = dict(model.rest)
  for rule in _all_rules(family, model.source, model.kind, prefix):
    arrays = [np.asarray(flat[path]) for path in rule.ours]
    tensors[rule.theirs] = rule.form.write(*arrays)
  head = family.heads.get(model.kind)
  for name in model.copies:
    tensors[name] = tensors[head.copies[name]]
  files.write(pathlib.Path(folder), tensors, model.source)


def family_of(source: Mapping[str, Any], folder: pathlib.Path) -> Family:
  """The family that a config.json names.

  Raises:
    CheckpointError: it is not known.
  """
  name = source.get('model_type')
  if name not in FAMILIES:
    raise CheckpointError(
      f'{folder / files.CONFIG} has model_type={name!r}, which is not known '
      f'here; known: {", ".join(FAMILIES)}.'
    )
  return FAMILIES[name]


def facts_of(
  family: Family, source: Mapping[str, Any], kind: str
) -> dict[str, Any]:
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


def _vocabulary_size(source):
  if source['model_type'] == 'vit':
    return vit.VOCABULARY_SIZE
  return number(source, 'vocab_size')


def _module(config, kind, vocabulary_size, classes, source):
  return build.of_kind(
    kind, config, vocabulary_size, classes, causal=_is_causal(source)
  )


def _is_causal(source):
  return source['model_type'] == 'gpt2'


def _shapes(module, config):
  # As many ids as there can be: an image has no other number.
  length = config.data.max_length
  ids_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)
  lengths_B = jax.ShapeDtypeStruct((1,), jnp.int32)
  variables = jax.eval_shape(module.init, jax.random.key(0), ids_BT, lengths_B)
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def _new_name(name):
  for old, new in _OLD_NAMES.items():
    if name.endswith(old):
      return name.removesuffix(old) + new
  return name


def _rules(family, source, kind, tensors):
  first = next(iter(family.rules(source))).theirs
  has_prefix = f'{family.prefix}{first}' in tensors
  prefix = family.prefix if has_prefix else ''
  return _all_rules(family, source, kind, prefix), has_prefix


def _all_rules(family, source, kind, prefix) -> list[Rule]:
  rules = [
    rule._replace(theirs=f'{prefix}{rule.theirs}')
    for rule in family.rules(source)
  ]
  if kind in family.heads:
    rules += family.heads[kind].rules(source)
  return rules


def _read(rules, tensors, shapes, folder):
  params = {}
  for rule in rules:
    if rule.theirs not in tensors:
      raise CheckpointError(
        f'{folder}: tensor {rule.theirs} is missing.\n'
        'Weights and config.json are not of one model, or the file is of a '
        'model without this part.'
      )
    theirs = tensors[rule.theirs]
    expected = rule.form.write(*(np.empty(shapes[path]) for path in rule.ours))
    if theirs.shape != expected.shape:
      raise CheckpointError(
        f'{folder}: tensor {rule.theirs} is of shape {theirs.shape}, and '
        f'config.json asks for {expected.shape}.\n'
        'Weights and config.json are not of one model.'
      )
    arrays = rule.form.read(theirs.astype(np.float32))
    for path, x in zip(rule.ours, arrays, strict=True):
      params[path] = np.ascontiguousarray(x)
  return params


def _drop_copies(family, kind, tensors, params, rules, folder):
  if kind not in family.heads:
    return ()
  copies = family.heads[kind].copies
  present = tuple(name for name in copies if name in tensors)
  for name in present:
    if not np.array_equal(tensors[name], tensors[copies[name]]):
      raise CheckpointError(
        f'{folder}: tensor {name} is another one than {copies[name]}; models '
        'whose output is not tied to the embedding are not known here.'
      )
  return present


def _differences(config, other):
  mine, theirs = (dict(config_lib.leaves(x)) for x in (config, other))
  return [
    key
    for key in sorted(set(mine) | set(theirs))
    if mine.get(key) != theirs.get(key)
  ]
