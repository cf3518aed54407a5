"""The tiles of exact attention: which ones, and rows of a CPU in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import chunked, positions, softmax
from effformer.attention.primitives.chunked import Tiles

B, T, S, H, K, V = 2, 13, 11, 3, 4, 5
TOLERANCE = 2e-5
SEGMENTS_BT = np.array([[1] * 6 + [0] + [2] * 4 + [3] * 2, [1] * 9 + [0] * 4])
SEGMENTS_BS = np.array([[1] * 5 + [2] * 4 + [0] * 2, [1] * 10 + [0]])
BIAS = positions.Rule('t5')
PATTERNS = {
  'all': softmax.Pattern(),
  'causal': softmax.Pattern(causal=True),
  'bias': softmax.Pattern(bias=BIAS),
}


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype('f4')


def by_heads(monkeypatch, pattern, tiles):
  """(o, lse, gradients) of all heads and examples; tiles None: dense."""
  monkeypatch.setattr(chunked, 'choose', lambda *_: tiles)
  attend = chunked.attend if tiles else softmax.tile
  keys = jax.random.split(jax.random.key(0), (B, H))
  bias_HN = None
  if pattern.bias:
    bias_HN = normal(H, pattern.bias.num_buckets)

  def loss(q_BTHK, k_BSHK, v_BSHV, bias_HN):
    def example(q_THK, k_SHK, v_SHV, segment_T, segment_S, keys_H):
      def head(q_TK, k_SK, v_SV, rng, bias_N):
        where = softmax.sites(segment_T, segment_S)
        return attend(q_TK, k_SK, v_SV, where, rng, bias_N, pattern=pattern)

      axes = (1, 1, 1, 0, None if bias_HN is None else 0)
      return jax.vmap(head, axes)(q_THK, k_SHK, v_SHV, keys_H, bias_HN)

    o_BHTV, lse_BHT = jax.vmap(example)(
      q_BTHK, k_BSHK, v_BSHV, SEGMENTS_BT, SEGMENTS_BS, keys
    )
    total = (o_BHTV * normal(B, H, T, V, seed=1)).sum()
    weight_BHT = normal(B, H, T, seed=1)
    total += jnp.where(jnp.isfinite(lse_BHT), lse_BHT * weight_BHT, 0.0).sum()
    return total, (o_BHTV, lse_BHT)

  inputs = normal(B, T, H, K), normal(B, S, H, K), normal(B, S, H, V), bias_HN
  argnums = (0, 1, 2) if bias_HN is None else (0, 1, 2, 3)
  gradients, outputs = jax.jit(jax.grad(loss, argnums, has_aux=True))(*inputs)
  return jax.tree.leaves((outputs, gradients))


@pytest.mark.parametrize('in_turn', [False, True])
@pytest.mark.parametrize('name', PATTERNS)
def test_two_kinds_of_tiles_equal_dense(monkeypatch, name, in_turn):
  tiles = Tiles((4, 3), (2, 5), in_turn)
  actual = by_heads(monkeypatch, PATTERNS[name], tiles)
  expected = by_heads(monkeypatch, PATTERNS[name], None)
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def test_tiles_of_the_future_are_not_read():
  """0 times NaN would be NaN; the last tile is filled up to 15 keys."""
  k_SK, v_SV = normal(T, K), normal(T, V)
  k_SK[9:] = v_SV[9:] = np.nan
  where = softmax.sites(jnp.ones(T, jnp.int32), jnp.ones(T, jnp.int32))
  o_TV, lse_T = chunked.forward(
    softmax.Pattern(causal=True), (4, 3), normal(T, K, seed=1), k_SK, v_SV,
    where, None, None,
  )  # fmt: skip
  assert np.isfinite(o_TV[:8]).all()
  assert np.isfinite(lse_T[:8]).all()
  assert np.isnan(o_TV[8:]).all()


def test_rows_in_turn_drop_what_rows_together_drop(monkeypatch):
  pattern = softmax.Pattern(dropout=0.5)
  together, in_turn = (
    by_heads(monkeypatch, pattern, Tiles((4, 3), (4, 3), in_turn))
    for in_turn in (False, True)
  )
  for one, other in zip(together, in_turn, strict=True):
    np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)
  # Each head drops its own.
  assert not np.allclose(together[0][0, 0], together[0][0, 1])


def test_one_cpu_takes_many_tokens_in_turn(monkeypatch):
  def choose(num_queries=4096, num_keys=4096, rows=8, **fields):
    pattern = softmax.Pattern(**fields)
    return chunked.choose(num_queries, num_keys, rows, pattern)

  dropping = choose(dropout=0.1)
  assert not choose().in_turn, 'these tests have eight devices'
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  assert choose() == Tiles((512, 256), (128, 512), in_turn=True)
  assert not choose(128, 128).in_turn
  assert choose(128, 128) == Tiles((128, 128), (128, 128))
  # A mask belongs to a tile: it is the same in both passes, on any device.
  assert dropping.forward == dropping.backward
  assert choose(dropout=0.1) == dropping._replace(in_turn=True)
  causal = choose(causal=True)
  assert causal == Tiles((256, 256), (256, 256), in_turn=True)
  assert choose(8192, causal=True).forward == (512, 256)
  # Few keys, and more queries.
  assert choose(num_keys=64) == Tiles((2048, 64), (1024, 64), in_turn=True)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not choose().in_turn
