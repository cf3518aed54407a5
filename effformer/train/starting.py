"""What a run starts from: parameters that were trained before.

They are given as a value (`Start`), or named by `model.pretrained`. A run
begins with them and then is like any other: what it began with stands in its
start.json with a digest, and a start with other parameters is refused.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import ml_collections

from effformer import config as config_lib
from effformer import durable, errors, pretrained
from effformer.train import (
  records,
  screen,
  setup,
  sharding,
  state,
  workdir,
)

# Parameters of these names may be new.
_HEAD = 'head'
# A row for each token.
_TABLE = 'embedding/embedding'
# Facts of a pretrained model that a run may change: what stands on the trunk,
# how long rows are, what is dropped, and mixers.
_FREE = (
  *('model.pooling', 'model.head_', 'model.token_head', 'model.pair_head'),
  *('model.pretrained', 'model.dropout', 'model.attention_dropout'),
  *('model.layers', 'model.remat', 'model.dtype', 'model.mlp_chunk', 'mixer.'),
)


class Start(NamedTuple):
  """Parameters to begin with.

  Attributes:
    params: of a model of the same shape; the head may differ or be missing.
    origin: where they come from, for people.
    tokenizer: that of the run, for people.
  """

  params: Mapping[str, Any]
  origin: str
  tokenizer: str = ''


def from_config(config: ml_collections.ConfigDict) -> Start | None:
  """What `model.pretrained` names.

  Raises:
    CheckpointError: it is not there, or damaged.
    ConfigError: the config describes another model.
  """
  name = config.model.pretrained
  if not name:
    return None
  model = pretrained.load(pretrained.find(name))
  for key, value in config_lib.leaves(model.config):
    is_fact = key.startswith('model.') and not key.startswith(_FREE)
    if is_fact and config.model[key.removeprefix('model.')] != value:
      own = config.model[key.removeprefix('model.')]
      raise errors.ConfigError(
        f'model.pretrained={name!r} has {key}={value!r}, and the config '
        f'{key}={own!r}.\nUse --config.{key}={value}.'
      )
  return Start(model.params, name, config.data.tokenizer)


def check(start: Start, program: setup.Program) -> None:
  """Compares the trunk with that of the config.

  Raises:
    ConfigError: a parameter is missing or differs; or the tokenizer has more
      or fewer tokens than the model.
  """
  _chosen(start, program.abstract.params)


def begun(
  start: Start,
  program: setup.Program,
  folder: pathlib.Path,
  console: screen.Screen,
) -> setup.Program:
  """The program, whose first state has these parameters.

  Raises:
    ConfigError: see `check`.
    CheckpointError: the run began with others.
  """
  chosen, new = _chosen(start, program.abstract.params)
  known = facts(folder)
  own = {'origin': start.origin, 'params_sha256': state.digest(chosen)}
  if known is None and not workdir.has_begun(folder):
    known = {**own, 'new': new}
    if jax.process_index() == 0:
      records.write_json(folder / workdir.START_FACTS, known)
  if known is None or known.get('params_sha256') != own['params_sha256']:
    raise errors.CheckpointError(
      f'{folder} began with other parameters than {start.origin} has now.\n'
      'Put those back, or train with another --workdir.'
    )
  console.say(f'starting from {start.origin}')
  if new:
    console.say(f'  new, as first made: {", ".join(new)}')

  def first_state():
    made = program.first_state()
    flat = flax.traverse_util.flatten_dict(made.params, sep='/')
    for path, x in chosen.items():
      flat[path] = sharding.placed(x, flat[path])
    params = flax.traverse_util.unflatten_dict(flat, sep='/')
    return made.replace(params=params)

  return program._replace(first_state=first_state)


def facts(folder: pathlib.Path) -> dict[str, Any] | None:
  """What a run began with, None where that was made for it."""
  return durable.read_json(folder / workdir.START_FACTS)


def _chosen(start: Start, abstract: Any) -> tuple[dict[str, Any], list[str]]:
  """The parameters that are taken, by path, and the paths of the new ones."""
  given = flax.traverse_util.flatten_dict(start.params, sep='/')
  taken, new = {}, []
  for path, leaf in flax.traverse_util.flatten_dict(abstract, sep='/').items():
    x = given.get(path)
    if path == 'positions' and x is not None:
      # Of shorter rows, the first ones.
      x = x[: leaf.shape[0]]
    if x is not None and x.shape == leaf.shape:
      taken[path] = x
    elif path.startswith(_HEAD) or '/mixer/' in path:
      new.append(path)
    elif path == _TABLE and x is not None and x.shape[1:] == leaf.shape[1:]:
      raise errors.ConfigError(_other_tokens(start, len(x), leaf.shape[0]))
    else:
      found = 'is missing there' if x is None else f'is {x.shape} there'
      raise errors.ConfigError(
        f'{start.origin} is of another model: {path} {found}, and {leaf.shape} '
        'in this config.\nDescribe the same model in the config.'
      )
  return taken, sorted(new)


def _other_tokens(start: Start, in_model: int, in_run: int) -> str:
  if not start.tokenizer:
    return (
      f'the model {start.origin!r} has {in_model} tokens, and the tokenizer of '
      f'this task has {in_run}: an id is not the same token in both.\n'
      'Choose a model or a task with the same tokenizer.'
    )
  return (
    f'the tokenizer data.tokenizer={start.tokenizer!r} has {in_run} tokens, '
    f'and the model {start.origin!r} has {in_model}: an id is not the same '
    f'token in both.\nUse --config.data.tokenizer={start.origin}, or the '
    'tokenizer.json that the model was trained with.'
  )
