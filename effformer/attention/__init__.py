"""Every attention mechanism, under one contract.

    module = attention.build('linear', num_heads=4, causal=True)
    y_BTD = module.apply(variables, x_BTD, tokens=tokens)

A new mechanism is a file here, a row in `TABLE`, and a row in the configs.
"""

import dataclasses
from typing import Any

from effformer.attention.bigbird import BigBirdAttention
from effformer.attention.contract import Mixer, Supports
from effformer.attention.fnet import FNetMixer
from effformer.attention.full import FullAttention
from effformer.attention.gated_deltanet import GatedDeltaNetAttention
from effformer.attention.gla import GatedLinearAttention
from effformer.attention.linear import LinearAttention
from effformer.attention.linformer import LinformerAttention
from effformer.attention.local import LocalAttention
from effformer.attention.longformer import LongformerAttention
from effformer.attention.mamba2 import Mamba2Attention
from effformer.attention.mega import MegaMixer
from effformer.attention.multihead import MultiHead
from effformer.attention.nsa import NativeSparseAttention
from effformer.attention.nystromformer import NystromformerAttention
from effformer.attention.performer import PerformerAttention
from effformer.attention.reformer import ReformerAttention
from effformer.attention.retnet import RetNetAttention
from effformer.attention.s5 import S5Mixer
from effformer.attention.sinkhorn import SinkhornAttention
from effformer.attention.sparse import SparseAttention
from effformer.attention.synthesizer import SynthesizerAttention

__all__ = ['TABLE', 'Mixer', 'MultiHead', 'Supports', 'build', 'settings']

TABLE: dict[str, type[Mixer]] = {
  'full': FullAttention,
  'linear': LinearAttention,
  'local': LocalAttention,
  'linformer': LinformerAttention,
  'longformer': LongformerAttention,
  'bigbird': BigBirdAttention,
  'sparse': SparseAttention,
  'performer': PerformerAttention,
  'nystromformer': NystromformerAttention,
  'synthesizer': SynthesizerAttention,
  'fnet': FNetMixer,
  'reformer': ReformerAttention,
  'sinkhorn': SinkhornAttention,
  'nsa': NativeSparseAttention,
  's5': S5Mixer,
  'mega': MegaMixer,
  'retnet': RetNetAttention,
  'gla': GatedLinearAttention,
  'gated_deltanet': GatedDeltaNetAttention,
  'mamba2': Mamba2Attention,
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
