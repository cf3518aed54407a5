"""Which of their tensors is which of our parameters, both ways.

A `Rule` says it once; reading and writing follow from it, so that float32 that
is read and written again is the same, bit for bit (but see `behind`).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Form(NamedTuple):
  """How the numbers of one tensor lie on both sides.

  Attributes:
    read: their array -> ours, one for each path of the rule.
    write: ours -> their array.
  """

  read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
  write: Callable[..., np.ndarray]


class Rule(NamedTuple):
  """One tensor of theirs, and where it stands with us.

  Attributes:
    theirs: its name, without the prefix of the architecture.
    ours: paths of our parameters, 'encoder/layer_0/mlp/in/kernel'.
    form: how the numbers lie.
  """

  theirs: str
  ours: tuple[str, ...]
  form: Form


def _one(read, write):
  return Form(lambda x: (read(x),), write)


SAME = _one(lambda x: x, lambda x: x)
# Dense weights of PyTorch are [out, in].
TRANSPOSED = _one(np.transpose, np.transpose)


def heads_in(num_heads: int) -> Form:
  """[H K, D] -> [D, H, K]."""
  return _one(
    lambda x: x.T.reshape(x.shape[1], num_heads, -1),
    lambda x: x.reshape(x.shape[0], -1).T,
  )


def heads_bias(num_heads: int) -> Form:
  """[H K] -> [H, K]."""
  return _one(lambda x: x.reshape(num_heads, -1), np.ravel)


def heads_out(num_heads: int) -> Form:
  """[D, H K] -> [H, K, D]."""
  return _one(
    lambda x: x.T.reshape(num_heads, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[-1]).T,
  )


def untransposed_heads_out(num_heads: int) -> Form:
  """[H K, D] -> [H, K, D]."""
  return _one(
    lambda x: x.reshape(num_heads, -1, x.shape[-1]),
    lambda x: x.reshape(-1, x.shape[-1]),
  )


def fused_heads(num_heads: int, has_input: bool) -> Form:
  """[D, 3 H K] -> three of [D, H, K]; without `has_input` [3 H K]."""
  lead = 1 if has_input else 0

  def read(x):
    shape = (*x.shape[:lead], num_heads, -1)
    return tuple(part.reshape(shape) for part in np.split(x, 3, axis=-1))

  def write(*parts):
    flat = [part.reshape(*part.shape[:lead], -1) for part in parts]
    return np.concatenate(flat, axis=-1)

  return Form(read, write)


def behind(num_rows: int) -> Form:
  """[N + S, D] -> [S, D]: rows that no token ever has are left out.

  They are written as zeros, which PyTorch has for padding.
  """
  return _one(
    lambda x: x[num_rows:],
    lambda x: np.pad(x, ((num_rows, 0), (0, 0))),
  )


def dense(theirs: str, ours: str) -> Iterator[Rule]:
  """Weight and bias of a dense layer."""
  yield Rule(f'{theirs}.weight', (f'{ours}/kernel',), TRANSPOSED)
  yield Rule(f'{theirs}.bias', (f'{ours}/bias',), SAME)


def convolution(theirs: str, ours: str) -> Iterator[Rule]:
  """Weight and bias of what PyTorch's GPT-2 calls Conv1D: [in, out]."""
  yield Rule(f'{theirs}.weight', (f'{ours}/kernel',), SAME)
  yield Rule(f'{theirs}.bias', (f'{ours}/bias',), SAME)


def norm(theirs: str, ours: str) -> Iterator[Rule]:
  """Scale and bias of a layer norm."""
  yield Rule(f'{theirs}.weight', (f'{ours}/scale',), SAME)
  yield Rule(f'{theirs}.bias', (f'{ours}/bias',), SAME)


def attention(
  names: tuple[str, str, str, str], ours: str, num_heads: int
) -> Iterator[Rule]:
  """Query, key, value and output projections, in this order."""
  *sources, out = names
  for theirs, own in zip(sources, ('query', 'key', 'value'), strict=True):
    path = f'{ours}/{own}'
    yield Rule(f'{theirs}.weight', (f'{path}/kernel',), heads_in(num_heads))
    yield Rule(f'{theirs}.bias', (f'{path}/bias',), heads_bias(num_heads))
  yield Rule(f'{out}.weight', (f'{ours}/out/kernel',), heads_out(num_heads))
  yield Rule(f'{out}.bias', (f'{ours}/out/bias',), SAME)
