"""The recurrent mechanisms among each other: a chain of limits, and both ways.

Gated DeltaNet without its delta term is a sum with a decay for each token, as
is Mamba-2; with one decay for all tokens that is RetNet, and so is GLA with the
same decay in all channels; without decay it is linear attention without
feature map and denominator.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.attention.multihead import Call, Head
from effformer.shapes import Tokens
from tests.attention.cases import PACKED, B, D, H, T, assert_close, normal

K, V = 4, 6
SEGMENTS = np.array([1, 1, 1, 1, 1, 2, 2, 2, 0, 2, 2])
NAMES = ('retnet', 'gla', 'gated_deltanet', 'mamba2')


def bare(name, **settings):
  """The mechanism without norm, gate and output: heads as they are read."""

  class Bare(attention.TABLE[name]):
    def refine(self, o_BTHV, x_BTD):
      return o_BTHV

    def finish(self, o_BTHV, x_BTD):
      return o_BTHV.reshape(*o_BTHV.shape[:2], -1)

  return Bare(num_heads=H, chunk=3, **settings)


@functools.partial(jax.jit, static_argnums=0)
def params_of(module, x_BTD, tokens):
  return module.init(jax.random.key(1), x_BTD, tokens=tokens)['params']


@functools.partial(jax.jit, static_argnums=0)
def read(module, params, x_BTD, tokens):
  return module.apply({'params': params}, x_BTD, tokens=tokens)


@functools.partial(jax.jit, static_argnums=0)
def mix(module, head, params):
  call = Call(is_packed=True, is_cross=False, rows=1)
  return module.mix(head, params, call)


def head_of(q_TK, k_TK, v_TV, more=None):
  position_T = np.arange(len(SEGMENTS))
  return Head(
    q_TK, k_TK, v_TV, more, None, None,
    SEGMENTS, SEGMENTS, position_T, position_T,
  )  # fmt: skip


def inputs():
  length = len(SEGMENTS)
  q_TK, k_TK = normal(length, K), normal(length, K, seed=1)
  decay_T = -np.exp(normal(length, seed=3))
  return q_TK, k_TK, normal(length, V), decay_T


def weighted_sum(q_TK, k_TK, v_TV, decay_T, is_causal):
  """sum_j <q_i, k_j> / sqrt(K) exp(sum of g between) v_j, pair by pair."""
  o_TV = np.zeros((len(q_TK), v_TV.shape[-1]))
  real = np.flatnonzero(SEGMENTS)
  for i, j in itertools.product(real, real):
    if SEGMENTS[i] != SEGMENTS[j] or (is_causal and j > i):
      continue
    between = range(j + 1, i + 1) if j < i else range(i, j)
    fade = math.exp(sum(decay_T[u] for u in between if SEGMENTS[u]))
    o_TV[i] += q_TK[i] @ k_TK[j] / math.sqrt(K) * fade * v_TV[j]
  return o_TV


def gated_deltanet(q_TK, k_TK, v_TV, decay_T, **settings):
  class WithoutDelta(attention.TABLE['gated_deltanet']):
    def streams(self, head, params):
      return super().streams(head, params)._replace(beta_T=None)

  module = WithoutDelta(chunk=3, **settings)
  head = head_of(q_TK, k_TK, v_TV, {'decay': decay_T})
  return mix(module, head, ())


def mamba2(q_TK, k_TK, v_TV, decay_T, **settings):
  # Two heads of one group: the other one decays twice as fast.
  module = attention.build('mamba2', num_heads=2, chunk=3, **settings)
  step_T = -decay_T
  both_TV = np.concatenate([v_TV / step_T[:, None]] * 2, axis=-1)
  head = head_of(
    math.sqrt(K) ** -1 * q_TK, k_TK, both_TV, np.stack([step_T] * 2, axis=-1)
  )
  params = np.array([-1.0, -2.0], 'f4'), np.zeros(2, 'f4')
  o_TV = mix(module, head, params)
  assert np.abs(o_TV[:, :V] - o_TV[:, V:]).max() > 0.1
  return o_TV[:, :V]


def gla(q_TK, k_TK, v_TV, decay_T, **settings):
  module = attention.build('gla', chunk=3, **settings)
  decay_TK = np.repeat(decay_T[:, None], K, axis=-1)
  head = head_of(q_TK, k_TK, v_TV, {'decay': decay_TK})
  return mix(module, head, ())


def retnet(q_TK, k_TK, v_TV, decay_T, **settings):
  module = attention.build('retnet', chunk=3, **settings)
  return mix(module, head_of(q_TK, k_TK, v_TV), decay_T[0])


@pytest.mark.parametrize('is_causal', [True, False])
@pytest.mark.parametrize('mechanism', [gated_deltanet, mamba2, gla])
def test_decay_of_each_token(mechanism, is_causal):
  streams = inputs()
  actual_TV = mechanism(*streams, causal=is_causal)
  assert_close(actual_TV, weighted_sum(*streams, is_causal), 1e-5)


@pytest.mark.parametrize('is_causal', [True, False])
@pytest.mark.parametrize('mechanism', [gated_deltanet, mamba2, gla, retnet])
def test_one_decay_is_retention(mechanism, is_causal):
  q_TK, k_TK, v_TV, decay_T = inputs()
  decay_T = np.full_like(decay_T, math.log(31 / 32))
  streams = q_TK, k_TK, v_TV, decay_T
  actual_TV = mechanism(*streams, causal=is_causal)
  assert_close(actual_TV, weighted_sum(*streams, is_causal), 1e-5)


@pytest.mark.parametrize('mechanism', [gated_deltanet, gla, retnet])
def test_no_decay_is_linear_attention_without_features(mechanism):
  q_TK, k_TK, v_TV, decay_T = inputs()
  actual_TV = mechanism(q_TK, k_TK, v_TV, 0.0 * decay_T, causal=True)
  logits_TT = q_TK @ k_TK.T / math.sqrt(K)
  seen_TT = np.tri(len(SEGMENTS)) * (SEGMENTS[:, None] == SEGMENTS[None])
  expected_TV = (logits_TT * seen_TT) @ v_TV
  keep_T = SEGMENTS > 0
  assert_close(actual_TV[keep_T], expected_TV[keep_T], 1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_both_ways_is_the_causal_form_twice(name):
  # One tap: convolutions look back in either form.
  taps = {'taps': 1} if 'taps' in attention.settings(name) else {}
  both, causal = bare(name, **taps), bare(name, causal=True, **taps)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, T]), T)
  params = params_of(both, x_BTD, tokens)
  y_BTM = read(both, params, x_BTD, tokens)
  past_BTM = read(causal, params, x_BTD, tokens)
  future_BTM = read(causal, params, x_BTD[:, ::-1], tokens)[:, ::-1]
  # The last token has no future; the first has no past but itself.
  assert_close(y_BTM[:, -1], past_BTM[:, -1], 1e-5)
  assert np.abs(y_BTM[:, 0] - past_BTM[:, 0]).max() > 1e-3
  if name == 'gated_deltanet':
    # What a token writes depends on what it finds, so on the direction.
    return
  # Each token as the only one of its row.
  ones = Tokens.from_lengths(np.ones(B * T, int), 1)
  own_BTM = read(causal, params, x_BTD.reshape(-1, 1, D), ones)
  own_BTM = own_BTM.reshape(B, T, -1)
  assert_close(y_BTM, past_BTM + future_BTM - own_BTM, 1e-5)


@pytest.mark.parametrize('name', ['gated_deltanet', 'mamba2'])
@pytest.mark.parametrize('is_causal', [True, False])
def test_padding_within_a_segment_takes_no_room(name, is_causal):
  """The same tokens with and without padding between them."""
  module = attention.build(name, num_heads=H, chunk=3, causal=is_causal)
  x_BTD, tokens = normal(B, T, D), Tokens.from_segments(np.ones((B, T)))
  params = params_of(module, x_BTD, tokens)
  spread = np.array([0, 1, 2, 4, 6, 7, 8])
  wide_BTD, segment_BT = normal(B, 9, D, seed=1), np.zeros((B, 9), int)
  wide_BTD[:, spread], segment_BT[:, spread] = x_BTD, 1
  wide_BTD = read(module, params, wide_BTD, Tokens.from_segments(segment_BT))
  assert_close(wide_BTD[:, spread], read(module, params, x_BTD, tokens))


@pytest.mark.parametrize('name', NAMES)
def test_state_has_one_size_for_any_length(name):
  module = attention.build(
    name, num_heads=H, causal=True, head_width=K, value_width=V
  )
  short, long = (module.init_state(B, length) for length in (1, 10**6))
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), short)
  assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), long)
  widths = [leaf.shape[-2:] for leaf in jax.tree.leaves(short)]
  assert (K, V) in widths
  half = module.init_state(B, 1, jnp.bfloat16)
  memory = half if name in ('retnet', 'gla') else half[0]
  assert memory.sum_KV.dtype == jnp.float32


@pytest.mark.parametrize('name', ['gla', 'gated_deltanet', 'mamba2'])
def test_strong_decay_forgets_without_overflow(name):
  """Products exp(-G) of a chunk would overflow at inputs of this size."""
  module = attention.build(name, num_heads=H, causal=True)
  x_BTD, tokens = (
    300.0 * normal(B, 64, D),
    Tokens.from_segments(np.ones((B, 64))),
  )
  params = params_of(module, x_BTD, tokens)

  def loss(params, x_BTD):
    return (module.apply({'params': params}, x_BTD, tokens=tokens) ** 2).mean()

  value, gradients = jax.jit(jax.value_and_grad(loss))(params, x_BTD)
  assert np.isfinite(value)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize('name', NAMES)
def test_rates_and_norms_do_not_decay(name):
  """Weight decay is for what has two axes, unless its name says otherwise."""
  module = attention.build(name, num_heads=H)
  variables = jax.eval_shape(
    functools.partial(
      module.init, tokens=Tokens.from_segments(np.array(PACKED))
    ),
    jax.random.key(0),
    jnp.zeros((B, T, D)),
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    is_product = path[-1].key in ('kernel', 'conv')
    assert is_product == (leaf.ndim > 1 and path[-1].key != 'bias')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
  ('settings', 'error', 'message'),
  [
    ({'chunk': 0}, ValueError, 'chunk.*0'),
    ({'value_width': -1}, ValueError, 'value_width.*-1'),
    ({'num_kv_heads': 2}, NotImplementedError, 'grouped'),
    ({'relative_bias': 'alibi'}, NotImplementedError, 'relative_bias'),
  ],
)
def test_wrong_setting_is_refused(name, settings, error, message):
  with pytest.raises(error, match=f'{name}.*{message}'):
    attention.build(name, **settings)
