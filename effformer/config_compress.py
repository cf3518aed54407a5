"""What `compress` may hold: the steps of a recipe, and what is timed.

Names and types of the settings of steps only: what they mean, and orders in
which steps cannot work, is checked by `effformer.compress.recipe`.
"""

import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from effformer.config_words import FLAG, refuse

_KEY = re.compile(r'compress\.steps\.(0|[1-9]\d*)\.([\w.]+)')
_SHAPE = re.compile(r'[1-9]\d*x[1-9]\d*')
_LESSON = {
  **dict.fromkeys(
    ('hard', 'soft', 'logits', 'states', 'mixers', 'attention', 'vectors'), 1.0
  ),
  **{'temperature': 1.0, 'labels': '', 'keep': '', 'top_k': 1},
  **{'low': 1.0, 'high': 1.0},
}
# Settings of the steps, with a value of the type.
_FACTS = {
  'do': '',
  **{'keep': (0,), 'mechanism': '', 'layers': (0,), 'units': ('',)},
  **{'ratio': 1.0, 'score': '', 'within': '', 'batches': 1, 'method': ''},
  **{'steps': 1, 'learning_rate': 1.0, 'rounded': False},
  **{f'lesson.{name}': value for name, value in _LESSON.items()},
  **{'bits': 1, 'group': '', 'tile': 1, 'symmetric': True, 'rule': ''},
  **{'tables': 1, 'activations': '', 'budget': 1.0, 'choices': (1,)},
  **{'tolerance': 1.0, 'max_trials': 1, 'number': 1, 'share': 1.0},
  **{'parts': ('',), 'activation': '', 'norm': '', 'pattern': (1,)},
  **{'width': 1, 'mlp_width': 1, 'shares': (1.0,), 'drops_layers': False},
  **{'batch': 1, 'length': 1},
}


def fact_of(key: str) -> str | None:
  """The setting that a key is about; None for one of no step."""
  step = _KEY.fullmatch(key)
  return step and step[2]


def facts(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of steps; those of mechanisms, `settings`, among them."""
  return {**_FACTS, **{f'settings.{k}': v for k, v in settings.items()}}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses numbers of steps with gaps, and shapes that cannot be.

  Raises:
    ConfigError: the first thing that is wrong.
  """
  compress = config.compress
  numbers = sorted(compress.steps.keys())
  if numbers != sorted(map(str, range(len(numbers)))):
    refuse(
      f'compress.steps has the steps {", ".join(numbers)}',
      f'number them from 0 to {len(numbers) - 1}',
    )
  for shape in compress.shapes:
    if not _SHAPE.fullmatch(shape):
      refuse(
        f'compress.shapes has {shape!r}, which is no batch x length',
        f'write it like {FLAG}compress.shapes=1x32,8x128',
      )
    length = int(shape.partition('x')[2])
    if numbers and length > config.data.max_length:
      refuse(
        f'compress.shapes has {shape!r}, and '
        f'data.max_length={config.data.max_length}',
        f'use for example {FLAG}compress.shapes=1x{config.data.max_length}',
      )
