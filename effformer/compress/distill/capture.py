"""What a network computes inside, beside its output.

    seen = capture(module, params, ids_BT, lengths_B, what=('states',))
    seen.output, seen.states[3]

One program with the output, which stays the same (where layers are scanned
otherwise, but for the last bits); gradients go through all of it. With dropout,
give `deterministic=False` and `rngs`.

Layers are neither scanned nor computed again in the backward pass here: a deep
student takes longer to compile than where it runs alone, and has the memory of
one without `remat`. Not for reversible encoders, nor for extra tokens.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp

from effformer import attention
from effformer.attention import heads
from effformer.attention.multihead import MultiHead
from effformer.attention.primitives import positions, softmax
from effformer.compress import inside
from effformer.models.block import Block, LayerConfig
from effformer.models.trunk import Trunk
from effformer.shapes import Array, Tokens

# What can be asked for.
PARTS = ('states', 'mixers', 'heads', 'scores')
# Mechanisms whose weights are a softmax of a score for each pair of tokens.
WITH_SCORES = ('full', 'local')


class Captured(NamedTuple):
  """What came out, and what was asked for of the inside.

  Rows are those of the encoder: of pairs of texts all first ones, then all
  second ones. What was not asked for is empty.

  Attributes:
    output: of the network.
    keep_BT: bool, real tokens.
    states: hidden states [B, T, D]: what enters the first block, then what
      comes out of each. The last norm of pre-LN is not among them.
    mixers: by layer, the output of the mixer [B, T, D].
    queries: by layer, [B, H, T, K], without rotary positions.
    keys, values: [B, H', T, K], of the heads that there are.
    scores: by layer, float32 [B, H, T, T], what the softmax is taken of:
      <q, k> / sqrt(K) + bias, and `softmax.MASKED` where the key may not be
      seen.
  """

  output: Array
  keep_BT: Array
  states: tuple[Array, ...]
  mixers: dict[int, Array]
  queries: dict[int, Array]
  keys: dict[int, Array]
  values: dict[int, Array]
  scores: dict[int, Array]


def capture(
  module: Trunk,
  params: Any,
  *arguments: Any,
  what: Iterable[str] = ('states',),
  layers: Iterable[int] | None = None,
  **keywords: Any,
) -> Captured:
  """`module.apply`, with what it computes inside.

  Args:
    module: the network.
    params: its parameters.
    *arguments: of the network: ids_BT, lengths_B, and so on.
    what: any of 'states', 'mixers', 'heads' (queries, keys, values) and
      'scores'.
    layers: of which all but the states are wanted; None for all.
    **keywords: of the network and of `apply`: types_BT, deterministic, rngs,
      step, method.

  Raises:
    ConfigError: the network cannot be looked at, see `inside.check`.
    ValueError: no such part or layer, or a layer has no such part.
  """
  what = tuple(what)
  chosen = range(len(module.layers)) if layers is None else tuple(layers)
  _check(module.layers, what, chosen)
  states, keep_BT = [], []
  found = {
    name: {} for name in ('mixers', 'queries', 'keys', 'values', 'scores')
  }
  projected = {}

  def see(call):
    if isinstance(call.module, Block) and call.method == '__call__':
      if not keep_BT:
        keep_BT.append(call.tokens.keep_BT)
        states.append(call.arguments[0])
      states.append(call.output[0])
    if call.layer not in chosen or call.module.path != ('mixer',):
      return
    if call.method == 'project':
      # Of a mechanism that builds on another's, its own comes last.
      projected[call.layer] = call.output[0]
    if call.method == '__call__':
      found['mixers'][call.layer] = call.output
      if call.layer in projected:
        _add_heads(found, call, projected[call.layer], what)

  output = inside.apply(module, params, see, *arguments, **keywords)
  return Captured(
    output,
    keep_BT[0],
    tuple(states) if 'states' in what else (),
    found['mixers'] if 'mixers' in what else {},
    *(found[name] for name in ('queries', 'keys', 'values', 'scores')),
  )


def _add_heads(found, call, streams, what) -> None:
  q_BTHK, k_BTHK, v_BTHK, _ = streams
  mixer, layer, tokens = call.module, call.layer, call.tokens
  if 'scores' in what:
    found['scores'][layer] = scores(mixer, q_BTHK, k_BTHK, tokens)
  if 'heads' not in what:
    return
  rows = q_BTHK.shape[:2]
  if (k_BTHK.shape[:2], v_BTHK.shape[:2]) != (rows, rows) or (
    q_BTHK.shape[-1] != k_BTHK.shape[-1]
  ):
    raise ValueError(
      f'layer {layer} is {mixer.mechanism}, here with queries {q_BTHK.shape}, '
      f'keys {k_BTHK.shape} and values {v_BTHK.shape} and not with one of each '
      "a token; ask for 'mixers'"
    )
  for name, x_BTHK in (
    ('queries', q_BTHK),
    ('keys', k_BTHK),
    ('values', v_BTHK),
  ):
    found[name][layer] = jnp.swapaxes(x_BTHK, 1, 2)


def scores(
  mixer: MultiHead, q_BTHK: Array, k_BTHK: Array, tokens: Tokens
) -> Array:
  """The scores of one layer, float32 [B, H, T, T].

  Args:
    mixer: of a mechanism `WITH_SCORES`, bound to its parameters.
    q_BTHK, k_BTHK: what its `project` gave.
    tokens: of the layer.
  """
  pattern = softmax.Pattern(
    causal=mixer.causal,
    window=getattr(mixer, 'window', 0),
    bias=mixer.bias_rule(),
  )

  def one(head, _):
    q_TK, k_SK = head.q_TK, head.k_SK
    if mixer.rotary:
      q_TK = positions.rotate(q_TK, head.position_T)
      k_SK = positions.rotate(k_SK, head.position_S)
    where = softmax.sites(*head[-4:])
    return softmax.logits(q_TK, k_SK, where, pattern, head.bias)

  sites = (tokens.segment_BT,) * 2 + (tokens.position_BT,) * 2
  head = heads.Head(q_BTHK, k_BTHK, k_BTHK, None, _bias(mixer), None, *sites)
  return jnp.moveaxis(heads.lift(one, head, (), False), 2, 1)


def _bias(mixer):
  if mixer.relative_bias == 'none':
    return None
  if mixer.relative_bias == 'alibi':
    return jnp.asarray(positions.slopes(mixer.num_heads))
  return mixer.get_variable('params', 'relative_bias')


def _check(layers: tuple[LayerConfig, ...], what, chosen) -> None:
  for part in what:
    if part not in PARTS:
      raise ValueError(f'no part {part!r}; there are {", ".join(PARTS)}')
  for index in chosen:
    if index not in range(len(layers)):
      raise ValueError(
        f'no layer {index}: the network has layers 0 to {len(layers) - 1}'
      )
    name = layers[index].mixer
    if 'scores' in what and name not in WITH_SCORES:
      raise ValueError(
        f'layer {index} is {name}, which has no scores of pairs of tokens, as '
        f"{' and '.join(WITH_SCORES)} have; ask for 'mixers', or other layers"
      )
    if 'heads' in what and not issubclass(attention.TABLE[name], MultiHead):
      raise ValueError(
        f'layer {index} is {name}, which has no queries, keys and values; ask '
        "for 'mixers', or other layers"
      )
