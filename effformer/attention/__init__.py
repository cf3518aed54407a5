"""Every attention mechanism, under one contract.

    module = attention.build('linear', num_heads=4, causal=True)
    y_BTD = module.apply(variables, x_BTD, tokens=tokens)

A new mechanism is a file here, a row in `TABLE`, and a row in the configs.
"""

import dataclasses
from typing import Any

from effformer.attention.contract import Mixer, Supports
from effformer.attention.full import FullAttention
from effformer.attention.linear import LinearAttention
from effformer.attention.linformer import LinformerAttention
from effformer.attention.local import LocalAttention
from effformer.attention.multihead import MultiHead

__all__ = ['TABLE', 'Mixer', 'MultiHead', 'Supports', 'build', 'settings']

TABLE: dict[str, type[Mixer]] = {
  'full': FullAttention,
  'linear': LinearAttention,
  'local': LocalAttention,
  'linformer': LinformerAttention,
}


def build(name: str, **settings_of_mechanism: Any) -> Mixer:
  """Makes a mixer.

  Args:
    name: a key of `TABLE`.
    **settings_of_mechanism: fields of its class, see `settings(name)`; and
      linen's `name`, as `module_name`, for the scope of its parameters.

  Raises:
    ValueError: for a name, setting or value that does not exist.
    NotImplementedError: for a capability that the mechanism lacks.
  """
  known = settings(name)
  unknown = sorted(set(settings_of_mechanism) - set(known) - {'module_name'})
  if unknown:
    raise ValueError(
      f'{name} has no setting {", ".join(unknown)}; it has: '
      f'{", ".join(sorted(known))}'
    )
  module_name = settings_of_mechanism.pop('module_name', None)
  return TABLE[name](**settings_of_mechanism, name=module_name)


def settings(name: str) -> dict[str, Any]:
  """Setting -> default of a mechanism; ValueError for an unknown name."""
  if name not in TABLE:
    raise ValueError(
      f'unknown mechanism {name!r}; known: {", ".join(sorted(TABLE))}'
    )
  return {
    field.name: field.default
    for field in dataclasses.fields(TABLE[name])
    if field.name not in ('parent', 'name')
  }
