"""What a file holds: what an oracle does to random tokens, and what made it."""

import importlib.metadata
import json

import numpy as np
import torch
import torch.nn.functional as F
from oracles import common
from oracles.sizes import B, D, T

# The note on oracles that `rows_alone` is for.
ALONE = 'no mask: each row alone, at its length'


def rows_alone(oracle):
  """An oracle without a mask -> one that is given each row at its length."""

  def padded(x, keep):
    rows = [
      F.pad(oracle(row[None, :n])[0], (0, 0, 0, x.shape[1] - n))
      for row, n in zip(x, keep.sum(-1).tolist(), strict=True)
    ]
    return torch.stack(rows)

  return padded


def unmasked(oracle):
  """An oracle without a mask, for rows of full length."""

  def whole(x, keep):
    assert keep.all()
    return oracle(x)

  return whole


def flat(tree, prefix):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}/{name}')
    else:
      yield f'{prefix}/{name}', value


def numbers(value):
  if torch.is_tensor(value):
    value = value.detach().numpy()
  return value.astype(np.float32) if value.dtype == np.float64 else value


def record(
  file, mechanism, oracle, params, settings, *, packages, source,
  shape=(B, T, D), lengths=None, context=None, constant=None, note='',
  dtype=torch.float32,
):  # fmt: skip
  """Runs `oracle(x, keep)` and its gradient; gives the name and the arrays.

  Args:
    file: name without suffix.
    mechanism: ours, which the file is for.
    oracle: from x [B, T, D] and keep [B, T], true at real tokens, to y; with a
      context also from that.
    params: its weights under our names and in our shapes.
    settings: of ours.
    packages: whose versions are noted.
    source: what the oracle is, in words.
    shape: of x.
    lengths: of the rows; all of them full if None.
    context: tokens to attend to instead.
    constant: what it drew at random, for ours to draw too.
    note: where it is not followed, and how it was made to agree.
    dtype: of x.
  """
  lengths = np.array(lengths or (shape[1],) * shape[0], np.int32)
  keep = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
  x = common.normal(*shape, seed=2).to(dtype).requires_grad_()
  cotangent = torch.where(keep[..., None], common.normal(*shape, seed=3), 0.0)
  given = {} if context is None else {'context': context.requires_grad_()}
  y = oracle(x, keep, **given)
  assert y.shape == x.shape, (file, y.shape)
  y = torch.where(keep[..., None], y, 0.0)
  (y * cotangent).sum().backward()
  arrays = given | {
    'x': x, 'cotangent': cotangent, 'y': y, 'dx': x.grad, 'lengths': lengths,
  }  # fmt: skip
  arrays |= {f'd{name}': value.grad for name, value in given.items()}
  if constant is not None:
    arrays['constant'] = constant
  arrays |= flat(params, 'params')
  return described(file, mechanism, arrays, settings, packages, source, note)


def described(file, mechanism, arrays, settings, packages, source, note=''):
  """The name and arrays of a file, with where they come from."""
  about = {
    'mechanism': mechanism,
    'settings': settings,
    'oracle': source,
    'note': note,
    'versions': {
      name: importlib.metadata.version(name)
      for name in ('torch', 'numpy', *packages)
    },
  }
  arrays = {name: numbers(value) for name, value in arrays.items()}
  for name, value in arrays.items():
    assert np.isfinite(value).all(), (file, name)
  return file, {'about': json.dumps(about, sort_keys=True), **arrays}
