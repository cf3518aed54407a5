"""What networks compute inside: the output stays, the parts make the whole."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.attention.primitives import positions, softmax
from effformer.compress.distill import capture as capture_lib
from effformer.compress.distill import hidden, losses
from effformer.compress.distill.capture import capture
from effformer.errors import ConfigError
from effformer.models.block import Block
from tests.compress.networks import (
  BATCH,
  KINDS,
  B,
  D,
  H,
  K,
  T,
  batch_of,
  entering,
  layer,
  network,
)

# Many models are compiled.
pytestmark = pytest.mark.slow

HYBRID = (layer(), layer('local', window=2), layer('linear'))


def output(module, params, *arrays, **keywords):
  return jax.jit(functools.partial(module.apply, **keywords))(
    {'params': params}, *arrays
  )


@pytest.mark.parametrize('kind', KINDS)
def test_the_output_is_the_networks_own(kind):
  module, params = network(HYBRID, kind, pooling='cls', position='learned')
  batch = batch_of(kind)
  what = ('states', 'mixers', 'heads')
  seen = jax.jit(lambda p: capture(module, p, *batch, what=what))(params)
  expected = output(module, params, *batch)
  np.testing.assert_array_equal(seen.output, expected)
  plain = capture(module, params, *batch, what=()).output
  np.testing.assert_array_equal(plain, module.apply({'params': params}, *batch))
  rows = 2 * B if kind == 'pair_classifier' else B
  # A front vector is a token of its own.
  assert seen.keep_BT.shape == (rows, 1 + T)
  assert [x.shape for x in seen.states] == [(rows, 1 + T, D)] * 4
  assert list(seen.mixers) == [0, 1, 2]
  assert seen.queries[2].shape == (rows, H, 1 + T, K)


@pytest.mark.parametrize('norm_order', ['pre', 'post'])
def test_layers_that_are_scanned_otherwise(norm_order):
  module, params = network([layer()] * 4, norm_order=norm_order, remat=True)
  seen = jax.jit(lambda p: capture(module, p, *BATCH))(params)
  np.testing.assert_allclose(
    seen.output, output(module, params, *BATCH), rtol=1e-5, atol=1e-6
  )
  assert len(seen.states) == 5


def test_dropout_is_that_of_the_network():
  module, params = network([layer(dropout=0.3)] * 3, dropout=0.4, pooling='cls')
  keys = [{'dropout': jax.random.key(seed)} for seed in (0, 1)]
  first, second = (
    jax.jit(
      lambda p, rngs: capture(
        module, p, *BATCH, deterministic=False, rngs=rngs, step=jnp.array(3)
      )
    )(params, rngs)
    for rngs in keys
  )
  expected = output(
    module, params, *BATCH, deterministic=False, rngs=keys[0], step=3
  )
  np.testing.assert_allclose(first.output, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(first.output - second.output).max() > 1e-3
  # Of the embedding too.
  assert np.abs(first.states[0] - second.states[0]).max() > 0.1


def test_gradients_go_through_what_is_captured():
  module, params = network([layer()] * 3, norm_order='pre')
  other, teacher = network([layer('linear')] * 3)
  target = capture(other, teacher, *BATCH, what=('states', 'mixers'))

  def loss(params, module, see):
    output, states, mixers = see(module, params)
    value = losses.mean(losses.kl(output, target.output))
    for own, its in zip(states, target.states, strict=True):
      value += losses.mean(hidden.state_mse(own, its, target.keep_BT))
    for own, its in zip(mixers, target.mixers.values(), strict=True):
      value += losses.mean(hidden.state_mse(own, its, target.keep_BT))
    return value

  def captured(module, params):
    seen = capture(module, params, *BATCH, what=('states', 'mixers'))
    return seen.output, seen.states, list(seen.mixers.values())

  def by_hand(module, params):
    """Layer by layer, with the mixer taken out of its block."""
    x_BTD, tokens = entering(module, params, *BATCH)
    states, mixers = [x_BTD], []
    for index, kind in enumerate(module.layers):
      block, own = Block(kind), params['encoder'][f'layer_{index}']
      call = functools.partial(
        block.apply, {'params': own}, x_BTD, tokens=tokens, deterministic=True
      )
      # Without dropout the branch is what the mixer says, and nothing else.
      mixers.append(call(branch='mixer')[0])
      x_BTD = call()[0]
      states.append(x_BTD)
    output = module.apply({'params': params}, *BATCH)
    return output, states, mixers

  expected, actual = (
    jax.jit(jax.grad(functools.partial(loss, module=module, see=see)))(params)
    for see in (by_hand, captured)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
    actual,
    expected,
  )
  leaves = jax.tree.leaves(actual['encoder'])
  assert sum(np.abs(leaf).max() > 1e-3 for leaf in leaves) > len(leaves) / 2


def test_states_are_what_goes_from_layer_to_layer():
  module, params = network(HYBRID, 'embedder', norm_order='post')
  seen = capture(module, params, *BATCH)
  x_BTD, tokens = entering(module, params, *BATCH)
  np.testing.assert_array_equal(seen.states[0], x_BTD)
  np.testing.assert_array_equal(seen.keep_BT, tokens.keep_BT)
  for number in (1, 2):
    shorter = dataclasses.replace(module, layers=HYBRID[:number])
    y_BTD = shorter.apply({'params': params}, *BATCH, method='vectors')
    np.testing.assert_allclose(seen.states[number], y_BTD, atol=1e-6)
  # Vectors of tokens may be what is asked for.
  last = capture(module, params, *BATCH, method='vectors', what=())
  np.testing.assert_allclose(last.output, seen.states[3], atol=1e-6)
  assert last.states == ()


SCORED = {
  'full': layer(use_bias=True),
  'chunked': layer(form='chunked'),
  'causal': layer(causal=True),
  'rotary': layer(rotary=True, head_width=4),
  'alibi': layer(relative_bias='alibi'),
  't5': layer(relative_bias='t5', causal=True),
  'grouped': layer(num_heads=6, num_kv_heads=2),
  'local': layer('local', window=3, relative_bias='t5'),
  'local causal': layer('local', window=2, causal=True, rotary=True,
                        head_width=6),
}  # fmt: skip


@pytest.mark.parametrize('name', SCORED)
def test_scores_and_values_make_the_output_of_the_mixer(name):
  """y = [softmax(s_h) v_h]_h W_o, in float64."""
  module, params = network([layer('linear'), SCORED[name]], pooling='cls')
  seen = jax.jit(
    lambda p: capture(
      module, p, *BATCH, what=('mixers', 'heads', 'scores'), layers=(1,)
    )
  )(params)
  assert list(seen.scores) == list(seen.mixers) == list(seen.values) == [1]
  s_BHTT, v_BHTV = (
    np.asarray(x[1], np.float64) for x in (seen.scores, seen.values)
  )
  v_BHTV = np.repeat(v_BHTV, s_BHTT.shape[1] // v_BHTV.shape[1], axis=1)
  out = params['encoder']['layer_1']['mixer']['out']
  keep_BT = np.asarray(seen.keep_BT)
  assert s_BHTT.shape == (*v_BHTV.shape[:3], 1 + T)
  for b in range(B):
    for i in np.flatnonzero(keep_BT[b]):
      y_D = np.zeros(D) + out.get('bias', 0.0)
      for h in range(s_BHTT.shape[1]):
        s_T = s_BHTT[b, h, i]
        p_T = np.where(s_T > -1e30, np.exp(np.minimum(s_T, 80)), 0)
        # Nothing of what is masked, such as padding, is seen.
        assert not p_T[~keep_BT[b]].any()
        y_D += (p_T / p_T.sum()) @ v_BHTV[b, h] @ out['kernel'][h]
      np.testing.assert_allclose(seen.mixers[1][b, i], y_D, atol=1e-5)
    for i in np.flatnonzero(~keep_BT[b]):
      assert (s_BHTT[b, :, i] == np.float32(softmax.MASKED)).all()


def test_scores_by_their_formula():
  """<q, k> / sqrt(K) + bias."""
  module, params = network([layer(relative_bias='alibi')], norm_order='post')
  seen = capture(module, params, *BATCH, what=('states', 'heads', 'scores'))
  own = params['encoder']['layer_0']['mixer']
  x_BTD = np.asarray(seen.states[0], np.float64)
  q, k, v = (
    np.einsum('btd,dhk->bhtk', x_BTD, own[name]['kernel'])
    for name in ('query', 'key', 'value')
  )
  for actual, expected in (
    (seen.queries, q), (seen.keys, k), (seen.values, v)
  ):  # fmt: skip
    np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-5)
  distance_TT = np.abs(np.arange(T)[:, None] - np.arange(T)[None])
  for h, slope in enumerate(positions.slopes(H)):
    s_TT = q[0, h] @ k[0, h].T / math.sqrt(K) - slope * distance_TT
    np.testing.assert_allclose(seen.scores[0][0, h], s_TT, rtol=1e-4, atol=1e-5)


def test_layers_that_share_parameters_are_seen_each_by_itself():
  module, params = network([layer(share='a')] * 2)
  seen = capture(module, params, *BATCH, what=('scores', 'mixers'))
  assert list(seen.scores) == [0, 1]
  assert np.abs(seen.scores[0] - seen.scores[1])[0].max() > 0.1
  assert np.abs(seen.mixers[0] - seen.mixers[1]).max() > 0.1


def test_mechanisms_that_build_on_the_projections_of_others():
  """Longformer puts queries of its own in the place of those of all."""
  module, params = network(
    [layer('longformer', attention_window=2, global_tokens=1)]
  )
  seen = capture(module, params, *BATCH, what=('states', 'heads'))
  own = params['encoder']['layer_0']['mixer']
  scale = params['encoder']['layer_0']['norm_mixer']['scale']
  bias = params['encoder']['layer_0']['norm_mixer']['bias']
  x_TD = np.asarray(seen.states[0][0])
  x_TD = (x_TD - x_TD.mean(-1, keepdims=True)) / x_TD.std(-1, keepdims=True)
  for name, t in (('query_global', 0), ('query', 1), ('query', T - 1)):
    q_HK = np.einsum('d,dhk->hk', x_TD[t] * scale + bias, own[name]['kernel'])
    np.testing.assert_allclose(seen.queries[0][0, :, t], q_HK, atol=1e-4)


def test_a_teacher_and_a_student_of_other_mechanisms():
  """The output of the mixer is there for all."""
  module, params = network([layer('fnet'), layer('performer'), layer('s5')])
  seen = capture(module, params, *BATCH, what=('mixers',))
  assert [x.shape for x in seen.mixers.values()] == [(B, T, D)] * 3
  assert seen.states == ()


@pytest.mark.parametrize(
  ('layers', 'options', 'message'),
  [
    ([layer()], {'what': ('logits',)}, "no part 'logits'; there are states"),
    ([layer()], {'layers': (1,)}, 'no layer 1: the network has layers 0 to 0'),
    (
      [layer(), layer('linear')],
      {'what': ('scores',)},
      'layer 1 is linear, which has no scores of pairs',
    ),
    (
      [layer('fnet')],
      {'what': ('heads',)},
      'layer 0 is fnet, which has no queries',
    ),
    (
      [layer('linformer', rank=3)],
      {'what': ('heads',)},
      'layer 0 is linformer, here with queries .* not with one of each',
    ),
  ],
)
def test_what_is_not_there(layers, options, message):
  module, params = network(layers)
  with pytest.raises(ValueError, match=message):
    capture(module, params, *BATCH, **options)
  # Of other layers it can be had.
  if len(layers) > 1:
    seen = capture(module, params, *BATCH, layers=(0,), **options)
    assert list(seen.scores) == [0]


def test_networks_that_cannot_be_looked_at():
  module, params = network([layer()] * 2)
  for fields in ({'reversible': True}, {'extra_tokens': 2}):
    with pytest.raises(ConfigError, match=f'{next(iter(fields))}='):
      capture(dataclasses.replace(module, **fields), params, *BATCH)


def test_every_part_can_be_asked_for_at_once():
  module, params = network([layer()])
  seen = capture(module, params, *BATCH, what=capture_lib.PARTS)
  assert all(len(part) for part in seen)
