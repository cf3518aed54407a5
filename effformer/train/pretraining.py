"""Self-pretraining: a stage before a run, whose trunk the run starts from.

The stage is a run of its own in the folder `pretrain` of the run: it is resumed
like any other, and the run begins when it is over. What is to be known of it
then stands in the run's pretrain.json, with a digest of the parameters that it
hands on.
"""

from typing import Any

import jax
import ml_collections

from effformer import errors
from effformer.config_tracked import untracked
from effformer.train import state

# Parameters of these names stay as they were made.
_HEAD = 'head'


def stage_config(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The config of the stage: that of the run, with `pretrain` for `train`."""
  # Not ConfigDict(config), whose sections would be those of `config`.
  stage = untracked(config).copy_and_resolve_references()
  with stage.unlocked():
    for key in ('num_steps', 'learning_rate', 'warmup_steps'):
      stage.train[key] = config.pretrain[key]
    # The whole state of the stage is in its last step; the best is tested.
    stage.train.select = 'best'
  return stage.lock()


def check(run: Any, stage: Any, config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError where the trunks of two models differ.

  Args:
    run, stage: parameters, or their shapes.
    config: of the run.
  """
  for path, leaf in _trunk(run):
    other = _find(stage, path)
    if other is None or other.shape != leaf.shape:
      name = '/'.join(path)
      raise errors.ConfigError(
        f'{config.mixer.name} has other parameters when it is pretrained with '
        f'pretrain.objective={config.pretrain.objective}: {name} is '
        f'{other and other.shape}, not {leaf.shape}.\n'
        'Use pretrain.objective=masked.'
      )


def merged(made: state.TrainState, stage_params: Any) -> state.TrainState:
  """A first state with the trunk of the stage; the head is as it was made."""

  def choose(path, leaf):
    names = tuple(key.key for key in path)
    if names[0].startswith(_HEAD):
      return leaf
    # Stage and run have one mesh, and the same rule for arrays of one shape.
    return jax.device_put(_find(stage_params, names), leaf.sharding)

  params = jax.tree_util.tree_map_with_path(choose, made.params)
  return made.replace(params=params)


def _trunk(params):
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = tuple(key.key for key in path)
    if not names[0].startswith(_HEAD):
      yield names, leaf


def _find(params, names):
  for name in names:
    if name not in params:
      return None
    params = params[name]
  return params
