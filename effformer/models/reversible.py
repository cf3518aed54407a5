"""Reversible stack of residual branches (Gomez et al. 2017, 1707.04585;
Reformer, Kitaev et al. 2020, 2001.04451).

    y1 = x1 + F(x2)      y2 = x2 + G(y1)
    x2 = y2 - G(y1)      x1 = y1 - F(x2)

The backward pass stores the outputs of the last layer alone, and makes the
inputs of each layer from its outputs, so that memory of activations does not
grow with depth. Each branch is computed twice, and once backwards.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# (name, params, context, index, x) -> what a branch of layer `index`, with
# parameters of this name, adds. Pure: called twice, it gives the same.
Branch = Callable[[str, Any, Any, jax.Array, jax.Array], jax.Array]
Pair = tuple[jax.Array, jax.Array]


class Run(NamedTuple):
  """Consecutive layers; static.

  Attributes:
    names: of their parameters, one a layer.
    indices: of the layers.
    is_scanned: whether the layers are alike and compiled once.
  """

  names: tuple[str, ...]
  indices: tuple[int, ...]
  is_scanned: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def stack(
  first: Branch,
  second: Branch,
  runs: tuple[Run, ...],
  params: dict[str, Any],
  pair: Pair,
  context: Any,
) -> Pair:
  """(y1, y2) of the last layer.

  Args:
    first: F; must not close over traced arrays.
    second: G.
    runs: all layers, in order.
    params: by name.
    pair: x1, x2 of the first layer. float32, or subtraction loses what
      addition has rounded away.
    context: what the branches need beside; it gets no gradient.
  """

  def step(name, block_params, index, pair):
    x1, x2 = pair
    y1 = x1 + first(name, block_params, context, index, x2)
    return y1, x2 + second(name, block_params, context, index, y1)

  for run in runs:
    if not run.is_scanned:
      for name, index in zip(run.names, run.indices, strict=True):
        pair = step(name, params[name], index, pair)
      continue
    name = run.names[0]
    shared, stacked = split(run, params)

    def body(pair, element, name=name, shared=shared):
      own, index = element
      return step(name, shared if own is None else own, index, pair), None

    elements = stacked, jnp.asarray(run.indices)
    pair = jax.lax.scan(body, pair, elements)[0]
  return pair


def _forward(first, second, runs, params, pair, context):
  outputs = stack(first, second, runs, params, pair, context)
  return outputs, (params, outputs, context)


def _backward(first, second, runs, saved, cotangents):
  params, pair, context = saved
  carry = pair, cotangents
  sums = jax.tree.map(jnp.zeros_like, params)

  def step(name, block_params, index, carry):
    (y1, y2), (dy1, dy2) = carry
    added, pull = jax.vjp(
      lambda p, x: second(name, p, context, index, x), block_params, y1
    )
    x2 = y2 - added
    dsecond, dx = pull(dy2)
    dy1 += dx
    added, pull = jax.vjp(
      lambda p, x: first(name, p, context, index, x), block_params, x2
    )
    dfirst, dx = pull(dy1)
    dparams = jax.tree.map(jnp.add, dfirst, dsecond)
    return ((y1 - added, x2), (dy1, dy2 + dx)), dparams

  for run in reversed(runs):
    if run.is_scanned:
      carry, dparams = _scan_back(step, run, params, carry)
    else:
      dparams = []
      for name, index in zip(run.names[::-1], run.indices[::-1], strict=True):
        carry, dlayer = step(name, _anew(params[name], carry), index, carry)
        dparams.append((name, dlayer))
    for name, dlayer in dparams:
      sums[name] = jax.tree.map(jnp.add, sums[name], dlayer)
  return sums, carry[1], None


def _scan_back(step, run, params, carry):
  """`step` over the layers of a run, from last to first.

  Returns the carry, and pairs of a name and gradients of its parameters.
  """
  name = run.names[0]
  shared, stacked = split(run, params)

  def body(carry, element):
    carry, total = carry
    own, index = element
    carry, dparams = step(name, shared if own is None else own, index, carry)
    if own is not None:
      return (carry, total), dparams
    return (carry, jax.tree.map(jnp.add, total, dparams)), None

  start = carry, jax.tree.map(jnp.zeros_like, shared)
  elements = stacked, jnp.asarray(run.indices)
  (carry, total), dstacked = jax.lax.scan(body, start, elements, reverse=True)
  if stacked is None:
    return carry, [(name, total)]
  return carry, [
    (name, jax.tree.map(lambda x, i=i: x[i], dstacked))
    for i, name in enumerate(run.names)
  ]


def _anew(params, carry):
  """The same parameters, as numbers that are known in the backward pass only.

  What a compiler makes of parameters alone it would keep from the forward pass
  for every layer, such as the broadcast scale of a norm; XLA:CPU does not heed
  an optimisation barrier.
  """
  one = 1 + 0 * carry[1][0].ravel()[0]
  return jax.tree.map(lambda p: p * one.astype(p.dtype), params)


stack.defvjp(_forward, _backward)


def split(run: Run, params: dict[str, Any]) -> tuple[Any, Any]:
  """Parameters that all layers of a run share, and those they do not."""
  if run.names[0] == run.names[-1]:
    return params[run.names[0]], None
  own = [params[name] for name in run.names]
  return None, jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
