"""Looking at what a network computes inside, without changing it.

Layers that are alike are not scanned here and nothing is computed twice, so
that what is seen is part of the same program as the output, and can be
returned with it or have a gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from effformer.errors import ConfigError
from effformer.models.block import Block
from effformer.models.trunk import Trunk
from effformer.shapes import Tokens


class Call(NamedTuple):
  """One call of a module within a block, or of the block itself.

  Attributes:
    layer: number of the block, from 0.
    tokens: of the block.
    module: what was called, bound to its parameters; its path starts within
      the block.
    method: name of the method.
    arguments: those given by position.
    output: what came out.
  """

  layer: int
  tokens: Tokens
  module: nn.Module
  method: str
  arguments: tuple[Any, ...]
  output: Any


def check(module: Trunk) -> None:
  """Raises ConfigError where layers are not run so that they can be seen."""
  if module.reversible or module.extra_tokens:
    raise ConfigError(
      'looking inside needs an encoder with one stream and no extra tokens, '
      f'got reversible={module.reversible} and '
      f'extra_tokens={module.extra_tokens}.\nLeave out what looks inside: '
      "calibration, norms 'affine', and states, mixers and attention of "
      'lessons.'
    )


def apply(
  module: Trunk,
  params: Any,
  see: Callable[[Call], None],
  *arguments: Any,
  **keywords: Any,
) -> Any:
  """`module.apply`, which tells `see` of all calls within the blocks.

  The output is that of the module itself, dropout included; where its layers
  would be scanned, but for the last bits. A module within another is told of
  first.

  Args:
    module: the network.
    params: its parameters.
    see: is given every call when it is done.
    *arguments: of the network.
    **keywords: of the network and of `apply`: rngs, method.

  Raises:
    ConfigError: see `check`.
  """
  check(module)
  module = dataclasses.replace(module, unrolled=True, remat=False)
  layer, tokens = -1, None

  def watch(call, call_arguments, call_keywords, context):
    nonlocal layer, tokens
    is_block = isinstance(context.module, Block)
    if is_block and context.method_name == '__call__':
      layer, tokens = layer + 1, call_keywords['tokens']
    output = call(*call_arguments, **call_keywords)
    if tokens is not None:
      see(
        Call(
          layer,
          tokens,
          context.module,
          context.method_name,
          call_arguments,
          output,
        )
      )
    if is_block and context.method_name == '__call__':
      tokens = None
    return output

  with nn.intercept_methods(watch):
    return module.apply({'params': params}, *arguments, **keywords)
