"""Recipes: the steps that make a trained model small, by name.

A config file of a compression lays one of them over the config of a run:

    def get_config(arg=''):
      return recipes.assemble(arg, lra_text.get_config, steps=400, rate=5e-4)

The argument is RECIPE, and then that of the run's config. What a step may hold
is said in effformer.compress.step_kinds and rounding_kinds.
"""

from collections.abc import Callable, Mapping, Sequence

import ml_collections

from configs import common

Rows = Sequence[Mapping]

# With a teacher: its distribution at a higher temperature, its hidden states,
# and a little of the labels.
LESSON = {'hard': 0.5, 'soft': 1.0, 'states': 1.0, 'temperature': 2.0}
# Of sentence encoders: the vectors of the teacher, without labels.
LESSON_OF_VECTORS = {'hard': 0.0, 'soft': 0.0, 'vectors': 1.0, 'states': 1.0}
# What goes on inside, without labels.
INSIDE = {'hard': 0.0, 'soft': 0.0, 'states': 1.0, 'mixers': 1.0}
_INT8 = {'do': 'round', 'bits': 8}
_SIGNS = {'do': 'round', 'bits': 1, 'rule': 'sign', 'tables': 0}
_TILES = {'group': 'tile', 'tile': 32, 'rule': 'clip'}


def half(num_layers: int) -> tuple[int, ...]:
  """Half of the layers, the first and the last among them where two stay."""
  number = max(num_layers // 2, 1)
  last = max(number - 1, 1)
  return tuple(round(i * (num_layers - 1) / last) for i in range(number))


def third(width: int, num_heads: int) -> int:
  """The width nearest to a third that gives the heads an even width each.

  Rotary positions need it even.
  """
  step = 2 * num_heads
  return step * max(round(width / 3 / step), 1)


def table(
  num_layers: int,
  steps: int,
  rate: float,
  lesson: Mapping = LESSON,
  *,
  width: int,
  num_heads: int,
) -> dict[str, Rows]:
  """Name -> steps.

  Args:
    num_layers: of the parent.
    steps, rate: of a training that recovers what was lost.
    lesson: of that training.
    width, num_heads: of the parent.
  """
  keep = half(num_layers)
  train = {
    'do': 'train', 'steps': steps, 'learning_rate': rate, 'lesson': lesson,
  }  # fmt: skip
  return {
    'int8-storage': [_INT8],
    'int8-dynamic': [{**_INT8, 'method': 'smooth', 'activations': 'dynamic'}],
    'int4-gptq': [{'do': 'round', 'bits': 4, **_TILES, 'method': 'gptq'}],
    # SparseGPT; codes and places are as many bytes as 5 bits everywhere.
    'sparse-2-4': [{**_INT8, 'pattern': (2, 4), 'method': 'gptq'}],
    # As many bytes as 4 bits everywhere, with a scale for 32 of them.
    'mixed-bits': [{'do': 'choose_bits', 'budget': 5 / 32}],
    # Half of the time, then 7 bits for 32, scales among them.
    'auto': [
      {'do': 'choose_units', 'budget': 0.5},
      train,
      {'do': 'choose_bits', 'budget': 7 / 32},
    ],
    'half-depth-kd': [{'do': 'drop_layers', 'keep': keep}, train, _INT8],
    'slim-kd': [
      {'do': 'prune', 'units': ('head', 'mlp'), 'ratio': 0.5},
      train,
      _INT8,
    ],
    # What layers say first, and what the model says then, as TinyBERT does it.
    'tiny': [
      {'do': 'drop_layers', 'keep': keep},
      {**train, 'lesson': INSIDE},
      {'do': 'prune', 'units': ('head', 'mlp'), 'ratio': 0.5},
      train,
      {'do': 'round', 'bits': 4, **_TILES, 'method': 'gptq'},
    ],
    'shared': [
      {'do': 'share', 'number': len(keep)},
      train,
      _INT8,
    ],
    'low-rank-kd': [
      {'do': 'factorise', 'share': 0.5, 'parts': ('mlp', 'embedding')},
      train,
      _INT8,
    ],
    'bottleneck-kd': [
      {'do': 'bottleneck', 'width': third(width, num_heads)},
      train,
      _INT8,
    ],
    'relu-kd': [{'do': 'simplify', 'activation': 'relu'}, train, _INT8],
    **{
      f'{mechanism}-kd': [
        {'do': 'swap', 'mechanism': mechanism},
        {**train, 'lesson': {**lesson, 'mixers': 1.0}},
        _INT8,
      ]
      for mechanism in ('linear', 'local')
    },
    'ternary-kd': [
      {**train, 'rounded': True},
      {'do': 'round', 'bits': 2, 'rule': 'ternary', 'tables': 0},
    ],
    'binary-kd': [{**train, 'rounded': True}, _SIGNS],
    # Each training has as many steps as the one of the rows before.
    'binary-split': [
      {**train, 'rounded': True},
      {'do': 'split'},
      {**train, 'rounded': True},
      _SIGNS,
    ],
  }


def assemble(
  arg: str,
  run: Callable[[str], ml_collections.ConfigDict],
  *,
  steps: int,
  rate: float,
  lesson: Mapping = LESSON,
  shapes: Sequence[tuple[int, int]] = ((1, 32), (8, 128), (32, 64)),
) -> ml_collections.ConfigDict:
  """The config of a run, with the steps of a recipe.

  Args:
    arg: RECIPE and then the argument of the run, with commas; without a recipe
      the first of `table`.
    run: argument -> config of the run whose model is compressed.
    steps, rate, lesson: see `table`.
    shapes: batch and length of what is timed; rows are cut as those of the run.

  Raises:
    ArgumentError: an unknown word, or a second recipe.
  """
  # Sizes change rows and no name.
  known = tuple(table(1, steps, rate, width=1, num_heads=1))
  words = arg.split(',') if arg else []
  chosen = [word for word in words if word in known]
  if len(chosen) > 1:
    raise common.ArgumentError(f'a recipe is given twice in {arg!r}')
  name = chosen[0] if chosen else known[0]
  try:
    config = run(','.join(word for word in words if word != name))
  except common.ArgumentError as error:
    if not error.known or error.word in common.PRESETS:
      raise
    what = error.what.replace('mechanism', 'recipe, mechanism')
    raise common.ArgumentError(
      what, error.word, (*known, *error.known)
    ) from None
  with config.unlocked():
    config.compress.recipe = name
    longest = config.data.max_length
    config.compress.shapes = tuple(
      f'{batch}x{min(length, longest)}' for batch, length in shapes
    )
    model = config.model
    sizes = {'width': model.width, 'num_heads': model.num_heads}
    rows = table(model.num_layers, steps, rate, lesson, **sizes)[name]
    for number, row in enumerate(rows):
      config.compress.steps[str(number)] = ml_collections.ConfigDict(row)
  return config.lock()
