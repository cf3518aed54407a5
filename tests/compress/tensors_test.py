"""Parameters as codes: views, plans, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import grid as grids
from effformer.compress import tensors
from effformer.compress.grid import Grid
from effformer.errors import ConfigError

D, H, K, F, Y = 6, 2, 3, 5, 7


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype('f4')


def params():
  mixer = {
    'query': {'kernel': normal(D, H, K), 'bias': normal(H, K)},
    'out': {'kernel': normal(H, K, D, seed=1), 'bias': normal(D)},
  }
  return {
    'embedding': {'embedding': normal(Y, D, seed=2)},
    'positions': normal(4, D, seed=3),
    'encoder': {
      'layer_0': {
        'mixer': mixer,
        'mlp': {'in': {'kernel': normal(D, F, seed=4), 'bias': normal(F)}},
        'norm_mlp': {'scale': normal(D), 'bias': normal(D)},
      }
    },
  }


QUERY = 'encoder/layer_0/mixer/query/kernel'
OUT = 'encoder/layer_0/mixer/out/kernel'
ROUNDED = {
  'embedding/embedding', 'positions', QUERY, OUT,
  'encoder/layer_0/mlp/in/kernel',
}  # fmt: skip


def test_all_that_multiplies_is_in_a_uniform_plan():
  plan = tensors.uniform_plan(params(), Grid(4), tables=Grid(8))
  assert set(plan) == ROUNDED
  assert {path for path in plan if plan[path] == Grid(8)} == {
    'embedding/embedding', 'positions',
  }  # fmt: skip
  quantised = tensors.quantise(params(), plan)
  mixer = quantised['encoder']['layer_0']['mixer']
  np.testing.assert_array_equal(mixer['query']['bias'], normal(H, K))
  assert mixer['query']['kernel'].codes.dtype == jnp.int8


@pytest.mark.parametrize(
  ('path', 'x', 'channels', 'is_scaled'),
  [
    # What one output is made of, or one row of a table.
    (QUERY, normal(D, H, K), (H, K), lambda x, n: x[:, n // K, n % K]),
    (OUT, normal(H, K, D), (D,), lambda x, n: x[:, :, n]),
    ('positions', normal(4, D), (4,), lambda x, n: x[n]),
    ('mlp/in/kernel', normal(D, F), (F,), lambda x, n: x[:, n]),
  ],
)
def test_a_channel_is_all_that_makes_an_output(path, x, channels, is_scaled):
  w_KN = np.asarray(tensors.matrix(path, x))
  assert w_KN.shape[1] == np.prod(channels)
  for n in range(w_KN.shape[1]):
    np.testing.assert_array_equal(w_KN[:, n], np.ravel(is_scaled(x, n)))
  again = tensors.from_matrix(w_KN, x.shape, path == 'positions')
  np.testing.assert_array_equal(again, x)


@pytest.mark.parametrize(
  'grid', [Grid(8), Grid(3, 'tile', 2), Grid(4, 'tensor', symmetric=False)]
)
def test_reading_gives_each_tensor_rounded(grid):
  plan = tensors.uniform_plan(params(), grid)
  read = tensors.dequantise(tensors.quantise(params(), plan))
  jax.tree.map(lambda a, b: None, read, params())
  x = params()['encoder']['layer_0']['mixer']['out']['kernel']
  y = read['encoder']['layer_0']['mixer']['out']['kernel']
  expected = grids.fake_quantise(x.reshape(-1, D), grid).reshape(x.shape)
  np.testing.assert_allclose(y, expected, rtol=1e-6)
  assert np.any(np.asarray(y) != x)


def test_bytes_are_those_of_packed_codes():
  plan = {QUERY: Grid(3), OUT: Grid(4, 'tile', 4, symmetric=False)}
  mixer = tensors.quantise(params(), plan)['encoder']['layer_0']['mixer']
  # 36 codes of 3 bits and 6 scales; 36 of 4 bits, two tiles of 6 channels.
  assert mixer['query']['kernel'].packed_bytes == 14 + 4 * 6
  assert mixer['out']['kernel'].packed_bytes == 18 + 12 * 5


def test_scales_that_are_given():
  plan = {QUERY: Grid(3), OUT: Grid(4)}
  found = grids.Scales(jnp.full((1, H * K), 0.25), jnp.zeros((1, H * K)))
  mixer = tensors.quantise(params(), plan, found={QUERY: found})
  mixer = mixer['encoder']['layer_0']['mixer']
  x = params()['encoder']['layer_0']['mixer']['query']['kernel']
  expected = np.clip(np.round(x / 0.25), -3, 3) * 0.25
  read = tensors.dequantised(mixer['query']['kernel'])
  np.testing.assert_array_equal(read, expected)
  # The others are those of the rule.
  own = grids.scales(normal(H, K, D, seed=1).reshape(-1, D), Grid(4))
  np.testing.assert_array_equal(mixer['out']['kernel'].scale, own.scale)
  with pytest.raises(ValueError, match='which the plan lacks'):
    tensors.quantise(params(), {OUT: Grid(4)}, found={QUERY: found})
  with pytest.raises(ValueError, match=r'have to be \(1, 1\)'):
    tensors.quantise(params(), {QUERY: Grid(4, 'tensor')}, found={QUERY: found})


def test_a_plan_that_does_not_fit():
  for path, words in (
    ('encoder/layer_1/mlp/in/kernel', 'which the model does not have'),
    ('encoder/layer_0/norm_mlp/scale', 'which is no matrix'),
    ('encoder/layer_0/mixer/query/bias', 'which is no matrix'),
  ):
    with pytest.raises(ConfigError, match=words):
      tensors.quantise(params(), {path: Grid(8)})


# Factors of the inputs.


def test_codes_with_factors_are_of_the_scaled_matrix():
  s_K = np.array([0.5, 4, 1, 2, 0.25, 8], 'f4')
  plan = {OUT: Grid(3, 'tile', 4), QUERY: Grid(8)}
  mixer = tensors.quantise(params(), plan, factors={OUT: s_K})
  mixer = mixer['encoder']['layer_0']['mixer']
  out, query = mixer['out']['kernel'], mixer['query']['kernel']
  w_KN = normal(H, K, D, seed=1).reshape(-1, D)
  found = grids.fake_quantise(s_K[:, None] * w_KN, Grid(3, 'tile', 4))
  np.testing.assert_allclose(
    tensors.dequantised(out).reshape(-1, D), found / s_K[:, None], rtol=1e-6
  )
  np.testing.assert_array_equal(out.inputs, s_K)
  assert query.inputs.size == 0
  # 36 codes of 3 bits, two tiles of 6 channels, and 6 factors.
  assert out.packed_bytes == 14 + 4 * 12 + 4 * 6
  assert query.packed_bytes == 36 + 4 * 6


def test_factors_that_do_not_fit():
  plan = {OUT: Grid(8)}
  with pytest.raises(ConfigError, match='which the plan does not round'):
    tensors.quantise(params(), plan, factors={QUERY: np.ones(D)})
  for wrong in (np.ones(5), np.zeros(6), -np.ones(6), np.full(6, np.inf)):
    with pytest.raises(ValueError, match='has 6 inputs'):
      tensors.quantise(params(), plan, factors={OUT: wrong})
