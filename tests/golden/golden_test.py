"""Our mechanisms against public PyTorch implementations.

The files hold what an oracle said once, with its weights under our names; see
README.md. Where the note in a file says that the oracle differs, it is ours
that is right.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention.primitives import positions
from effformer.shapes import Tokens

HERE = pathlib.Path(__file__).resolve().parent
# Largest difference over the largest number; measured are up to 8e-6.
TOLERANCE = 2e-5
FILES = sorted(
  path.stem for path in HERE.glob('*.npz') if path.stem != 'positions'
)


@functools.cache
def load(file):
  with np.load(HERE / f'{file}.npz') as arrays:
    arrays = dict(arrays)
  return json.loads(str(arrays.pop('about'))), arrays


def variables_of(arrays):
  """The nested parameters of the flat names a/b/c."""
  tree = {}
  for name, value in arrays.items():
    *path, leaf = name.split('/')
    if path:
      branch = tree
      for key in path:
        branch = branch.setdefault(key, {})
      branch[leaf] = value
  return tree


def difference(actual, expected):
  return np.abs(actual - expected).max() / np.abs(expected).max()


# Methods of ours that give what is drawn at random, and what they return when
# it is the `constant` of the file.
DRAWN = {
  'bigbird': (
    'head_params',
    lambda constant: (constant.astype(jnp.uint32), True),
  ),
  'performer': ('omega', lambda constant: constant),
  'reformer': ('head_params', lambda constant: (constant, True)),
}


def with_constant(monkeypatch, about, arrays):
  """Has ours draw what the oracle drew."""
  if 'constant' not in arrays:
    return
  method, result = DRAWN[about['mechanism']]
  given = result(jnp.asarray(arrays['constant']))
  mixer = attention.TABLE[about['mechanism']]
  monkeypatch.setattr(mixer, method, lambda *args: given)


def ours(about, arrays):
  """Outputs, and gradients for x and the context, at real tokens."""
  module = attention.build(about['mechanism'], **about['settings'])
  tokens = Tokens.from_lengths(arrays['lengths'], arrays['x'].shape[1])
  context_tokens = None
  if 'context' in arrays:
    rows, length = arrays['context'].shape[:2]
    context_tokens = Tokens.from_lengths(np.full(rows, length), length)

  def apply(inputs, variables):
    y_BTD = module.apply(
      variables, inputs['x'], inputs.get('context'), tokens=tokens,
      context_tokens=context_tokens,
    )  # fmt: skip
    y_BTD = jnp.where(tokens.keep_BT[..., None], y_BTD, 0.0)
    return (y_BTD * arrays['cotangent']).sum(), y_BTD

  inputs = {name: arrays[name] for name in ('x', 'context') if name in arrays}
  call = jax.jit(jax.value_and_grad(apply, has_aux=True))
  (_, y_BTD), gradients = call(inputs, variables_of(arrays))
  return y_BTD, gradients


def first_of_each(files):
  """The others are compared only as users compile them."""
  seen = set()
  for file in files:
    mechanism = load(file)[0]['mechanism']
    marks = [pytest.mark.optimised] if mechanism in seen else []
    seen.add(mechanism)
    yield pytest.param(file, marks=marks)


@pytest.mark.parametrize('file', first_of_each(FILES))
def test_agrees_with_the_oracle(file, monkeypatch):
  about, arrays = load(file)
  with_constant(monkeypatch, about, arrays)
  y_BTD, gradients = ours(about, arrays)
  assert difference(y_BTD, arrays['y']) < TOLERANCE
  for name, gradient in gradients.items():
    assert difference(gradient, arrays[f'd{name}']) < TOLERANCE, name


@pytest.mark.parametrize('file', FILES)
def test_every_weight_of_the_oracle_is_used(file):
  """A parameter of a wrong name would be ignored, or be ours at random."""
  about, arrays = load(file)
  module = attention.build(about['mechanism'], **about['settings'])
  tokens = Tokens.from_lengths(arrays['lengths'], arrays['x'].shape[1])
  made = jax.eval_shape(
    functools.partial(module.init, tokens=tokens),
    jax.random.key(0),
    arrays['x'],
  )
  given = variables_of(arrays)
  shapes = functools.partial(jax.tree.map, lambda leaf: leaf.shape)
  assert shapes(given.get('params', {})) == shapes(made.get('params', {}))


def test_the_files_are_small():
  size = sum(path.stat().st_size for path in HERE.glob('*.npz'))
  assert size < 2**20


@pytest.mark.parametrize('is_causal', [False, True])
@pytest.mark.parametrize(
  ('buckets', 'furthest'), [(32, 128), (16, 64), (32, 100)]
)
def test_buckets_of_t5(is_causal, buckets, furthest):
  _, arrays = load('positions')
  rule = positions.Rule('t5', is_causal, buckets, furthest)
  np.testing.assert_array_equal(
    positions.bucket(rule, jnp.asarray(arrays['ahead'])),
    arrays[f'buckets-{int(is_causal)}-{buckets}-{furthest}'],
  )


@pytest.mark.parametrize('heads', range(1, 17))
def test_slopes_of_alibi(heads):
  _, arrays = load('positions')
  np.testing.assert_allclose(
    positions.slopes(heads), arrays[f'slopes-{heads}'], rtol=1e-6
  )


def test_rotary_positions():
  _, arrays = load('positions')
  turned_TK = positions.rotate(
    jnp.asarray(arrays['x']), jnp.asarray(arrays['position'])
  )
  # float32 angles of thousands are known to 3e-4; both libraries round alike
  # up to the last bit of the rates.
  np.testing.assert_allclose(turned_TK, arrays['turned'], atol=2e-3)
