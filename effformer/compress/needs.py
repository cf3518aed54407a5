"""What the steps of a recipe need of a model, asked before anything is trained.

The config says what the layers are at each step, and so of which forms their
parameters are. What takes the numbers to know, such as which layers are alike,
is found by the steps themselves.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections

from effformer import attention, errors, pretrained
from effformer.compress import (
  bottleneck,
  calibrate,
  depth,
  inside,
  recipe,
  structure,
)
from effformer.compress.distill import maps, teaching
from effformer.compress.prune import units
from effformer.errors import ConfigError
from effformer.models import build
from effformer.models.trunk import Trunk
from effformer.pretrained import swapping


def check(
  config: ml_collections.ConfigDict, steps: Sequence[recipe.Step]
) -> None:
  """Refuses steps that a model of this config cannot take.

  Args:
    config: of the parent.
    steps: the recipe.

  Raises:
    ConfigError: calibration of what it cannot be of, lessons about what the
      layers do not have by then; layers, mechanisms or units that there are
      not, or rows that are too long to be timed.
  """
  parent = _trunk(config)
  kept = tuple(range(len(parent.layers)))
  has_fewer_heads = False
  for number, step in enumerate(steps):
    try:
      config = _after(step, config)
      if isinstance(step, recipe.DropLayers):
        kept = tuple(kept[index] for index in step.keep)
      student = _trunk(config)
      _check_calibration(step, student)
      _check_units(step, config, student)
      if isinstance(step, recipe.Train):
        layers = maps.layer_map('kept', len(kept), len(parent.layers), kept)
        teaching.check_inside(step.lesson, student, parent, layers)
        _check_heads(step, has_fewer_heads)
      if isinstance(step, recipe.Prune | recipe.ChooseUnits):
        has_fewer_heads |= bool({'head', 'kv_group'} & {*step.units})
    except ConfigError as error:
      name = recipe.name_of(step)
      raise ConfigError(f'step {number}, {name}: {error}') from None


def _trunk(config) -> Trunk:
  """The layers of a model, whatever stands on them and its ids are."""
  return build.text_embedder(config, 1, causal=False)


def _after(step, config):
  """The config after a step that says which layers or mixers there are."""
  if isinstance(step, recipe.DropLayers):
    return depth.kept(config, step.keep)
  if isinstance(step, recipe.Bottleneck):
    layers = step.layers or None
    return bottleneck.narrowed(
      config, step.width, layers, mlp_width=step.mlp_width
    )
  if isinstance(step, recipe.Swap):
    config = pretrained.swapped_config(
      config, step.mechanism, step.layers or None, settings=step.settings
    )
    _check_settings(config)
  return config


def _check_settings(config):
  for layer in build.layer_configs(config):
    with errors.refused(swapping.refusal(layer.mixer)):
      attention.build(layer.mixer, **dict(layer.settings))


def _check_calibration(step, student):
  is_calibrated = (
    (isinstance(step, recipe.Factorise) and 'mlp' in step.parts)
    or (isinstance(step, recipe.Round) and step.method != 'nearest')
    or (isinstance(step, recipe.ChooseBits) and step.method == 'gptq')
  )
  if is_calibrated:
    calibrate.check(student)
  elif isinstance(step, recipe.Simplify) and step.norm == 'affine':
    inside.check(student)


def _check_units(step, config, student):
  if isinstance(step, recipe.Prune):
    units.of(config, _shapes(student), step.units)
  elif isinstance(step, recipe.ChooseUnits):
    shares = dict.fromkeys(step.units, step.shares)
    structure.candidates(config, _shapes(student), shares)
    longest = config.data.max_length
    if not student.ids_per_token <= (step.length or longest) <= longest:
      raise ConfigError(
        f'rows of length={step.length} ids cannot be timed: this model reads '
        f'{student.ids_per_token} to {longest} (data.max_length).\nUse one of '
        f'these, or 0 for {longest}.'
      )


def _shapes(student):
  """The parameters of these layers, as forms without numbers."""
  ids_BT = jax.ShapeDtypeStruct((1, student.max_length), jnp.int32)
  lengths_B = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(student.init, jax.random.key(0), ids_BT, lengths_B)[
    'params'
  ]


def _check_heads(step, has_fewer_heads):
  if step.lesson.attention and has_fewer_heads:
    raise ConfigError(
      'heads have left by then, and attention is compared head by head.\n'
      'Leave attention out of the lesson, or train before heads are pruned.'
    )
