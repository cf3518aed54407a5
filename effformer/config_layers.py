"""What `model.layers` may hold: facts that differ layer by layer.

`schema` is always the module `configs.common`.
"""

import re
from types import ModuleType

from effformer.config_words import FLAG, hint, refuse

_KEY = re.compile(r'model\.layers\.(0|[1-9]\d*)\.(\w+)')
# Facts of a layer beside the settings of its mixer, with a value of the type.
FACTS = {
  'mixer': '',
  'num_heads': 1,
  'head_width': 1,
  'num_kv_heads': 1,
  'mlp_width': 1,
  'mlp_rank': 0,
  'bottleneck': 0,
  'activation': '',
  'share': '',
}
# Those that a whole model has no key for.
_OWN = ('head_width', 'num_kv_heads')


def fact_of(key: str) -> str | None:
  """The fact or setting that a key is about; None for one of no layer."""
  layer = _KEY.fullmatch(key)
  return layer and layer[2]


def rule_of(key: str) -> str:
  """The key whose allowed values are those of `key`."""
  fact = fact_of(key)
  if fact is None:
    return key
  if fact == 'mixer':
    return 'mixer.name'
  if fact in _OWN:
    return f'model.layers.{fact}'
  return f'model.{fact}' if fact in FACTS else f'mixer.{fact}'


def check(config, schema: ModuleType) -> None:
  """What one layer needs, for the facts of all and of each that differs.

  Raises:
    ConfigError: the first thing that is wrong.
  """
  model, layers = config.model, config.model.layers
  members = schema.members(config.mixer.name)
  if len(members) > model.num_layers:
    refuse(
      f'{config.mixer.name} has {len(members)} members, but '
      f'model.num_layers={model.num_layers}',
      f'add {FLAG}model.num_layers={len(members)}',
    )
  for member in members:
    _check_layer(config, '', {'mixer': member}, schema)
  groups = {}
  for index in sorted(layers.keys()):
    if not index.isdigit() or not int(index) < model.num_layers:
      refuse(
        f'model.layers.{index} does not exist, as '
        f'model.num_layers={model.num_layers}',
        f'use 0 to {model.num_layers - 1}',
      )
    row = layers[index].to_dict()
    row.setdefault(
      'mixer', members[int(index) * len(members) // model.num_layers]
    )
    _check_layer(config, index, row, schema)
    group = row.pop('share', '')
    if group and groups.setdefault(group, (index, row)) != (index, row):
      other, facts = groups[group]
      if facts != row:
        refuse(
          f'model.layers.{index}.share={group!r} shares the parameters of '
          f'layer {other}, but the two differ',
          'give both layers the same facts, or other groups',
        )


def _check_layer(config, index: str, row: dict, schema: ModuleType) -> None:
  model, mechanism = config.model, row['mixer']
  settings = schema.MIXERS[mechanism]
  known = [
    *(f for f in FACTS if mechanism in schema.HEAD_FACTS.get(f, [mechanism])),
    *settings,
  ]
  for fact in row:
    if fact not in known:
      refuse(
        f'model.layers.{index}.{fact} is no setting of {mechanism}',
        hint(fact, known),
      )
  if model.position == 'rotary' and mechanism in schema.WITHOUT_ROTARY:
    other = schema.WITHOUT_ROTARY[mechanism]
    refuse(
      f'{mechanism} has no rotary positions, but model.position=rotary',
      f'add {FLAG}model.position={other}',
    )
  _check_bottleneck(model, index, row)
  _check_heads(model, index, row)
  own = config.mixer if mechanism == config.mixer.name else {}
  rank = row.get('rank', own.get('rank', settings.get('rank', 0)))
  if rank > config.data.max_length:
    key = f'model.layers.{index}.rank' if 'rank' in row else 'mixer.rank'
    refuse(
      f'{key}={rank} is more than data.max_length={config.data.max_length}',
      f'use at most {config.data.max_length}',
    )


def _check_bottleneck(model, index: str, row: dict) -> None:
  name, width = _bottleneck(model, index, row)
  if not width:
    return
  if width >= model.width:
    refuse(
      f'{name}={width} is not below model.width={model.width}',
      'use a smaller one, or 0 for none',
    )
  if model.reversible:
    refuse(
      f'model.reversible=true goes with model.bottleneck=0 only, got '
      f'{name}={width}',
      f'use {FLAG}{name}=0',
    )


def _bottleneck(model, index: str, row: dict) -> tuple[str, int]:
  """The key that says it of a layer, and its value."""
  if 'bottleneck' in row:
    return f'model.layers.{index}.bottleneck', row['bottleneck']
  return 'model.bottleneck', model.bottleneck


def _check_heads(model, index: str, row: dict) -> None:
  place = f'model.layers.{index}'
  num_heads = row.get('num_heads', model.num_heads)
  source, width = _bottleneck(model, index, row)
  if model.qkv_width or not width:
    source = 'model.qkv_width' if model.qkv_width else 'model.width'
    width = model.qkv_width or model.width
  name = f'{place}.num_heads' if 'num_heads' in row else 'model.num_heads'
  if 'head_width' not in row and width % num_heads:
    fitting = [n for n in range(1, min(width, 1024) + 1) if width % n == 0]
    near = sorted(fitting, key=lambda n: abs(n - num_heads))[:4]
    refuse(
      f'{name}={num_heads} does not divide {source}={width}',
      f'use a divisor, for example {" or ".join(map(str, sorted(near)))}',
    )
  head_width = row.get('head_width', width // num_heads)
  if model.position == 'rotary' and head_width % 2:
    what = f'{source}={width} / {name}={num_heads} is {head_width}'
    if 'head_width' in row:
      what = f'{place}.head_width={head_width}'
    refuse(
      f'model.position=rotary needs heads of even width, but {what}',
      'change the heads, or the position',
    )
  groups = row.get('num_kv_heads', num_heads)
  if num_heads % groups:
    refuse(
      f'{place}.num_kv_heads={groups} does not divide {name}={num_heads}',
      'heads share keys and values in groups of one size: use a divisor',
    )
