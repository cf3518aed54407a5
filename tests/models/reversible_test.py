"""The reversible stack: its formula, its gradients, and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import shapes
from effformer.models import encoder, reversible
from tests import slow
from tests.models.parameters import random_variables

B, T, D, H, F = 2, 7, 12, 3, 10
X_BTD = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
TOKENS = shapes.Tokens.from_lengths(jnp.array([7, 4]), T)


def layer(mixer='full', settings=(('form', 'dense'),), **facts):
  return encoder.LayerConfig(
    mixer=mixer, settings=(*settings, ('num_heads', H)), mlp_width=F, **facts
  )


SHARED = layer('linear', (), share='a', conv_width=3)
KINDS = {
  'scanned': (layer(),) * 4,
  'shared': (SHARED,) * 3,
  # Two scanned runs, and between them layers that stand alone.
  'hybrid': (*(layer(),) * 3, SHARED, layer('local', ()), *(SHARED,) * 3),
}


def build(kinds, **fields):
  return encoder.Encoder(kinds, reversible=True, **fields)


def parameters_of(module):
  return random_variables(module, X_BTD, tokens=TOKENS)


def test_streams_follow_the_formula():
  kinds = (layer(conv_width=3), layer('linear', ()))
  params = parameters_of(build(kinds))['params']
  x1_BTD = x2_BTD = X_BTD
  for index, kind in enumerate(kinds):
    block_params = params[f'layer_{index}']

    @functools.partial(jax.jit, static_argnums=1)
    def branch(x_BTD, name, kind=kind, block_params=block_params):
      return encoder.Block(kind).apply(
        {'params': block_params}, x_BTD, tokens=TOKENS, deterministic=True,
        branch=name,
      )[0]  # fmt: skip

    # Both branches, one upon the other, are the block without reversal.
    half_BTD = X_BTD + branch(X_BTD, 'mixer')
    np.testing.assert_allclose(
      half_BTD + branch(half_BTD, 'mlp'), branch(X_BTD, ''), atol=1e-5
    )
    x1_BTD = x1_BTD + branch(x2_BTD, 'mixer')
    x2_BTD = x2_BTD + branch(x1_BTD, 'mlp')
  mean_BTD = (x1_BTD + x2_BTD) / 2
  mean_BTD = mean_BTD - mean_BTD.mean(-1, keepdims=True)
  expected_BTD = mean_BTD / mean_BTD.std(-1, keepdims=True)
  expected_BTD += params['norm_out']['bias'][None, None]
  y_BTD = jax.jit(functools.partial(build(kinds).apply, tokens=TOKENS))(
    {'params': params}, X_BTD
  )
  np.testing.assert_allclose(y_BTD, expected_BTD, atol=1e-4)


def gradients_of(module, params):
  """Output and gradients with dropout, all in one compiled call."""

  def loss(params, x_BTD):
    y_BTD = module.apply(
      params, x_BTD, tokens=TOKENS, deterministic=False,
      rngs={'dropout': jax.random.key(3)},
    )  # fmt: skip
    return (jnp.where(TOKENS.keep_BT[..., None], y_BTD, 0) ** 3).mean()

  step = jax.value_and_grad(loss, argnums=(0, 1))
  return jax.jit(step)(params, X_BTD)


def assert_gradients_are_those_of_autodiff(module, monkeypatch):
  params = parameters_of(module)
  ours = gradients_of(module, params)
  monkeypatch.setattr(reversible, 'stack', reversible.stack.__wrapped__)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    ours,
    gradients_of(module, params),
  )


@pytest.mark.parametrize('name', slow.after(2, sorted(KINDS, reverse=True)))
def test_gradients_are_those_of_autodiff(name, monkeypatch):
  module = build(KINDS[name], dropout=0.3)
  assert_gradients_are_those_of_autodiff(module, monkeypatch)


RANDOM = [
  ('full', (('dropout', 0.3), ('form', 'chunked'))),
  ('reformer', (('block', 2), ('dropout', 0.3), ('num_buckets', 4))),
  ('sinkhorn', (('block', 2), ('dropout', 0.3))),
]


@pytest.mark.parametrize(('mixer', 'settings'), RANDOM, ids=str)
@pytest.mark.slow
def test_what_mixers_draw_is_drawn_again(mixer, settings, monkeypatch):
  module = build((layer(mixer, settings, mlp_chunk=3),), dropout=0.3)
  assert_gradients_are_those_of_autodiff(module, monkeypatch)


def test_branches_of_a_layer_drop_different_things():
  """Each branch adds 0 or 2; one mask for both would make 0 or 2 of the mean,
  and two values of each token.
  """
  module = build((layer(settings=(('use_bias', True),)),), dropout=0.5)
  params = jax.tree.map(np.zeros_like, parameters_of(module))
  params['params']['layer_0']['mixer']['out']['bias'] += 1
  params['params']['layer_0']['mlp']['out']['bias'] += 1
  params['params']['norm_out']['scale'] += 1
  y_BTD = module.apply(
    params, np.zeros_like(X_BTD), tokens=TOKENS, deterministic=False,
    rngs={'dropout': jax.random.key(0)},
  )  # fmt: skip
  values = [np.unique(y_D.round(4)).size for y_D in y_BTD.reshape(-1, D)]
  assert max(values) == 3


def test_streams_are_float32_whatever_the_compute_type(monkeypatch):
  module, kinds = build(KINDS['scanned'], dtype=jnp.bfloat16), []

  def spy(first, second, runs, params, pair, context):
    kinds.extend(x.dtype for x in pair)
    return pair

  monkeypatch.setattr(reversible, 'stack', spy)
  y_BTD = jax.eval_shape(
    functools.partial(module.apply, tokens=TOKENS),
    jax.eval_shape(lambda: parameters_of(module)),
    jax.ShapeDtypeStruct(X_BTD.shape, jnp.bfloat16),
  )
  assert set(kinds) == {jnp.dtype('float32')}
  assert y_BTD.dtype == jnp.bfloat16


LONG = 512


@pytest.mark.parametrize('scan_from', [1, 99])
def test_memory_does_not_grow_with_depth(monkeypatch, scan_from):
  """Memory of the backward pass, in arrays of [B, T, D] for one more layer."""
  monkeypatch.setattr(encoder, 'SCAN_FROM', scan_from)
  tokens = shapes.Tokens.from_lengths(jnp.full(B, LONG), LONG)
  x_BTD = jax.ShapeDtypeStruct((B, LONG, D), jnp.float32)

  def arrays(num_layers, is_reversible):
    module = encoder.Encoder(
      (layer('linear', ()),) * num_layers, reversible=is_reversible
    )
    params = jax.eval_shape(
      lambda x_BTD: module.init(jax.random.key(0), x_BTD, tokens=tokens), x_BTD
    )

    def loss(params, x_BTD):
      return jnp.mean(module.apply(params, x_BTD, tokens=tokens) ** 3)

    compiled = jax.jit(jax.grad(loss)).lower(params, x_BTD).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return memory / (4 * B * LONG * D)

  # What grows are the parameters and their gradients.
  assert (arrays(8, True) - arrays(3, True)) / 5 < 0.5
  if scan_from == 1:
    assert (arrays(8, False) - arrays(3, False)) / 5 > 10


@pytest.mark.parametrize('fields', [{'norm_order': 'post'}, {'remat': True}])
def test_what_does_not_go_together_is_refused(fields):
  (word,) = fields
  with pytest.raises(ValueError, match=f'reversible.*{word}'):
    build((layer(),), **fields)
